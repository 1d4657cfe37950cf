"""Every question at ten million log rows, beside plain SQL and beside itself at 100,000 rows.

Two servers run side by side, with the same organizations and users, and are asked in turns. An
answer and its plain SQL have to be the same, to the row.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import psycopg
from psycopg.errors import QueryCanceled

from tests.benchmarks import machine
from tests.benchmarks.asked import QUESTIONS, About, Question, timeless
from tests.benchmarks.loaded import loaded
from tests.benchmarks.measure import Target
from tests.benchmarks.verify import LARGE, SMALL
from tokenlib import connect, demo
from tokenlib.config import Settings
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.errors import DatabaseUnavailable
from tokenlib.reports import Reports, Viewer
from tokenlib.tokens import EMBEDDED_DATABASE, Tokens

CALLS, AT_LEAST, SECONDS = 20, 3, 3.0
PLAIN_CALLS = 2
MILLISECONDS, SHARE_OF_PLAIN, OF_ITSELF = 100, 20, 1.5
NEVER = 1e9
"""What stands for a ratio to a question that is broken off."""
_ABOUT = """
with recent as (
    select organization_id, user_id, created_at from ai_token_usage_log
    order by created_at desc limit 10000
), sized as (
    select organization_id, count(*) as charges from recent group by 1
)
select tokenlib.clock(), -- not the end of a log of yesterday: pages ask about now
    (select organization_id from sized order by charges desc, 1 limit 1),
    (select organization_id from sized order by charges, 1 limit 1),
    (select user_id from recent where organization_id = (
        select organization_id from sized order by charges desc, 1 limit 1)
     group by 1 order by count(*) desc, 1 limit 1)
"""


class Plain(Reports):
    """The same questions, answered from the log alone."""

    @property
    def _closed(self) -> str:
        return ""


@dataclass
class Database:
    """One of the two databases, and how to ask it."""

    tokens: Tokens
    owner: psycopg.Connection[Any]
    about: About
    times: dict[str, list[float]] = field(default_factory=dict)

    def ask(self, question: Question, kind: type[Reports] = Reports) -> tuple[float, Any]:
        """Milliseconds and answer, as an admin."""
        admin = Viewer(demo.PERSONAS["admin"].user_id, "tokenlib_reader")
        reports = kind(self.tokens.database, admin)
        return _timed(lambda: question.ask(reports, self.about))

    def plain(self, question: Question) -> tuple[float, Any]:
        """The same by the operators' own SQL, as the owner; else from the log alone."""
        if not question.plain:
            return self.ask(question, Plain)
        parameters = self.about.parameters(question.days)
        statement = question.plain.encode()
        return _timed(lambda: self.owner.execute(statement, parameters).fetchall())


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said about this part."""
    parser.add_argument("--rows", type=int, default=LARGE)
    parser.add_argument("--only", help="questions whose name has this in it")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; the figures, with the targets under `targets`."""
    with ExitStack() as held:
        small, large = (_opened(rows, held) for rows in (SMALL, options.rows))
        about = machine.about(machine.home(), large.owner)
        print(machine.lines(about))
        print(
            f"{'milliseconds':44}{'p95':>8}{'median':>8}{'plain':>9}{'of plain':>10}"
            f"{'small':>8}{'of small':>10}"
        )
        found, targets = {}, []
        for question in QUESTIONS:
            if options.only and options.only not in question.name:
                continue
            row = _measured(question, small, large)
            found[question.name] = row
            fast = row["p95"] <= MILLISECONDS or row["p95"] * SHARE_OF_PLAIN <= row["plain"]
            itself = row["of_small"] <= OF_ITSELF
            targets += [
                Target(f"{question.name}: slower than it may be", float(not fast), most=0),
                Target(f"{question.name}: to itself when small", row["of_small"], most=OF_ITSELF),
                Target(f"{question.name}: differs from plain SQL", float(row["wrong"]), most=0),
            ]
            marks = ("" if fast else " SLOW") + ("" if itself else " GROWS")
            print(
                f"{question.name:44}{row['p95']:>8.1f}{row['median']:>8.1f}{row['plain']:>9.1f}"
                f"{row['p95'] / row['plain']:>10.3f}{row['small']:>8.1f}{row['of_small']:>10.2f}"
                f"{marks}{' WRONG' if row['wrong'] else ''}",
                flush=True,
            )
    met = sum(target.met for target in targets)
    print(f"\n{met} of {len(targets)} targets met.")
    return {**about, "questions": found, "targets": [target.figures() for target in targets]}


def _opened(rows: int, held: ExitStack) -> Database:
    folder, _ = loaded(rows)
    tokens = held.enter_context(connect(settings=Settings(data_dir=folder / "data")))
    conninfo = Embedded(folder / "data").conninfo(EMBEDDED_DATABASE, SUPERUSER)
    owner = held.enter_context(psycopg.connect(conninfo, autocommit=True))
    owner.execute("set timezone = 'UTC'")
    start = time.monotonic()
    tokens.close_usage()  # finds what is over, and the next one closes it
    closed_to = tokens.close_usage()
    print(f"{rows:,} rows: closed up to {closed_to} in {time.monotonic() - start:.1f} s.")
    [row] = owner.execute(_ABOUT).fetchall()
    return Database(tokens, owner, About(*row))


def _measured(question: Question, small: Database, large: Database) -> dict[str, Any]:
    """Ask in turns, a first time each that does not count."""
    first, answer = large.ask(question)
    if answer is None:
        return _broken_off(first)
    small.ask(question)
    times: dict[str, list[float]] = {"large": [], "small": []}
    wrong = True
    began = time.monotonic()
    while len(times["large"]) < CALLS:
        if len(times["large"]) >= AT_LEAST and time.monotonic() - began > SECONDS:
            break
        times["large"].append(large.ask(question)[0])
        times["small"].append(small.ask(question)[0])
    plain = [large.plain(question)[0] for _ in range(PLAIN_CALLS - 1)]
    for _ in range(PLAIN_CALLS):  # what speaks of now may change between two answers
        answer, (milliseconds, said) = large.ask(question)[1], large.plain(question)
        plain.append(milliseconds)
        same = question.same(answer) if question.same else timeless(answer)
        if not question.plain:
            said = timeless(said)
        wrong = said is not None and same != said
        if not wrong:
            break
        print(f"{question.name}:\n  {str(same)[:300]}\n  {str(said)[:300]}", file=sys.stderr)
    return {
        "p95": quantiles(times["large"], n=20, method="inclusive")[18],
        "median": median(times["large"]),
        "plain": median(plain),
        "small": median(times["small"]),
        "of_small": median(times["large"]) / median(times["small"]),
        "calls": len(times["large"]),
        "wrong": wrong,
    }


def _broken_off(milliseconds: float) -> dict[str, Any]:
    """The figures of a question that the server does not answer in time."""
    said = dict.fromkeys(("p95", "median", "plain"), milliseconds)
    return {**said, "small": 0.0, "of_small": NEVER, "calls": 1, "wrong": True}


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds and answer; an answer that the server breaks off is none."""
    start = time.perf_counter()
    try:
        answer = call()
    except (DatabaseUnavailable, QueryCanceled):
        answer = None
    return (time.perf_counter() - start) * 1000, answer
