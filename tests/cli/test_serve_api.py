"""serve --api-only: real processes on a real port, which end when they are told and not before."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import psutil
import pytest

from tests.cli.shell import DELAYED_SECONDS, Shell, free_port
from tokenlib.testing import TestDatabase
from tokenlib.tokens import Tokens

CHECKOUT = Path(__file__).parents[2]
PEPPER = "a pepper of the tests, which nobody has but the tests themselves"


class Served:
    """A running `tokenlib serve --api-only`, and a key for it."""

    def __init__(self, database: TestDatabase, folder: Path, workers: int) -> None:
        self.port = free_port()
        self.errors = (folder / "errors.log").open("w+")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TOKENLIB_")}
        words = ["serve", "--api-only", "--workers", str(workers), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tokenlib", *words, "--json"],
            cwd=CHECKOUT,
            env={
                **inherited,
                "TOKENLIB_DATABASE_URL": database.url(),
                "TOKENLIB_KEY_PEPPER": PEPPER,
            },
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.said()
        self.url = f"{json.loads(line)['url']}/api/v1"
        self.family = [
            self.process.pid,
            *(child.pid for child in psutil.Process(self.process.pid).children(recursive=True)),
        ]

    def said(self) -> str:
        """What it has written to stderr."""
        self.errors.seek(0)
        return self.errors.read()

    def left(self) -> list[psutil.Process]:
        """Which of its processes are there still, after a while."""
        known = [psutil.Process(pid) for pid in self.family if psutil.pid_exists(pid)]
        return psutil.wait_procs(known, timeout=60)[1]

    def end(self) -> int:
        """Tell it to stop, and wait for it."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def serve(token_database: TestDatabase, tmp_path: Path) -> Iterator[Callable[[int], Served]]:
    started: list[Served] = []

    def serve(workers: int) -> Served:
        started.append(Served(token_database, tmp_path, workers))
        return started[-1]

    yield serve
    for served in started:
        with suppress(ProcessLookupError):
            os.killpg(served.process.pid, signal.SIGKILL)
        served.process.communicate()
        served.errors.close()


@pytest.fixture
def place(tokens: Tokens, token_database: TestDatabase) -> tuple[UUID, UUID, dict[str, str]]:
    """An organization, its member, and the header of a key."""
    tokens.pepper = PEPPER
    admin = uuid4()
    with token_database.connect() as owner:
        owner.execute(
            "insert into tokenlib_staff (user_id, email, full_name, role)"
            " values (%s, 'admin@example.org', 'An admin', 'admin')",
            (admin,),
        )
    organization = tokens.create_organization("Acme", "enterprise")
    user = tokens.add_member(organization, "A member", "member@example.org")
    key = tokens.staff_create_key(admin, "Key", ["spend", "read"], reason="a test")
    return organization, user, {"Authorization": f"Bearer {key.secret}"}


def charge(url: str, place: tuple[UUID, UUID, dict[str, str]], key: str) -> httpx2.Response:
    organization, user, who = place
    return httpx2.post(
        f"{url}/organizations/{organization}/charges",
        headers=who | {"Idempotency-Key": key},
        json={"feature": "generate_insight", "userId": str(user)},
        timeout=60,
    )


