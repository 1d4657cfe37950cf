"""What a call costs, counted: round trips, commits, pages read. Never times: machines differ."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
