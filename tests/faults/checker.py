"""What the clients were told against what the books hold.

Nothing acknowledged is lost, nothing is booked twice or against a no, a replay gets the first
answer, no hold leaks, and the books close.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tokenlib import Tokens
from tokenlib.testing import TestClock

Row = dict[str, Any]


@dataclass
class Findings:
    """What was told, how often, and every contradiction: kind and detail."""

    told: Counter[str] = field(default_factory=Counter)
    replays: int = 0
    longest: float = 0.0  # seconds, of one call with all its attempts
    whys: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def kinds(self) -> Counter[str]:
        """How many problems of each kind."""
        return Counter(kind for kind, _ in self.problems)


def check(acks: Path, tokens: Tokens, owner: psycopg.Connection[Any], clock: TestClock) -> Findings:
    """Read the files of all clients and the books; the server is well and nobody is at work."""
    found = Findings()
    requests: dict[str, list[Row]] = defaultdict(list)
    for path in sorted(acks.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            telling = json.loads(line)
            requests[telling["request"]].append(telling)
    books = Books(owner)
    for name, tellings in requests.items():
        _count(tellings, found)
        _compare(name, tellings, books.booked(tellings[0]), found)
    for name in books.by_request.keys() - requests.keys():
        found.problems.append(("nobody asked", name))
    _holds_end(tokens, owner, clock, found)
    for problem in tokens.verify().problems:
        found.problems.append((problem.kind, f"{problem.entry}: {problem.detail}"))
    return found


class Books:
    """The entries as the tables have them, by the request that they were made for."""

    def __init__(self, owner: psycopg.Connection[Any]) -> None:
        self.by_request: dict[str, list[Row]] = defaultdict(list)
        self.charge_of: dict[str, list[Row]] = defaultdict(list)
        self.refund_of: dict[str, list[Row]] = defaultdict(list)
        self.state: dict[str, str] = {}
        with owner.cursor(row_factory=dict_row) as cursor:
            # A charge of a hold carries the hold's metadata: it is found by its reservation.
            for row in cursor.execute(
                "select id::text, tokens_deducted as tokens, remaining_balance as balance,"
                " metadata ->> 'request' as request, reservation_id::text as hold"
                " from ai_token_usage_log"
            ):
                if row["hold"] is None:
                    self.by_request[row["request"]].append(row)
                else:
                    self.charge_of[row["hold"]].append(row)
            for row in cursor.execute(
                "select r.id::text, r.tokens, e.balance_after as balance, r.state,"
                " r.metadata ->> 'request' as request from ai_token_reservations r"
                " join ai_token_events e on e.organization_id = r.organization_id"
                " and e.kind = 'reserve' and e.subject_id = r.id"
            ):
                self.by_request[row["request"]].append(row)
                self.state[row["id"]] = row["state"]
            for row in cursor.execute(
                "select subject_id::text as id, balance_change as tokens,"
                # The API adds the key to the reason.
                " balance_after as balance, split_part(reason, ' (API key', 1) as request, kind"
                " from ai_token_events"
                " where kind = 'refund' or kind = 'grant' and reason is not null"
            ):
                if row["kind"] == "refund":
                    self.refund_of[row["id"]].append(row)
                else:
                    self.by_request[row["request"]].append(row)

    def booked(self, asked: Row) -> list[Row]:
        """What the books hold of a request."""
        match asked["verb"]:
            case "deduct":
                return self.charge_of.get(asked["subject"], [])
            case "refund":
                return self.refund_of.get(asked["subject"], [])
            case "release":
                return [{"id": None}] if self.state.get(asked["subject"]) == "released" else []
        return self.by_request.get(asked["request"], [])


def _count(tellings: list[Row], found: Findings) -> None:
    for telling in tellings:
        if telling["told"] == "asked":
            continue
        found.told[telling["told"]] += 1
        found.replays += bool(telling.get("replayed"))
        found.longest = max(found.longest, telling["seconds"])
        if telling["told"] != "ok":
            found.whys[telling["why"]] += 1


def _compare(name: str, tellings: list[Row], booked: list[Row], found: Findings) -> None:
    told = [each for each in tellings if each["told"] != "asked"]
    answers = [each for each in told if each["told"] == "ok"]
    if len(booked) > 1:
        found.problems.append(("booked twice", f"{name}: {len(booked)} times"))
    for answer in answers:
        facts = {key: answer[key] for key in ("id", "tokens", "balance") if key in answer}
        if not any(facts.items() <= {**row}.items() for row in booked):
            found.problems.append(("lost", f"{name}: told {facts}, the books have {booked}"))
        elif any(answer[key] != answers[0][key] for key in facts):
            found.problems.append(("another answer", f"{name}: {facts}, first {answers[0]}"))
    # The last word counts: what was unclear may have been asked again since.
    if booked and not answers and told and told[-1]["told"] in ("not_charged", "refused"):
        unclear = any(each["told"] == "unknown" for each in told)
        settled = told[-1]["told"] == "refused" and told[-1]["why"] != "already_refunded"
        if settled or not unclear:
            found.problems.append(("booked against a no", f"{name}: {told[-1]}"))


def _holds_end(
    tokens: Tokens, owner: psycopg.Connection[Any], clock: TestClock, found: Findings
) -> None:
    clock.advance(timedelta(days=1))
    tokens.refresh_tokens()
    for column, table, rule in (
        ("reserved", "ai_tokens", "reserved <> 0"),
        ("id", "ai_token_reservations", "state = 'held'"),
    ):
        for (left,) in owner.execute(f"select {column} from {table} where {rule}").fetchall():  # noqa: S608
            found.problems.append(("a hold leaks", f"{table}: {left}"))
