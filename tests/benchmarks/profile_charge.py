"""Where the time of a charge goes: `python -m tests.benchmarks.profile_charge`.

One caller on a server whose disk is memory, so that no flush is in the figures. Each row is a
median of microseconds; those of one table are taken in turns. What the figures say stands in
docs/performance.md.
"""

from __future__ import annotations

import random
import timeit
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median
from time import perf_counter_ns
from typing import Any
from uuid import UUID, uuid4

import psycopg

from tests.benchmarks.baselines import baselines
from tests.benchmarks.wallets import FEATURE, World, prepare
from tokenlib import answers, embedded, inputs, migrations
from tokenlib.db import Database, statements
from tokenlib.tokens import Tokens

NAME = "profile"
CALLS, ROUNDS = 50, 40
LOOPS = 20_000
WARM = 20
"""Calls that fill caches and prepare statements."""

# On the server, inside one transaction: what a part costs when nothing else is cold.
PARTS = {
    "hash of the entry": (
        "tokenlib.charge_hash('\\x', 1::smallint, '{id}', '{id}', 'general', 1, '{id}',"
        " 'generate_insight', 1, 1, 0, 1, null, 0, 0, '{id}', '\\x', null, clock_timestamp())"
    ),
    "hash of the request": "tokenlib.request_hash('{id}', 'generate_insight', i, null)",
    "an id (gen_random_uuid)": "gen_random_uuid()",
    "the clock": "tokenlib.clock()",
}
_LOOP = """
do $$ declare x text; begin for i in 1..{loops} loop x := {part}; end loop; end $$
"""


def main() -> None:
    """Measure and print."""
    with ExitStack() as held:
        server = held.enter_context(embedded.temporary())
        migrations.create_roles(server.url("postgres", "postgres"))
        migrations.create_database(server.url("postgres", "postgres"), NAME)
        migrations.upgrade(server.url(NAME, "tokenlib_owner"))
        owner = held.enter_context(
            psycopg.connect(server.conninfo(NAME, embedded.SUPERUSER), autocommit=True)
        )
        world = prepare(owner)
        tokens = held.enter_context(Tokens(Database(server.url(NAME, "tokenlib_service"))))
        for organization, user in world.spread:
            tokens.initialize_tokens(organization)
            tokens.deduct_tokens(organization, user, FEATURE, idempotency_key=str(uuid4()))
        owner.execute("vacuum analyze")
        others = held.enter_context(baselines(server, world.organizations))
        driver = held.enter_context(
            psycopg.connect(server.conninfo(NAME, "tokenlib_service"), autocommit=True)
        )
        choose = world.anyone(1)
        in_turns(
            "One charge",
            {
                "floor: one statement, no key, no hash": others.floor(choose),
                "tokenlib.deduct, through psycopg": charged(driver, world, key=False, limits=False),
                "… with a key": charged(driver, world, key=True, limits=False),
                "… with a key and limits": charged(driver, world, key=True, limits=True),
                "the library, the same": lambda: tokens.deduct_tokens(
                    *choose(), FEATURE, idempotency_key=str(uuid4()), limits=True
                ),
            },
        )
        in_turns(
            "One check",
            {
                "a bare SELECT": others.floor_check(choose),
                "the library": lambda: tokens.has_enough_tokens(choose()[0], FEATURE),
            },
        )
        print("Parts on the server")
        for what, part in PARTS.items():
            loop = _LOOP.format(loops=LOOPS, part=part.format(id=UUID(int=0)))
            best = min(timeit.repeat(partial(owner.execute, loop.encode()), number=1, repeat=5))
            line(what, best / LOOPS * 1e6)
        print("\nParts of the library")
        for what, made in library(tokens).items():
            line(what, min(timeit.repeat(made, number=2000, repeat=9)) / 2000 * 1e6)


def charged(
    driver: psycopg.Connection, world: World, *, key: bool, limits: bool
) -> Callable[[], object]:
    """A charge without the library, on a kept cursor."""
    cursor, choose = driver.cursor(), world.anyone(2)

    def charge() -> object:
        organization, user = choose()
        asked = {
            "organization_id": organization,
            "user_id": user,
            "feature": FEATURE,
            "units": 1,
            "metadata": None,
            "key": str(uuid4()) if key else None,
            "limits": limits,
            "mode": None,
        }
        return cursor.execute(statements("gate")["deduct"], asked, prepare=True).fetchone()

    return charge


def library(tokens: Tokens) -> dict[str, Callable[[], object]]:
    """What it does around the driver, without going to the server."""
    engine, retry = tokens.database._engine, tokens.database.retry
    ours = tokens.database._borrow
    row: dict[str, Any] = {
        "id": 1,
        "organization_id": 1,
        "user_id": 1,
        "feature": FEATURE,
        "token_type": FEATURE,
    }
    row |= {"tokens": 1, "waived": 0, "balance": 1, "created_at": 1, "replayed": False}
    metadata = {"note": "about as much as a caller says"}
    return {
        "a connection from SQLAlchemy's pool, and back": lambda: engine.raw_connection().close(),
        "a connection borrowed, and back": lambda: ours()[1](),
        "the loop that asks again": lambda: retry.run(lambda _patience: 1, repeatable=True),
        "checks of what was handed in": lambda: tokens.charge_request(
            UUID(int=1), UUID(int=2), FEATURE, idempotency_key="key", limits=True
        ),
        "metadata as JSON": lambda: inputs.metadata(metadata),
        "the answer as a dataclass": lambda: answers.usage(row),
        "a key (uuid4 and str)": lambda: str(uuid4()),
    }


def in_turns(title: str, sides: dict[str, Callable[[], object]]) -> None:
    """Medians of calls that alternate, so that what else the machine does hits all of them."""
    for call in sides.values():
        for _ in range(WARM):
            call()
    taken: dict[str, list[float]] = {what: [] for what in sides}
    for _ in range(ROUNDS):
        for what in random.sample(list(sides), len(sides)):
            call = sides[what]
            for _ in range(CALLS):
                start = perf_counter_ns()
                call()
                taken[what].append((perf_counter_ns() - start) / 1000)
    print(title)
    for what, times in taken.items():
        line(what, median(times))
    print()


def line(what: str, microseconds: float) -> None:
    print(f"  {what:<48} {microseconds:8.1f}")


if __name__ == "__main__":
    main()
