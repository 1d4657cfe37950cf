"""Replies that are lost, servers that go, wallets that are stuck: what is asked again, and what the
books then hold. A proxy between client and server breaks what a test says."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest

from tests.faults.proxy import Proxy
from tokenlib import (
    AlreadyRefunded,
    DatabaseUnavailable,
    IdempotencyConflict,
    InProgress,
    InsufficientTokens,
    Tokens,
)
from tokenlib.cluster import PORT
from tokenlib.db import Database
from tokenlib.retry import ONCE, Retry
from tokenlib.testing import TestClock, TestDatabase

Person = tuple[UUID, UUID]
GOAL = "generate_goal"

pytestmark = pytest.mark.usefixtures("books_close")


@pytest.fixture
def proxy(token_database: TestDatabase) -> Iterator[Proxy]:
    """The way to the server that a test can break."""
    server = token_database.server.data_dir / "run" / f".s.PGSQL.{PORT}"
    with Proxy(server) as proxy:
        yield proxy


@pytest.fixture
def gate(proxy: Proxy, token_database: TestDatabase) -> Iterator[Tokens]:
    """A gate that goes through the proxy, and asks again."""
    with through(proxy, token_database, Retry(deadline=30)) as gate:
        yield gate


@contextmanager
def through(
    proxy: Proxy, database: TestDatabase, retry: Retry, pool_size: int = 2
) -> Iterator[Tokens]:
    url = proxy.url(database.url())
    with Tokens(Database(url, retry=retry, pool_size=pool_size)) as gate:
        yield gate


def once(word: bytes) -> Callable[[bytes], bool]:
    """A rule that breaks the first request that holds the word."""
    left = [word]

    def rule(request: bytes) -> bool:
        return bool(left) and left[0] in request and bool(left.pop())

    return rule


def always(word: bytes) -> Callable[[bytes], bool]:
    """A rule that breaks every request that holds the word."""
    return lambda request: word in request


def charges(owner: psycopg.Connection) -> int:
    row = owner.execute("select count(*) from ai_token_usage_log").fetchone()
    assert row is not None
    return int(row[0])


def figures(tokens: Tokens, person: Person) -> tuple[int, int, int]:
    """Balance, reserved, used."""
    wallet = tokens.get_token_balance(person[0], "goal_generation")
    return wallet.balance, wallet.reserved, wallet.total_used


# Lost replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_a_charge_with_a_key_survives_a_cut_and_is_charged_once(
    gate: Tokens, proxy: Proxy, pro: Person, tokens: Tokens, owner: psycopg.Connection, lost: str
) -> None:
    setattr(proxy, "cut" if lost == "request" else "drop", once(b"tokenlib.deduct("))
    usage = gate.deduct_tokens(*pro, GOAL, idempotency_key="key")
    assert proxy.broken == 1
    # The first attempt was charged, so this is its answer; or it never arrived.
    assert usage.replayed is (lost == "reply")
    assert (usage.tokens_deducted, usage.remaining_balance) == (3, 17)
    assert charges(owner) == 1
    assert tokens.deduct_tokens(*pro, GOAL, idempotency_key="key").id == usage.id
    assert figures(tokens, pro) == (17, 0, 3)


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_a_charge_without_a_key_is_never_repeated(
    gate: Tokens, proxy: Proxy, pro: Person, owner: psycopg.Connection, lost: str
) -> None:
    setattr(proxy, "cut" if lost == "request" else "drop", always(b"tokenlib.deduct("))
    with pytest.raises(DatabaseUnavailable, match="unknown whether this was charged") as failed:
        gate.deduct_tokens(*pro, GOAL)
    assert failed.value.outcome == "unknown"
    assert "idempotency key" in str(failed.value)
    # Asked once, in both cases; only the books know which one it was.
    assert proxy.broken == 1
    assert charges(owner) == (lost == "reply")


def test_a_hold_survives_a_cut_and_is_held_once(
    gate: Tokens, proxy: Proxy, pro: Person, tokens: Tokens
) -> None:
    proxy.drop = once(b"tokenlib.reserve(")
    held = gate.reserve(*pro, GOAL, 2, {"n": 1}, "key", hold_for=timedelta(minutes=3))
    assert proxy.broken == 1
    assert (held.tokens, held.remaining_balance, held.token_type) == (6, 14, "goal_generation")
    assert figures(tokens, pro) == (14, 6, 0)
    # The same key from anybody else is still in progress.
    with pytest.raises(InProgress) as refused:
        tokens.reserve(*pro, GOAL, 2, {"n": 1}, "key")
    assert refused.value.reservation_id == held.id
    assert refused.value.expires_at == held.expires_at
    assert tokens.deduct(held).tokens_deducted == 6


def test_a_hold_whose_first_attempt_is_over_is_held_anew(
    gate: Tokens, proxy: Proxy, pro: Person, tokens: Tokens
) -> None:
    """A life shorter than the time until it is asked for again."""
    proxy.drop = once(b"tokenlib.reserve(")
    gate.database.retry = Retry(deadline=30, chance=lambda: 1.0)
    held = gate.reserve(*pro, GOAL, hold_for=timedelta(milliseconds=1))
    assert proxy.broken == 1
    assert held.tokens == 3
    assert tokens.get_token_balance(pro[0], "goal_generation").total_used == 0


@pytest.mark.parametrize("word", [b"tokenlib.reserve(", b"tokenlib.deduct_reservation("])
def test_spend_without_a_key_survives_a_cut_at_every_step(
    gate: Tokens, proxy: Proxy, pro: Person, owner: psycopg.Connection, word: bytes
) -> None:
    proxy.drop = once(word)
    with gate.spend(*pro, GOAL):
        pass
    assert proxy.broken == 1
    assert charges(owner) == 1
    assert figures(gate, pro) == (17, 0, 3)


def test_a_cancelled_spend_gives_back_through_a_cut(
    gate: Tokens, proxy: Proxy, pro: Person
) -> None:
    proxy.drop = once(b"tokenlib.release(")
    with pytest.raises(KeyError), gate.spend(*pro, GOAL):
        raise KeyError("the body failed")
    assert proxy.broken == 1
    assert figures(gate, pro) == (20, 0, 0)


def test_a_refund_survives_a_cut_with_its_first_answer(
    gate: Tokens, proxy: Proxy, pro: Person, tokens: Tokens, owner: psycopg.Connection
) -> None:
    usage = tokens.deduct_tokens(*pro, GOAL)
    proxy.drop = once(b"tokenlib.refund(")
    back = gate.refund(usage, "nonsense")
    assert proxy.broken == 1
    assert (back.id, back.tokens_deducted, back.remaining_balance) == (usage.id, 3, 20)
    kinds = owner.execute("select count(*) from ai_token_events where kind = 'refund'").fetchone()
    assert kinds == (1,)
    # Another request for the same charge is still refused.
    with pytest.raises(AlreadyRefunded):
        gate.refund(usage, "nonsense")


def test_a_refund_with_a_key_can_be_repeated(tokens: Tokens, pro: Person) -> None:
    usage = tokens.deduct_tokens(*pro, GOAL)
    other = tokens.deduct_tokens(*pro, GOAL)
    first = tokens.refund(usage, "nonsense", idempotency_key="back")
    tokens.deduct_tokens(*pro, GOAL)
    again = tokens.refund(usage, "nonsense", idempotency_key="back")
    assert (again.replayed, again.remaining_balance) == (True, first.remaining_balance)
    assert again.created_at == first.created_at
    with pytest.raises(AlreadyRefunded):
        tokens.refund(usage, "nonsense", idempotency_key="another")
    for taken in ("back", "charged"):
        tokens.deduct_tokens(*pro, "generate_insight", idempotency_key="charged")
        with pytest.raises(IdempotencyConflict):
            tokens.refund(other, "nonsense", idempotency_key=taken)
    with pytest.raises(IdempotencyConflict):
        tokens.deduct_tokens(*pro, GOAL, idempotency_key="back")


def test_a_grant_without_a_key_survives_a_cut_and_arrives_once(
    gate: Tokens, proxy: Proxy, pro: Person
) -> None:
    proxy.drop = once(b"tokenlib.grant_tokens(")
    assert gate.upgrade_tokens(pro[0], "goal_generation", 10).balance == 30
    assert proxy.broken == 1
    assert figures(gate, pro) == (30, 0, 0)


def test_what_is_no_charge_and_has_no_key_is_not_repeated_either(
    gate: Tokens, proxy: Proxy, owner: psycopg.Connection
) -> None:
    gate.create_organization("Globex", "pro")
    proxy.drop = always(b"tokenlib.create_organization(")
    with pytest.raises(DatabaseUnavailable) as failed:
        gate.create_organization("Acme", "pro")
    assert failed.value.outcome == "unknown"
    assert owner.execute("select count(*) from organizations").fetchone() == (2,)


def test_questions_are_asked_again(gate: Tokens, proxy: Proxy, pro: Person) -> None:
    for word in (b"tokenlib.can_use(", b"as pays", b"tokenlib.balances(", b"whoami"):
        proxy.drop = once(word)
        before = proxy.broken
        if word == b"whoami":
            gate.database.rows("select 1 as whoami")
        else:
            assert gate.can_use(*pro, GOAL).allowed
            assert gate.has_enough_tokens(pro[0], GOAL)
            assert figures(gate, pro) == (20, 0, 0)
        assert proxy.broken == before + 1


def test_a_refusal_after_a_cut_is_a_refusal(gate: Tokens, proxy: Proxy, pro: Person) -> None:
    proxy.drop = once(b"tokenlib.deduct(")
    with pytest.raises(InsufficientTokens):
        gate.deduct_tokens(*pro, GOAL, 7, idempotency_key="key")
    assert proxy.broken == 1


def test_what_is_unknown_stays_unknown_when_the_server_does_not_come_back(
    proxy: Proxy, token_database: TestDatabase, pro: Person, owner: psycopg.Connection
) -> None:
    def reply_lost_then_away(request: bytes) -> bool:
        if b"tokenlib.deduct(" not in request:
            return False
        proxy.cut = always(b"")
        return True

    proxy.drop = reply_lost_then_away
    with (
        through(proxy, token_database, Retry(deadline=0.5)) as gate,
        pytest.raises(DatabaseUnavailable) as failed,
    ):
        gate.deduct_tokens(*pro, GOAL, idempotency_key="key")
    assert failed.value.outcome == "unknown"
    assert "same idempotency key" in str(failed.value)
    assert charges(owner) == 1


def test_a_key_is_good_for_as_long_as_the_log(
    tokens: Tokens, pro: Person, token_clock: TestClock, owner: psycopg.Connection
) -> None:
    first = tokens.deduct_tokens(*pro, GOAL, idempotency_key="key")
    token_clock.advance(timedelta(days=1000))
    again = tokens.deduct_tokens(*pro, GOAL, idempotency_key="key")
    assert (again.id, again.replayed) == (first.id, True)
    # A log in partitions by time could not hold a key's uniqueness.
    kind = "select relkind from pg_class where oid = 'public.ai_token_usage_log'::regclass"
    assert owner.execute(kind).fetchone() == ("r",)


# Servers that go ---------------------------------------------------------------------------------


@pytest.mark.parametrize("retry", [ONCE, Retry(deadline=30)])
def test_connections_that_died_in_the_pool_are_no_error(
    token_database: TestDatabase, pro: Person, owner: psycopg.Connection, retry: Retry
) -> None:
    """Noticed before anything is sent, so it holds for a charge without a key as well."""
    with Tokens(Database(token_database.url(), retry=retry, pool_size=4)) as gate:
        barrier = threading.Barrier(4)

        def occupy() -> None:
            with gate.database.transaction() as connection:
                connection.exec_driver_sql("select 1")
                barrier.wait(20)

        threads = [threading.Thread(target=occupy) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        with token_database.connect("postgres") as operator:
            dead = operator.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where datname = %s and usename = 'tokenlib_service'",
                (token_database.name,),
            ).fetchall()
        assert len(dead) >= 4
        assert gate.deduct_tokens(*pro, GOAL).remaining_balance == 17
        gate.create_organization("Globex")
        assert gate.catalog().plans
        assert [gate.deduct_tokens(*pro, GOAL).remaining_balance for _ in range(5)][-1] == 2
    assert charges(owner) == 6


def test_a_server_that_comes_back_in_time_is_waited_for_by_everybody(
    proxy: Proxy, token_database: TestDatabase, pro: Person
) -> None:
    """Nothing was sent, so also what may not be repeated is asked again."""
    pauses: list[float] = []
    there = proxy.server

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            proxy.server = there

    proxy.server = there.with_name("nobody")
    with through(proxy, token_database, Retry(deadline=60, sleep=sleep)) as gate:
        assert gate.deduct_tokens(*pro, GOAL).remaining_balance == 17
        assert len(pauses) == 3
        pauses.clear()
        proxy.server = there.with_name("nobody")
        gate.database.close()
        gate.create_organization("Globex")
        assert len(pauses) == 3
        pauses.clear()
        proxy.server = there.with_name("nobody")
        gate.database.close()
        assert gate.catalog().plans  # in a transaction
    assert len(pauses) == 3


def test_a_server_that_is_silent_is_given_up_and_the_outcome_is_unknown(
    proxy: Proxy, token_database: TestDatabase, pro: Person, tokens: Tokens
) -> None:
    with through(proxy, token_database, Retry(deadline=1)) as gate:
        assert gate.has_enough_tokens(pro[0], GOAL)
        proxy.frozen = True
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable) as failed:
            gate.deduct_tokens(*pro, GOAL, idempotency_key="key")
        assert time.monotonic() - began < 30  # not for ever: that is what it is about
        assert failed.value.outcome == "unknown"
        proxy.frozen = False
    # What the server had in hand may be done by now or not; with the key nobody needs to know.
    tokens.deduct_tokens(*pro, GOAL, idempotency_key="key")
    assert figures(tokens, pro) == (17, 0, 3)


def test_a_wallet_that_stays_locked_is_given_up_and_nothing_is_left_waiting(
    token_database: TestDatabase, pro: Person, owner: psycopg.Connection, tokens: Tokens
) -> None:
    with token_database.connect("postgres") as operator:
        # What bounds the wait here is the client.
        operator.execute(
            f'alter role tokenlib_service in database "{token_database.name}"'
            " set lock_timeout = '25s'"
        )
    with Tokens(Database(token_database.url(), retry=Retry(deadline=0.5))) as gate:
        with token_database.connect() as other, other.transaction():
            other.execute("select from ai_tokens for update")
            for key in (None, "key"):
                began = time.monotonic()
                with pytest.raises(DatabaseUnavailable, match="busy") as failed:
                    gate.deduct_tokens(*pro, GOAL, idempotency_key=key)
                assert time.monotonic() - began < 20
                # The server confirmed that it took the statement back.
                assert failed.value.outcome == "not_charged"
            waiting = owner.execute(
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
                " and datname = current_database()"
            ).fetchone()
            assert waiting == (0,)
        assert gate.deduct_tokens(*pro, GOAL, idempotency_key="key").remaining_balance == 17
    assert figures(tokens, pro) == (17, 0, 3)


def test_a_pool_that_runs_dry_is_waited_for_and_then_a_no(
    token_database: TestDatabase, pro: Person
) -> None:
    pauses: list[float] = []
    with Tokens(
        Database(token_database.url(), pool_size=1, retry=Retry(1.5, sleep=pauses.append))
    ) as gate:
        database = gate.database
        with database.transaction(), database.transaction():
            with pytest.raises(DatabaseUnavailable, match="connection is busy") as failed:
                gate.deduct_tokens(*pro, GOAL)
            assert failed.value.outcome == "not_charged"
            assert pauses
        assert gate.deduct_tokens(*pro, GOAL).remaining_balance == 17


# Awaitable twins ---------------------------------------------------------------------------------


def test_the_awaitable_twins_ask_again_too(gate: Tokens, proxy: Proxy, pro: Person) -> None:
    async def run() -> int:
        proxy.drop = once(b"tokenlib.reserve(")
        async with gate.aio.spend(*pro, GOAL):
            pass
        proxy.drop = once(b"tokenlib.deduct(")
        return int(
            (await gate.aio.deduct_tokens(*pro, GOAL, idempotency_key="k")).remaining_balance
        )

    assert asyncio.run(run()) == 14
    assert proxy.broken == 2


@pytest.mark.parametrize("verb", ["reserve", "spend"])
def test_cancelled_while_it_asks_again_it_leaves_no_hold(
    proxy: Proxy, token_database: TestDatabase, pro: Person, tokens: Tokens, verb: str
) -> None:
    asked_again, go_on = threading.Event(), threading.Event()

    def sleep(_seconds: float) -> None:
        asked_again.set()
        assert go_on.wait(30)

    async def spend(gate: Tokens) -> None:
        async with gate.aio.spend(*pro, GOAL):
            pytest.fail("the body ran")

    async def run(gate: Tokens) -> None:
        task = asyncio.ensure_future(
            spend(gate) if verb == "spend" else gate.aio.reserve(*pro, GOAL)
        )
        await asyncio.to_thread(asked_again.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    # The event loop is closed before the thread has its hold.
    proxy.drop = once(b"tokenlib.reserve(")
    with through(proxy, token_database, Retry(deadline=60, sleep=sleep)) as gate:
        asyncio.run(run(gate))
        assert figures(tokens, pro) == (17, 3, 0)
        go_on.set()
    assert figures(tokens, pro) == (20, 0, 0)
