"""What a call costs, counted: round trips, commits, pages read. Never times: machines differ."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.faults.proxy import Proxy
from tokenlib import DatabaseUnavailable, Tokens
from tokenlib.cluster import PORT
from tokenlib.db import Database
from tokenlib.reports import Reports, Viewer
from tokenlib.testing import TestDatabase

Person = tuple[UUID, UUID]
FEATURE = "generate_insight"
PREPARED = 8
"""Calls after which the driver has prepared what it is going to prepare."""
CALLERS, EACH = 32, 8
WHO = "select current_user as who, current_setting('request.jwt.claims', true) as claims"


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


def test_a_read_with_claims_and_one_of_the_service_are_one_round_trip_each(
    gate: Tokens, trips: Trips, pro: Person
) -> None:
    own = Reports(gate.database, Viewer(pro[1], "authenticated"))
    assert own.wallets()
    assert trips(own.wallets) == 1
    assert trips(Reports(gate.database).now) == 1


def test_role_and_claims_end_with_the_question(gate: Tokens, pro: Person) -> None:
    for _ in range(3):  # the first time in a transaction of its own, then in one round trip
        [mine] = gate.database.rows(WHO, reader="authenticated", user_id=pro[1])
        assert mine == {"who": "authenticated", "claims": f'{{"sub": "{pro[1]}"}}'}
        [after] = gate.database.rows(WHO)
        assert after == {"who": "tokenlib_service", "claims": ""}


def test_a_question_is_not_asked_as_somebody_else(
    gate: Tokens, pro: Person, owner: psycopg.Connection
) -> None:
    """When the role cannot be taken, the question behind it does not run as the service."""
    gate.database.rows(WHO, reader="authenticated", user_id=pro[1])
    charge = (
        "select * from tokenlib.deduct(%(org)s, %(user)s, %(feature)s, 1, null, null, false, null)"
    )
    params = {"org": pro[0], "user": pro[1], "feature": FEATURE}
    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        gate.database.rows(charge, params, reader="nobody", user_id=pro[1])  # type: ignore[arg-type]
    assert owner.execute("select count(*) from ai_token_usage_log").fetchone() == (0,)
    # As the service it would have been a charge; and the connection is in order.
    [row] = gate.database.rows(charge, params)
    assert row["status"] == "ok"


def test_a_question_that_fails_leaves_the_connection_in_order(gate: Tokens, pro: Person) -> None:
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable, match="division by zero"):
            gate.database.rows("select 1 / 0", reader="authenticated", user_id=pro[1])
        assert gate.database.rows(WHO)[0]["who"] == "tokenlib_service"


@pytest.mark.parametrize("undone", [True, False])
def test_a_connection_that_forgot_what_it_had_prepared_charges_on(
    token_database: TestDatabase, owner: psycopg.Connection, pro: Person, undone: bool
) -> None:
    """After a rollback the driver has the server forget every statement; others may, too."""
    with Tokens(Database(token_database.url(), pool_size=1)) as gate:
        for _ in range(PREPARED):
            gate.deduct_tokens(*pro, FEATURE)
            gate.database.rows(WHO)
        with suppress(ZeroDivisionError), gate.database.transaction() as connection:
            connection.exec_driver_sql("select 1" if undone else "deallocate all")
            if undone:
                raise ZeroDivisionError
        gate.deduct_tokens(*pro, FEATURE)
    assert owner.execute("select count(*) from ai_token_usage_log").fetchone() == (PREPARED + 1,)


def test_a_connection_whose_answers_get_another_form_goes_on(
    token_database: TestDatabase, owner: psycopg.Connection
) -> None:
    """As after a migration while it is in use."""
    owner.execute("create table tokenlib.answers as select 1 as first")
    owner.execute("grant select on tokenlib.answers to tokenlib_service")
    statement = "select * from tokenlib.answers"
    with Tokens(Database(token_database.url(), pool_size=1)) as gate:
        for _ in range(PREPARED):
            assert gate.database.call(statement, {}) == {"first": 1}
        owner.execute("alter table tokenlib.answers add second text default 'more'")
        for _ in range(PREPARED):
            assert gate.database.call(statement, {}) == {"first": 1, "second": "more"}


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
