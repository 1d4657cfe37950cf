"""One client process of a load: charges, holds, refunds and grants, and on file what it was told.

`python -m tests.faults.load JOB.json`. Each thread writes a line before it asks and one with the
answer, straight to its own file, so that a client that is killed leaves what it knew.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from tokenlib import Client as HttpClient
from tokenlib import DatabaseUnavailable, Grant, Reservation, TokenlibError, Tokens, Usage
from tokenlib.db import Database
from tokenlib.domain import Mode
from tokenlib.retry import ONCE, Retry

Answer = Usage | Reservation | Grant | None
FEATURES = ("generate_goal", "generate_insight", "analyze_strategy")
_REPLAYS = 60
_ASKED_AGAIN = 6


@dataclass(frozen=True)
class Job:
    """What a client process is to do; `new_keys` and `override` are ways to do it wrong."""

    url: str
    acks: str  # the folder of the files
    name: str
    people: list[tuple[str, str]]
    stop: str  # once this file is there the load ends, and what is unclear is asked again
    seconds: float  # it ends by then in any case
    threads: int = 3
    deadline: float = 5.0
    pool_size: int = 4
    hogs: int = 0  # threads that take a connection and keep it for a while
    new_keys: bool = False  # a new key for each attempt
    api_key: str | None = None  # `url` is the HTTP API's, and this its key
    override: Mode | None = None  # let calls through that the books do not have


@dataclass(frozen=True)
class Request:
    """One thing that a client wants once, however often it asks."""

    name: str
    verb: str
    organization: str
    user: str
    feature: str = ""
    units: int = 1
    key: str | None = None
    subject: Reservation | str | None = None  # the hold, or the id of the usage


class Client:
    """One thread of a client process."""

    def __init__(self, job: Job, number: int, tokens: Tokens | HttpClient) -> None:
        self.job, self.tokens = job, tokens
        self.name = f"{job.name}-{number}"
        self.chance = random.Random(self.name)  # noqa: S311 - a load, not a secret
        self.file = os.open(
            Path(job.acks) / f"{self.name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        self.count = 0
        self.charged: list[tuple[Request, str]] = []  # not yet refunded: request and usage id
        self.done: list[Request] = []
        self.names: set[str] = set()
        self.unclear: list[Request] = []

    def run(self, until: float) -> None:
        """Ask until told to stop, then ask again for what is unclear and some that is clear."""
        stop = Path(self.job.stop)
        while time.monotonic() < until and not stop.exists():
            self.step()
        some = self.chance.sample(self.done, min(len(self.done), _REPLAYS))
        for request in (*self.unclear, *some):
            for _ in range(_ASKED_AGAIN):
                if self.ask(request) not in ("unknown", "not_charged"):
                    break

    def step(self) -> None:
        """One request, or a hold and its end."""
        self.count += 1
        organization, user = self.chance.choice(self.job.people)
        request = Request(
            f"{self.name}-{self.count}",
            "charge",
            organization,
            user,
            self.chance.choice(FEATURES),
            self.chance.choice((1, 1, 1, 2, 3)),
            key=str(uuid4()),
        )
        kind = self.chance.choices(
            ("charge", "unkeyed", "hold", "refund", "grant", "again"), (40, 10, 27, 10, 5, 8)
        )[0]
        if kind == "charge":
            self.ask(request)
        elif kind == "unkeyed":
            self.ask(replace(request, key=None))
        elif kind == "hold":
            self.ask(replace(request, verb="hold"))
        elif kind == "grant":
            self.ask(replace(request, verb="grant", units=self.chance.randint(1, 50)))
        elif kind == "refund" and self.charged:
            charge, usage = self.charged.pop(self.chance.randrange(len(self.charged)))
            self.ask(
                replace(request, verb="refund", organization=charge.organization, subject=usage)
            )
        elif kind == "again" and self.done:
            self.ask(self.chance.choice(self.done))

    def ask(self, request: Request) -> str:
        """Ask, and note what was told."""
        self.note(request, "asked")
        began = time.monotonic()
        told, why, answer = self.once(request)
        if self.job.new_keys:
            for _ in range(_ASKED_AGAIN):
                if told not in ("unknown", "not_charged"):
                    break
                time.sleep(0.05)
                told, why, answer = self.once(replace(request, key=str(uuid4())))
        self.note(
            request, told, seconds=round(time.monotonic() - began, 3), why=why, **_facts(answer)
        )
        if told == "ok":
            self.follow(request, answer)
        elif told == "unknown" and request.key is not None and request.verb != "hold":
            self.unclear.append(request)
        if isinstance(answer, Reservation):
            self.end(request, answer)
        return told

    def once(self, request: Request) -> tuple[str, str, Answer]:
        """What was told, why, and the answer."""
        try:
            return "ok", "", self.call(request)
        except DatabaseUnavailable as error:
            return error.outcome, str(error), None
        except TokenlibError as error:
            return "refused", error.code, None

    def call(self, request: Request) -> Answer:
        """The verb itself."""
        tokens, subject = self.tokens, request.subject
        metadata = {"request": request.name}
        match request.verb, subject:
            case "charge", None:
                return tokens.deduct_tokens(
                    request.organization,
                    request.user,
                    request.feature,
                    request.units,
                    metadata,
                    request.key,
                )
            case "hold", None:
                return tokens.reserve(
                    request.organization,
                    request.user,
                    request.feature,
                    request.units,
                    metadata,
                    request.key,
                    hold_for=timedelta(hours=1),
                )
            case "grant", None:
                return tokens.grant(
                    request.organization,
                    "goal_generation",
                    request.units,
                    reason=request.name,
                    idempotency_key=request.key,
                )
            case "refund", str():
                return tokens.refund(
                    subject,
                    request.name,
                    organization=request.organization,
                    idempotency_key=request.key,
                )
            case "deduct", Reservation():
                return tokens.deduct(subject)
            case "release", Reservation():
                tokens.release(subject, request.name)
                return None
        raise ValueError(request)

    def follow(self, request: Request, answer: Answer) -> None:
        """Keep in mind what can be asked again or refunded."""
        if request.key is None or request.verb == "hold" or request.name in self.names:
            return
        self.names.add(request.name)
        self.done.append(request)
        if isinstance(answer, Usage) and request.verb in ("charge", "deduct"):
            self.charged.append((request, str(answer.id)))

    def end(self, request: Request, held: Reservation) -> None:
        """Charge a hold, give it back, or forget it, as a caller that crashed does."""
        verb = self.chance.choices(("deduct", "release", "forget"), (7, 2, 1))[0]
        if verb != "forget":
            name = f"{request.name}-{verb}"
            self.ask(replace(request, name=name, verb=verb, subject=held, key=str(held.id)))

    def note(self, request: Request, told: str, **facts: object) -> None:
        """One line of the file."""
        subject = request.subject
        if isinstance(subject, Reservation):
            subject = str(subject.id)
        line = {
            "request": request.name,
            "verb": request.verb,
            "keyed": request.key is not None,
            "subject": subject,
            "told": told,
            **facts,
        }
        os.write(self.file, (json.dumps(line) + "\n").encode())


def _facts(answer: Answer) -> dict[str, object]:
    if answer is None:
        return {}
    if isinstance(answer, Usage):
        facts = {"tokens": answer.tokens_deducted, "balance": answer.remaining_balance}
    elif isinstance(answer, Grant):
        facts = {"tokens": answer.amount, "balance": answer.balance}
    else:
        facts = {"tokens": answer.tokens, "balance": answer.remaining_balance}
    replayed = not isinstance(answer, Reservation) and answer.replayed
    booked = isinstance(answer, Grant) or answer.booked
    return {"id": str(answer.id), "replayed": replayed, "booked": booked, **facts}


def _hog(tokens: Tokens, until: float, stop: Path) -> None:
    """Keep a connection for longer than the others wait for one, again and again."""
    while time.monotonic() < until and not stop.exists():
        try:
            with tokens.database.transaction() as connection:
                connection.exec_driver_sql("select pg_sleep(2.5)")
        except DatabaseUnavailable:
            continue
        time.sleep(1)


def write(job: Job, path: Path) -> None:
    """The file that a client process reads."""
    path.write_text(json.dumps(asdict(job)))


def _gate(job: Job, retry: Retry) -> Tokens | HttpClient:
    if job.api_key is None:
        return Tokens(Database(job.url, pool_size=job.pool_size, retry=retry), job.override)
    client = HttpClient(job.url, job.api_key, deadline=job.deadline)
    if job.new_keys:
        client._retry = retry
    return client


def main(path: str) -> None:
    """Run the job of this file."""
    job = Job(**json.loads(Path(path).read_text()))
    retry = ONCE if job.new_keys else Retry(job.deadline)
    retry = replace(retry, deadline=job.deadline)
    until = time.monotonic() + job.seconds
    with ExitStack() as held:
        tokens = _gate(job, retry)
        held.callback(tokens.close)
        threads = [
            threading.Thread(target=Client(job, number, tokens).run, args=(until,))
            for number in range(job.threads)
        ]
        threads += [
            threading.Thread(target=_hog, args=(tokens, until, Path(job.stop)))
            for _ in range(job.hogs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