def test_several_processes_serve_one_port(
    serve: Callable[[int], Served], place: Any, tokens: Tokens
) -> None:
    served = serve(2)
    assert len(served.family) >= 3
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda n: charge(served.url, place, f"k{n % 20}"), range(60)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert tokens.get_token_balance(place[0], "general").balance == 480
    base = served.url.removesuffix("/api/v1")
    for path in ("/", "/nothing", "/api", "/_stcore/health"):
        answer = httpx2.get(f"{base}{path}", timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (404, "no_such_path"), path
    assert served.end() == 0
    assert not served.left()
    lines = [json.loads(line) for line in served.said().splitlines()]
    requests = [line for line in lines if line.get("event") == "request"]
    charges = [line for line in requests if line["method"] == "POST"]
    assert len(charges) == 60
    assert all(len(line["requestId"]) == 32 for line in requests)
    assert {line["route"] for line in charges} == {"/v1/organizations/{organizationId}/charges"}
    assert place[2]["Authorization"].removeprefix("Bearer ") not in served.said()


@pytest.mark.timeout(200)
def test_killed_processes_and_retries_charge_each_request_once(
    serve: Callable[[int], Served], place: Any, token_database: TestDatabase, tokens: Tokens
) -> None:
    """Callers ask again with the same key until they are told; the books hold what they heard."""
    served = serve(2)
    told: dict[str, str] = {}
    lost = threading.Semaphore(0)

    def spend(caller: int) -> None:
        for number in range(25):
            name, pause = f"{caller} {number}", threading.Event()
            for attempt in range(400):
                try:
                    answer = charge(served.url, place, name)
                except httpx2.TransportError:
                    lost.release()
                else:
                    if answer.status_code == 201:
                        told[name] = answer.json()["id"]
                        break
                    assert answer.status_code in (409, 503), answer.text
                pause.wait(min(0.02 * (attempt + 1), 0.5))

    def workers() -> list[psutil.Process]:
        found = []
        for child in psutil.Process(served.process.pid).children():
            with suppress(psutil.Error):  # it may have ended by now
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    callers = [threading.Thread(target=spend, args=(caller,)) for caller in range(4)]
    for caller in callers:
        caller.start()
    waiting = (
        "select count(*) from pg_stat_activity where datname = %s and wait_event_type = 'Lock'"
    )
    with token_database.connect() as other, token_database.connect("postgres") as watch:
        for _ in range(3):
            # Once somebody waits for the wallet, nobody is left to tell them what came of it.
            with other.transaction():
                other.execute("select from ai_tokens for update")
                deadline = time.monotonic() + 60
                while watch.execute(waiting, (token_database.name,)).fetchone() == (0,):
                    assert time.monotonic() < deadline
                for worker in workers():
                    worker.kill()
    for caller in callers:
        caller.join(150)
    assert lost.acquire(blocking=False), "nobody noticed the kills"
    assert len(told) == 100
    with token_database.connect() as owner:
        booked = owner.execute(
            "select idempotency_key, id::text from ai_token_usage_log"
        ).fetchall()
    assert dict(booked) == told
    assert tokens.get_token_balance(place[0], "general").balance == 400
    assert tokens.verify().closed


@pytest.mark.parametrize("workers", [1, 2])
def test_what_runs_is_answered_before_it_stops(
    serve: Callable[[int], Served], place: Any, token_database: TestDatabase, workers: int
) -> None:
    served = serve(workers)
    answers: list[httpx2.Response] = []
    caller = threading.Thread(target=lambda: answers.append(charge(served.url, place, "slow")))
    waiting = (
        "select count(*) from pg_stat_activity where datname = %s and wait_event_type = 'Lock'"
    )
    with token_database.connect() as other, token_database.connect("postgres") as watch:
        with other.transaction():
            other.execute("select from ai_tokens for update")
            caller.start()
            deadline = time.monotonic() + 30
            while watch.execute(waiting, (token_database.name,)).fetchone() != (1,):
                assert time.monotonic() < deadline
            served.process.send_signal(signal.SIGTERM)
            while '"Shutting down"' not in served.said():
                assert time.monotonic() < deadline
        caller.join(60)
    assert served.process.wait(60) == 0
    assert [answer.status_code for answer in answers] == [201]
    assert "Traceback" not in served.said()


def test_no_answer_waits_for_the_network(serve: Callable[[int], Served]) -> None:
    """Without TCP_NODELAY each answer on a shared socket takes 40 ms more, the quickest too."""
    served = serve(2)
    with httpx2.Client(base_url=served.url) as client:
        times: list[float] = []
        while len(times) < 2 or min(times[1:]) >= DELAYED_SECONDS:
            assert len(times) < 300
            began = time.monotonic()
            client.get("/health")
            times.append(time.monotonic() - began)


def test_a_parent_that_is_killed_leaves_nobody_behind(serve: Callable[[int], Served]) -> None:
    served = serve(2)
    os.kill(served.process.pid, signal.SIGKILL)
    served.process.wait(30)
    assert not served.left()


def test_a_head_that_does_not_end_is_not_waited_for(
    serve: Callable[[int], Served],
) -> None:
    served = serve(1)
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as caller:
        caller.sendall(b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        began = time.monotonic()
        assert caller.recv(1000).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < 20
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as caller:
        head = b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\nX-Large: "
        caller.sendall(head + b"a" * 20_000)
        assert caller.recv(1000).startswith(b"HTTP/1.1 400")
    # A connection that is kept alive is not cut while it asks properly.
    with httpx2.Client(base_url=served.url) as client:
        assert [client.get("/health").status_code for _ in range(3)] == [200] * 3


def test_the_console_is_one_process(token_database: TestDatabase) -> None:
    shell = Shell({"TOKENLIB_DATABASE_URL": token_database.url()})
    said = shell("serve", "--workers", 2, exit_code=2)
    assert "--workers goes with --api-only" in said.stderr


def test_settings_that_cannot_be_meant_end_with_3(token_database: TestDatabase) -> None:
    shell = Shell(
        {
            "TOKENLIB_DATABASE_URL": token_database.url(),
            "TOKENLIB_JWT_SECRET": "s" * 32,
            "TOKENLIB_JWT_JWKS_URL": "https://id.example.org/jwks.json",
        }
    )
    assert "one issuer signs in one way" in shell.error("serve", "--api-only", exit_code=3)
