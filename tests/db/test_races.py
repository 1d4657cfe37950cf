"""Real threads on a real server: whoever comes first, the books say one thing."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from threading import Barrier
from typing import TypeVar
from uuid import UUID

import psycopg
import pytest

from tokenlib import (
    AlreadyAMember,
    ReservationOver,
    TokenlibError,
    Tokens,
    Usage,
)
from tokenlib.db import Database
from tokenlib.retry import Retry
from tokenlib.testing import TestClock, TestDatabase

Person = tuple[UUID, UUID]
Join = Callable[[str], Person]
T = TypeVar("T")

# Far more than a machine under load takes; nobody gives up in the middle of a race.
PATIENT = Retry(deadline=60)


@pytest.fixture
def crowd(token_database: TestDatabase) -> Iterator[Tokens]:
    """A gate with connections for many threads. What it did is verified in the end."""
    with Tokens(Database(token_database.url(), pool_size=32, retry=PATIENT)) as tokens:
        yield tokens
        found = tokens.verify()
        assert found.closed, found.problems


def together(calls: Sequence[Callable[[], T]], threads: int = 32) -> list[T | TokenlibError]:
    """Run all calls, `threads` at a time, the first of them at once; their answers, or errors."""
    barrier = Barrier(min(threads, len(calls)))

    def run(place: int) -> T | TokenlibError:
        if place < barrier.parties:
            barrier.wait()
        try:
            return calls[place]()
        except TokenlibError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(len(calls))))


def kinds(answers: Sequence[object]) -> Counter[str]:
    return Counter(type(answer).__name__ for answer in answers)


def figures(tokens: Tokens, person: Person, token_type: str) -> tuple[int, int, int]:
    """Balance, reserved, used."""
    wallet = tokens.get_token_balance(person[0], token_type)
    return wallet.balance, wallet.reserved, wallet.total_used


# One key -----------------------------------------------------------------------------------------


def test_two_hundred_threads_with_one_key_charge_once(crowd: Tokens, pro: Person) -> None:
    answers = together(
        [lambda: crowd.deduct_tokens(*pro, "generate_goal", idempotency_key="one")] * 200,
        threads=200,
    )
    assert kinds(answers) == {"Usage": 200}
    usages = [answer for answer in answers if isinstance(answer, Usage)]
    assert {(usage.id, usage.remaining_balance, usage.created_at) for usage in usages} == {
        (usages[0].id, 17, usages[0].created_at)
    }
    assert sum(not usage.replayed for usage in usages) == 1
    assert figures(crowd, pro, "goal_generation") == (17, 0, 3)


def test_two_hundred_threads_with_one_key_and_tokens_for_one(crowd: Tokens, pro: Person) -> None:
    """The first charge empties the wallet: the others must not read that as a refusal."""
    answers = together(
        [lambda: crowd.deduct_tokens(*pro, "generate_goal", 6, idempotency_key="one")] * 200
    )
    assert kinds(answers) == {"Usage": 200}
    assert figures(crowd, pro, "goal_generation") == (2, 0, 18)


def test_one_key_on_two_wallets_at_once_passes_once(crowd: Tokens, pro: Person) -> None:
    for number in range(15):
        key = f"key {number}"
        calls = [
            lambda: crowd.deduct_tokens(*pro, "generate_insight", idempotency_key=key),  # noqa: B023
            lambda: crowd.deduct_tokens(*pro, "analyze_strategy", idempotency_key=key),  # noqa: B023
        ]
        answers = together(calls * 4)
        assert kinds(answers) == {"Usage": 4, "IdempotencyConflict": 4}
    used = figures(crowd, pro, "general")[2] + figures(crowd, pro, "strategy_analysis")[2] // 2
    assert used == 15


def test_spends_with_one_key_run_one_body(crowd: Tokens, pro: Person) -> None:
    ran: list[int] = []

    def spend() -> str:
        with crowd.spend(*pro, "generate_goal", idempotency_key="one"):
            ran.append(1)
        return "spent"

    answers = together([spend] * 64)
    assert len(ran) == 1
    assert kinds(answers)["str"] == 1
    assert set(kinds(answers)) <= {"str", "InProgress", "AlreadySpent"}
    assert figures(crowd, pro, "goal_generation") == (17, 0, 3)


def test_a_retry_meets_a_hold_on_a_pack_while_it_is_deducted(crowd: Tokens, pro: Person) -> None:
    """The hold lies on another wallet than the one that the retry locks first."""
    crowd.upgrade_tokens(pro[0], "shared", 10_000)
    crowd.deduct_tokens(*pro, "generate_goal", 6)
    for number in range(60):
        key = f"key {number}"
        held = crowd.reserve(*pro, "generate_goal", idempotency_key=key)
        assert held.token_type == "shared"
        retry = [lambda: crowd.reserve(*pro, "generate_goal", idempotency_key=key)] * 5  # noqa: B023
        deduct: list[Callable[[], object]] = [lambda: crowd.deduct(held)]  # noqa: B023
        answers = together([*retry[:3], *deduct, *retry[3:]])
        assert kinds(answers)["Usage"] == 1
        assert set(kinds(answers)) <= {"Usage", "InProgress", "AlreadySpent"}
    assert figures(crowd, pro, "shared") == (10_000 - 180, 0, 180)


# One balance -------------------------------------------------------------------------------------


def test_a_thousand_charges_on_a_balance_for_six_hundred(crowd: Tokens, pro: Person) -> None:
    crowd.upgrade_tokens(pro[0], "general", 550)
    answers = together([lambda: crowd.deduct_tokens(*pro, "generate_insight")] * 1000)
    assert kinds(answers) == {"Usage": 600, "InsufficientTokens": 400}
    left = sorted(answer.remaining_balance for answer in answers if isinstance(answer, Usage))
    assert left == list(range(600))
    assert figures(crowd, pro, "general") == (0, 0, 600)


def charge_in_a_process(url: str, people: list[Person], rounds: int) -> Counter[str]:
    """Charges of one process with four threads, round and round over the organizations."""
    with Tokens(Database(url, pool_size=4, retry=PATIENT)) as tokens:
        calls = [
            partial(tokens.deduct_tokens, *person, "generate_insight")
            for _ in range(rounds)
            for person in people
        ]
        return kinds(together(calls, threads=4))


def test_processes_share_the_balances_of_several_organizations(
    crowd: Tokens, token_database: TestDatabase, join: Join
) -> None:
    people = [join("pro") for _ in range(4)]  # 50 for each
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as processes:
        charging = [
            processes.submit(charge_in_a_process, token_database.url(), people, 25)
            for _ in range(3)
        ]
        counts = sum((process.result() for process in charging), Counter[str]())
    assert counts == {"Usage": 200, "InsufficientTokens": 100}
    for person in people:
        assert figures(crowd, person, "general") == (0, 0, 50)


def test_holds_and_charges_never_spend_more_than_there_is(crowd: Tokens, pro: Person) -> None:
    def hold_and_settle(place: int) -> object:
        held = crowd.reserve(*pro, "generate_insight", 3)
        if place % 3:
            return crowd.deduct(held, 1 + place % 3)
        crowd.release(held)
        return None

    charge = partial(crowd.deduct_tokens, *pro, "generate_insight")
    calls = [partial(hold_and_settle, place) if place % 2 else charge for place in range(200)]
    answers = together(calls)
    assert set(kinds(answers)) <= {"Usage", "NoneType", "InsufficientTokens"}
    charged = sum(answer.tokens_deducted for answer in answers if isinstance(answer, Usage))
    assert figures(crowd, pro, "general") == (50 - charged, 0, charged)


# One winner --------------------------------------------------------------------------------------


def test_a_charge_is_refunded_once(crowd: Tokens, pro: Person) -> None:
    usage = crowd.deduct_tokens(*pro, "generate_goal", 6)
    answers = together([lambda: crowd.refund(usage, "nonsense")] * 32)
    assert kinds(answers) == {"Usage": 1, "AlreadyRefunded": 31}
    assert figures(crowd, pro, "goal_generation") == (20, 0, 0)


def test_a_hold_ends_once(
    crowd: Tokens, noon: datetime, join: Join, token_clock: TestClock, owner: psycopg.Connection
) -> None:
    """Deducted, released or, as the clock passes its end meanwhile, expired."""
    person = join("enterprise")
    ends = Counter[str]()
    for number in range(12):
        held = crowd.reserve(*person, "generate_insight", 4)
        calls: list[Callable[[], object]] = [
            lambda: crowd.deduct(held, 1),  # noqa: B023
            lambda: crowd.release(held),  # noqa: B023
        ] * 6
        if number % 2:
            calls.insert(4, lambda: token_clock.advance(timedelta(minutes=11)))
            calls.insert(5, lambda: crowd.get_token_stats(person[0]))
        answers = [answer for answer in together(calls) if answer is not None]
        row = owner.execute(
            "select state from ai_token_reservations where id = %s", (held.id,)
        ).fetchone()
        assert row is not None
        ends[row[0]] += 1
        overs = {answer.state for answer in answers if isinstance(answer, ReservationOver)}
        assert overs <= {row[0]}
        charged = {answer.id for answer in answers if isinstance(answer, Usage)}
        assert len(charged) == (row[0] == "deducted")
    assert set(ends) <= {"deducted", "released", "expired"}
    used = ends["deducted"]
    assert figures(crowd, person, "general") == (500 - used, 0, used)


# Beside what happens by itself -------------------------------------------------------------------


def test_charges_beside_refreshes(
    crowd: Tokens, noon: datetime, pro: Person, token_clock: TestClock, owner: psycopg.Connection
) -> None:
    crowd.deduct_tokens(*pro, "generate_insight", 40)
    calls: list[Callable[[], object]] = [
        lambda: crowd.deduct_tokens(*pro, "generate_insight", 2),
        lambda: crowd.refresh_tokens(),
        lambda: crowd.get_token_stats(pro[0]),
    ] * 16
    calls.insert(12, lambda: token_clock.set(noon + timedelta(days=30)))
    answers = together(calls)
    crowd.refresh_tokens()  # the clock may have moved when everybody had asked
    refreshes = owner.execute(
        "select token_type, count(*)::int from ai_token_events where kind = 'refresh' group by 1"
    ).fetchall()
    assert dict(refreshes) == dict.fromkeys(
        ("lead_generation", "goal_generation", "strategy_analysis", "forecast", "general"), 1
    )
    # Whatever was charged before the refresh went from the old allowance.
    row = owner.execute(
        "select coalesce(sum(tokens_deducted), 0)::int from ai_token_usage_log"
        " where created_at >= %s",
        (noon + timedelta(days=30),),
    ).fetchone()
    assert row is not None
    assert figures(crowd, pro, "general") == (50 - row[0], 0, row[0])
    assert set(kinds(answers)) <= {"Usage", "InsufficientTokens", "int", "Stats", "NoneType"}


@pytest.mark.parametrize("outside", [False, True])
def test_charges_beside_plan_changes(
    crowd: Tokens, pro: Person, owner: psycopg.Connection, outside: bool
) -> None:
    def change(plan: str) -> None:
        if outside:
            owner.execute("update organizations set plan = %s where id = %s", (plan, pro[0]))
        else:
            crowd.change_plan(pro[0], plan)

    charge: list[Callable[[], object]] = [
        lambda: crowd.deduct_tokens(*pro, "generate_insight", 2),
        lambda: crowd.deduct_tokens(*pro, "analyze_strategy", 3),
        lambda: crowd.get_token_stats(pro[0]),
    ] * 12
    changes: list[Callable[[], object]] = [
        partial(change, plan) for plan in ("enterprise", "pro", "enterprise", "pro")
    ]
    calls = [call for place in range(4) for call in (*charge[place::4], changes[place])]
    answers = together(calls)
    assert set(kinds(answers)) <= {"Usage", "InsufficientTokens", "Stats", "NoneType"}
    change("pro")
    charged = Counter[str]()
    for answer in answers:
        if isinstance(answer, Usage):
            charged[answer.token_type] += answer.tokens_deducted
    for token_type, allowance in (("general", 50), ("strategy_analysis", 100)):
        used = charged[token_type]
        assert figures(crowd, pro, token_type) == (max(0, allowance - used), 0, used)


@pytest.mark.one_node
def test_an_address_is_added_once(
    crowd: Tokens, owner: psycopg.Connection, token_database: TestDatabase
) -> None:
    organization = crowd.create_organization("Acme")
    answers = together(
        [
            lambda: crowd.add_member(organization, "A member", "member@example.org"),
            lambda: crowd.add_member(organization, "A member", "Member@Example.org"),
        ]
        * 12
    )
    [added] = [answer for answer in answers if isinstance(answer, UUID)]
    others = [answer for answer in answers if isinstance(answer, AlreadyAMember)]
    assert len(others) == 23
    assert {other.user_id for other in others} == {added}
    assert owner.execute("select id from user_profiles").fetchall() == [(added,)]
    # Whoever comes while an address is being added waits for it.
    add = "select tokenlib.add_member(%s, 'A member', %s)"
    with token_database.connect() as first, token_database.connect() as second, first.transaction():
        first.execute(add, (organization, "new@example.org"))
        second.execute("set lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            second.execute(add, (organization, "New@example.org"))
    # In another organization the same person is another member.
    elsewhere = crowd.create_organization("Globex")
    assert crowd.add_member(elsewhere, "A member", "member@example.org") != added


def test_wallets_are_opened_once(crowd: Tokens, owner: psycopg.Connection) -> None:
    row = owner.execute(
        "insert into organizations (name, plan) values ('Acme', 'pro') returning id"
    ).fetchone()
    assert row is not None
    organization: UUID = row[0]
    user = crowd.add_member(organization, "A member", "member@example.org")
    calls: list[Callable[[], object]] = [
        lambda: crowd.initialize_tokens(organization),
        lambda: crowd.get_token_stats(organization),
        lambda: crowd.deduct_tokens(organization, user, "generate_goal", idempotency_key="one"),
        lambda: crowd.upgrade_tokens(organization, "shared", 10, idempotency_key="two"),
    ] * 8
    answers = together(calls)
    assert not [answer for answer in answers if isinstance(answer, TokenlibError)]
    openings = owner.execute(
        "select count(*), count(distinct token_type) from ai_token_events where kind = 'opening'"
    ).fetchone()
    assert openings == (6, 6)
    assert figures(crowd, (organization, user), "goal_generation") == (17, 0, 3)
    assert figures(crowd, (organization, user), "shared") == (10, 0, 0)


@pytest.mark.one_node
def test_an_allowance_that_came_while_the_pack_was_waited_for_pays(
    crowd: Tokens, noon: datetime, pro: Person, token_clock: TestClock, owner: psycopg.Connection
) -> None:
    crowd.deduct_tokens(*pro, "generate_insight", 50)
    crowd.upgrade_tokens(pro[0], "shared", 20)
    with ThreadPoolExecutor(1) as thread:
        with owner.transaction():
            owner.execute("select from ai_tokens where token_type = 'shared' for update")
            charging = thread.submit(crowd.deduct_tokens, *pro, "generate_insight", 5)
            blocked = "select count(*) from pg_locks where not granted"
            while owner.execute(blocked).fetchone() == (0,):
                assert not charging.done()
            token_clock.set(noon + timedelta(days=30))
        usage = charging.result(30)
    assert (usage.token_type, usage.remaining_balance) == ("general", 45)
    assert usage.created_at == noon + timedelta(days=30)
    assert figures(crowd, pro, "shared") == (20, 0, 0)


# What people change beside wallets ---------------------------------------------------------------

CHANGES = {
    "set_status": "select tokenlib.set_status(%(org)s, %(value)s, 'an operator', 'a drill')",
    "pause_user": "select tokenlib.pause_user(%(org)s, %(user)s, %(value)s, 'an operator', 'why')",
    "set_mode": "select tokenlib.set_mode(%(org)s, %(value)s, null, 'an operator', 'a drill')",
}


@pytest.mark.one_node
@pytest.mark.parametrize(
    ("verb", "values"),
    [
        ("set_status", ("suspended", "active")),
        ("pause_user", (True, False)),
        ("set_mode", ("off", "enforce")),
    ],
)
def test_a_change_that_waited_for_another_says_what_that_one_left(
    token_database: TestDatabase,
    owner: psycopg.Connection,
    pro: Person,
    verb: str,
    values: tuple[object, object],
) -> None:
    params = {"org": pro[0], "user": pro[1]}
    with (
        token_database.connect("tokenlib_service") as one,
        token_database.connect("tokenlib_service") as other,
        ThreadPoolExecutor(1) as thread,
    ):
        one.execute("begin")
        one.execute(CHANGES[verb].encode(), {**params, "value": values[0]})
        waiting = thread.submit(
            other.execute, CHANGES[verb].encode(), {**params, "value": values[1]}
        )
        blocked = "select count(*) from pg_locks where not granted"
        while owner.execute(blocked).fetchone() == (0,):
            assert not waiting.done()
        one.execute("commit")
        waiting.result(30)
    changes = owner.execute(
        "select before - 'user_id', after - 'user_id' from ai_token_changes where action = %s"
        " order by created_at, ctid",
        (verb,),
    ).fetchall()
    [(_, first), (found, _)] = changes
    assert found == first


def test_failed_attempts_at_the_same_time_are_all_counted(
    crowd: Tokens, join: Join, owner: psycopg.Connection
) -> None:
    owner.execute(
        "update ai_token_limits set failed_attempts = 12, seconds_between_requests = null,"
        " requests_per_minute = null"
    )
    organization, user = join("pro")
    wrong: list[Callable[[], object]] = [
        lambda: crowd.deduct_tokens(organization, user, "make_coffee", limits=True),
        lambda: crowd.failed_attempt(user, "no JSON"),
    ] * 6
    together(wrong)
    counted = "select sum(count)::int from ai_token_refusals where rule = 'failed_attempt'"
    assert owner.execute(counted).fetchone() == (12,)
    charges: list[Callable[[], object]] = [
        lambda: crowd.deduct_tokens(organization, user, "generate_insight", limits=True)
    ] * 8
    assert kinds(together(charges)) == {"RateLimited": 8}
