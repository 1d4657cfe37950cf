"""A time is closed only when no transaction that could still write into it is open."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.db.conftest import Person
from tokenlib import Tokens
from tokenlib.db import statements
from tokenlib.errors import InsufficientTokens, UnknownFeature
from tokenlib.testing import TestClock, TestDatabase

STEP = timedelta(minutes=5)
CHARGE = "select * from tokenlib.deduct(%s, %s, 'generate_insight', 1, null, null, false, null)"

TOO_MUCH = "select * from tokenlib.deduct(%s, %s, 'generate_goal', 999, null, null, false, null)"


def charge(connection: psycopg.Connection, person: Person) -> UUID:
    row = connection.execute(CHARGE, person).fetchone()
    assert row is not None
    assert row[0] == "ok"
    return UUID(str(row[1]))


def uses(tokens: Tokens, clock: TestClock) -> tuple[int, int]:
    """From the rollups and the edges, and from the log alone."""
    now = clock.now() + timedelta(seconds=1)
    since = now - timedelta(days=1)
    rows = tokens.database.rows(
        "select (select coalesce(sum(uses), 0)"
        " from tokenlib.usage_between(%(since)s, %(now)s, null)) as rollups,"
        " (select count(*) from ai_token_usage_log"
        " where created_at >= %(since)s and created_at < %(now)s) as log",
        {"since": since, "now": now},
    )
    return rows[0]["rollups"], rows[0]["log"]


def test_an_hour_stays_open_while_a_charge_of_it_is_not_committed(
    token_database: TestDatabase,
    token_clock: TestClock,
    tokens: Tokens,
    noon: object,
    pro: Person,
    owner: psycopg.Connection,
) -> None:
    tokens.close_usage()
    token_clock.advance(timedelta(minutes=2))
    with token_database.connect() as late, late.transaction():
        charge(late, pro)  # its clock stands before the step's end; its commit will not
        token_clock.advance(2 * STEP)
        closed = [tokens.close_usage() for _ in range(3)]
        assert max(one for one in closed if one) <= token_clock.now() - 2 * STEP
        assert uses(tokens, token_clock) == (0, 0)
    assert uses(tokens, token_clock) == (1, 1)
    assert tokens.close_usage() == token_clock.now() - timedelta(minutes=2)
    assert uses(tokens, token_clock) == (1, 1)


def test_a_charge_with_the_newest_transaction_id_is_waited_for(
    token_database: TestDatabase,
    token_clock: TestClock,
    tokens: Tokens,
    noon: object,
    pro: Person,
) -> None:
    """Which no snapshot knows of: nothing that began after it is over."""
    tokens.close_usage()
    with token_database.connect() as ahead, token_database.connect() as late:
        with late.transaction():
            with ahead.transaction():
                ahead.execute(
                    "update tokenlib.test_clock set stopped_at = stopped_at + %s", (2 * STEP,)
                )
                charge(late, pro)
            closed = [tokens.close_usage() for _ in range(3)]
            assert max(one for one in closed if one) <= token_clock.now() - 2 * STEP
        assert uses(tokens, token_clock) == (1, 1)
    assert tokens.close_usage() == token_clock.now() - STEP
    assert uses(tokens, token_clock) == (1, 1)


def test_closing_by_the_clock_alone_would_lose_the_late_charge(
    token_database: TestDatabase,
    token_clock: TestClock,
    tokens: Tokens,
    noon: object,
    pro: Person,
    owner: psycopg.Connection,
) -> None:
    """The test above with the guard taken out: it is the guard that keeps the figures right."""
    naive(owner)
    tokens.close_usage()
    token_clock.advance(timedelta(minutes=2))
    with token_database.connect() as late, late.transaction():
        charge(late, pro)
        token_clock.advance(2 * STEP)
        for _ in range(3):
            tokens.close_usage()
    assert uses(tokens, token_clock) == (0, 1)


def naive(owner: psycopg.Connection) -> None:
    """Let the closing ask the clock alone."""
    row = owner.execute("select pg_get_functiondef('tokenlib.close_usage'::regproc)").fetchone()
    assert row is not None
    guard = "pg_snapshot_xmin(pg_current_snapshot()) >= c.next_xid"
    assert guard in row[0]
    owner.execute(row[0].replace(guard, "c.next_xid is not null").encode())


def test_a_charge_has_its_transaction_id_before_it_reads_the_clock(
    token_database: TestDatabase, tokens: Tokens, pro: Person
) -> None:
    """What the closing stands on: else a charge could be dated before an end that it follows."""
    tokens.deduct_tokens(*pro, "generate_insight")
    with token_database.connect("postgres") as root:
        root.execute(
            "create or replace function tokenlib.clock() returns timestamptz language plpgsql"
            " volatile set search_path = pg_catalog, pg_temp as $$ begin"
            " if pg_current_xact_id_if_assigned() is null then raise exception 'no id yet'; end if;"
            " return clock_timestamp(); end $$"
        )
    tokens.deduct_tokens(*pro, "generate_insight")
    reservation = tokens.reserve(*pro, "generate_goal")
    usage = tokens.deduct(reservation)
    tokens.refund(usage, "a drill")
    tokens.deduct_tokens(*pro, "generate_insight", idempotency_key="a key")
    # Refusals are closed by the same.
    with pytest.raises(InsufficientTokens):
        tokens.deduct_tokens(*pro, "generate_goal", 1000)
    with pytest.raises(UnknownFeature):
        tokens.deduct_tokens(*pro, "no such feature", limits=True)
    with pytest.raises(Exception, match="no id yet"):
        tokens.get_all_token_balances(pro[0])


WRITERS = 12
COMPARED = """
select (select coalesce(sum(uses), 0) from tokenlib.usage_between(%(since)s, %(until)s, null)),
    (select coalesce(sum(tokens), 0) from tokenlib.usage_between(%(since)s, %(until)s, null)),
    tokenlib.active_between(%(since)s, %(until)s),
    tokenlib.refused_between(%(since)s, %(until)s)
