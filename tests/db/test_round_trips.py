"""What a call costs, counted: round trips, commits, pages read. Never times: machines differ."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.faults.proxy import Proxy
from tokenlib import Tokens
from tokenlib.cluster import PORT
from tokenlib.db import Database
from tokenlib.reports import Reports, Viewer
from tokenlib.testing import TestDatabase

Person = tuple[UUID, UUID]
FEATURE = "generate_insight"
PREPARED = 8
"""Calls after which the driver has prepared what it is going to prepare."""
CALLERS, EACH = 32, 8
MANY = 20_000
_CALL = (
    "explain (analyze, buffers, format json, timing off)"
    " select * from tokenlib.deduct(%s, %s, %s, 1, null, %s, true, null)"
)
# Entries of the last minute, as a busy user leaves them.
_MINUTE = """
insert into ai_token_usage_log (organization_id, user_id, token_type, feature_used, tokens_deducted,
    remaining_balance, number, created_at)
select %s, %s, 'general', 'generate_insight', 1, 1, 1000000 + n,
    %s::timestamptz - n * interval '1 millisecond'
from generate_series(1, %s) as n
"""


@pytest.fixture
def proxy(token_database: TestDatabase) -> Iterator[Proxy]:
    """Between gate and server, to count what goes by."""
    server = token_database.server.data_dir / "run" / f".s.PGSQL.{PORT}"
    with Proxy(server) as proxy:
        yield proxy


@pytest.fixture
def gate(proxy: Proxy, token_database: TestDatabase) -> Iterator[Tokens]:
    """A gate that goes through the proxy."""
    with Tokens(Database(proxy.url(token_database.url()))) as gate:
        yield gate


@pytest.fixture
def trips(proxy: Proxy) -> Callable[[Callable[[], object]], int]:
    """How often a call goes to the server and waits, once everything is prepared."""

    def trips(call: Callable[[], object]) -> int:
        for _ in range(PREPARED):
            call()
        before = proxy.trips
        call()
        return proxy.trips - before

    return trips


Trips = Callable[[Callable[[], object]], int]


def test_a_charge_a_check_and_a_verdict_are_one_round_trip_each(
    gate: Tokens, trips: Trips, pro: Person
) -> None:
    assert trips(lambda: gate.has_enough_tokens(pro[0], FEATURE)) == 1
    assert trips(lambda: gate.can_use(*pro, FEATURE)) == 1
    assert trips(lambda: gate.deduct_tokens(*pro, FEATURE)) == 1
    assert trips(lambda: gate.deduct_tokens(*pro, FEATURE, idempotency_key=str(uuid4()))) == 1
    assert trips(lambda: gate.deduct_tokens(*pro, FEATURE, idempotency_key="a replay")) == 1


def test_spend_is_two_round_trips_around_the_work(gate: Tokens, trips: Trips, pro: Person) -> None:
    def spend() -> None:
        with gate.spend(*pro, FEATURE):
            pass

    assert trips(spend) == 2


def test_a_members_read_takes_no_more_round_trips_than_it_did(
    gate: Tokens, trips: Trips, pro: Person
) -> None:
    own = Reports(gate.database, Viewer(pro[1], "authenticated"))
    assert own.wallets()
    assert trips(own.wallets) <= 4  # begin, claims, question, commit


def test_callers_who_want_one_wallet_at_the_same_moment_share_commits(
    tokens: Tokens, owner: psycopg.Connection, pro: Person
) -> None:
    tokens.grant(pro[0], "general", CALLERS * EACH, kind="gift", source="a test")
    line = threading.Barrier(CALLERS)

    def charge(_number: int) -> None:
        line.wait()
        for _ in range(EACH):
            tokens.deduct_tokens(*pro, FEATURE, idempotency_key=str(uuid4()))

    with ThreadPoolExecutor(CALLERS) as threads:
        list(threads.map(charge, range(CALLERS)))
    [(charges, commits)] = owner.execute(
        "select count(*), count(distinct xmin::text) from ai_token_usage_log"
    ).fetchall()
    assert charges == CALLERS * EACH
    assert commits <= charges / 2


@pytest.mark.usefixtures("noon")
def test_a_charge_reads_as_many_pages_however_busy_its_user_was(
    tokens: Tokens, owner: psycopg.Connection, pro: Person, noon: datetime
) -> None:
    owner.execute(
        "update ai_token_limits set requests_per_minute = 1000000, seconds_between_requests = 0"
    )
    for _ in range(PREPARED):
        tokens.deduct_tokens(*pro, FEATURE, idempotency_key=str(uuid4()), limits=True)
    owner.execute("vacuum analyze ai_token_usage_log")
    quiet = _pages(owner, pro)
    owner.execute(_MINUTE, (*pro, noon, MANY))
    owner.execute("vacuum analyze ai_token_usage_log")
    assert _pages(owner, pro) <= 3 * quiet


def _pages(owner: psycopg.Connection, person: Person) -> int:
    """How many pages a charge has to do with; the first call of a session reads the catalog."""
    found = 0
    for _ in range(2):
        [[plan]] = owner.execute(_CALL, (*person, FEATURE, str(uuid4()))).fetchall()
        read: Any = plan if isinstance(plan, list) else json.loads(plan)
        found = read[0]["Plan"]["Shared Hit Blocks"] + read[0]["Plan"]["Shared Read Blocks"]
    return found