union all
select count(*), coalesce(sum(tokens_deducted), 0), count(distinct organization_id), (
    select coalesce(sum(count), 0) from ai_token_refusals
    where last_at >= %(since)s and last_at < %(until)s)
from ai_token_usage_log where created_at >= %(since)s and created_at < %(until)s
"""
WALLETS = [
    ("overview", "run_outs_closed", "run_outs"),
    ("organizations", "organizations_sorted", "organizations"),
    ("organizations", "organizations_closed", "organizations"),
    ("settings", "cost_effects_closed", "cost_effects"),
]
ASKED: dict[str, Any] = {
    **dict.fromkeys(("ids", "organization_id", "plan", "status", "level")),
    **dict.fromkeys(("pattern", "caseless", "id_from", "id_to")),
    "within": timedelta(days=365),
    "near": None,
    "sort": "total_used",
    "descending": True,
    "limit": 7,
    "offset": 2,
    "feature": "generate_insight",
    "cost": 3,
}


def compare_wallets(reader: psycopg.Connection) -> None:
    """What is kept and what came since, beside the wallets alone, in one snapshot."""
    for noun, rolled, plain in WALLETS:
        named = statements(noun)
        both = f"with a as ({named[rolled]}), b as ({named[plain]})"
        statement = f"{both} select (select jsonb_agg(a) from a), (select jsonb_agg(b) from b)"  # noqa: S608
        row = reader.execute(statement.encode(), ASKED).fetchone()
        assert row is not None
        assert row[0] == row[1], rolled


@pytest.mark.parametrize("rounds", [12, pytest.param(60, marks=pytest.mark.thorough)])
def test_windows_are_right_while_twelve_write_and_one_closes(
    token_database: TestDatabase,
    token_clock: TestClock,
    tokens: Tokens,
    noon: datetime,
    join: Callable[[str], Person],
    rounds: int,
) -> None:
    """Each charge is one of five of its transaction, so commits come late; time passes fast."""
    people = [join("enterprise") for _ in range(WRITERS)]
    tokens.close_usage()
    done = threading.Event()

    def write(person: Person) -> int:
        made = 0
        with token_database.connect() as connection:
            while not done.is_set():
                with connection.transaction():
                    for _ in range(5):
                        made += connection.execute(CHARGE, person).rowcount
                    connection.execute(TOO_MUCH, person)
        return made

    def close() -> set[datetime | None]:
        found = set()
        while not done.is_set():
            found.add(tokens.close_usage())
        return found

    chance = Random(7)  # noqa: S311 - no secret
    with ThreadPoolExecutor(WRITERS + 1) as pool, token_database.connect() as reader:
        written = [pool.submit(write, person) for person in people]
        closed = pool.submit(close)
        try:
            for number in range(rounds):
                token_clock.advance(timedelta(seconds=97))
                now = token_clock.now()
                days = timedelta(days=chance.choice((1, 7)))
                back = timedelta(minutes=chance.choice((0, 0, 3, 20)))
                window = {"since": now - back - days, "until": now - back}
                if number % 3 == 0:
                    window["since"] = noon + (now - noon) * chance.random()
                    window["until"] = max(window.values())
                rolled, log = reader.execute(COMPARED, window).fetchall()
                assert rolled == log, (number, window)
                compare_wallets(reader)
        finally:
            done.set()
    assert sum(one.result() for one in written) > rounds
    assert len(closed.result()) > rounds // 12
