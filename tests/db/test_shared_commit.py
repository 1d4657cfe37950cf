"""Charges of callers who ask at the same moment: one commit, and each has their own answer."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.db.crowd import Call, Crowd, in_line, until, waiting
from tokenlib import (
    DatabaseUnavailable,
    IdempotencyConflict,
    InsufficientTokens,
    InvalidInput,
    RateLimited,
    Settings,
    TokenlibError,
    Tokens,
    Usage,
    batches,
    connect,
    sharing,
)
from tokenlib.db import Database, statements
from tokenlib.retry import Retry
from tokenlib.testing import TestClock, TestDatabase

Person = tuple[UUID, UUID]
Join = Callable[[str], Person]
PATIENT = Retry(deadline=60)
WHO: dict[str, Any] = {"actor": "an operator", "reason": "a drill"}
GOAL, INSIGHT, STRATEGY = "generate_goal", "generate_insight", "analyze_strategy"

pytestmark = pytest.mark.usefixtures("books_close")


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Crowd:
    return Crowd(monkeypatch)


@pytest.fixture
def gate(token_database: TestDatabase) -> Iterator[Tokens]:
    """A gate with connections for many threads, which asks again."""
    with Tokens(Database(token_database.url(), pool_size=32, retry=PATIENT)) as tokens:
        yield tokens


def commits(owner: psycopg.Connection) -> list[int]:
    """How many charges each transaction made, in its order."""
    rows = owner.execute(
        "select count(*)::int from ai_token_usage_log group by xmin::text order by min(created_at)"
    )
    return [count for (count,) in rows.fetchall()]


def charge(gate: Tokens, person: Person, *args: Any, **kwargs: Any) -> Callable[[], Usage]:
    return partial(gate.deduct_tokens, *person, *args, **kwargs)


def seen(answer: Any) -> Any:
    """A charge or a refusal, without what differs from organization to organization."""
    if isinstance(answer, Usage):
        return (answer.token_type, answer.tokens_deducted, answer.tokens_waived,
            answer.remaining_balance, answer.replayed)  # fmt: skip
    return type(answer), getattr(answer, "rule", None), getattr(answer, "limit", None)


# One commit --------------------------------------------------------------------------------------


def test_each_has_an_answer_of_their_own_from_one_commit(
    gate: Tokens, join: Join, owner: psycopg.Connection, crowd: Crowd
) -> None:
    person = join("enterprise")
    gate.deduct_tokens(*person, INSIGHT)
    limit(requests_per_minute=10**6, tokens_per_request=10, failed_attempts=5)(gate, person, owner)
    keys = [str(uuid4()) for _ in range(32)]
    answers = crowd.run(
        gate, [charge(gate, person, INSIGHT, idempotency_key=k, limits=True) for k in keys]
    )
    assert [usage.remaining_balance for usage in answers] == list(range(498, 466, -1))
    rows = owner.execute(
        "select id, idempotency_key, remaining_balance, created_at from ai_token_usage_log"
        " where number > 1 order by number"
    ).fetchall()
    assert rows == [
        (usage.id, key, usage.remaining_balance, usage.created_at)
        for usage, key in zip(answers, keys, strict=True)
    ]
    assert commits(owner) == [1, 32]


def test_a_lone_caller_asks_alone(gate: Tokens, pro: Person, monkeypatch: Any) -> None:
    monkeypatch.setattr(gate.database, "tuples", None)
    for _ in range(3):
        assert gate.deduct_tokens(*pro, GOAL).tokens_deducted == 3


def test_a_few_do_not_wait_for_those_at_work(
    gate: Tokens, join: Join, owner: psycopg.Connection, crowd: Crowd, monkeypatch: Any
) -> None:
    """Nor for more than that: a third batch waits."""
    person = join("enterprise")
    gate.get_all_token_balances(person[0])
    with crowd.holding(gate):
        few = [Call(charge(gate, person, INSIGHT)) for _ in range(sharing.FEW - 1)]
        in_line(gate.shared, sharing.FEW - 1)
        monkeypatch.setattr(sharing, "AT_ONCE", 2)
        few.append(Call(charge(gate, person, INSIGHT)))
        # Somebody is at work all the while.
        left = 500 - sharing.FEW
        assert sorted(call.end().remaining_balance for call in few) == list(range(left, 500))
        assert commits(owner) == [sharing.FEW]
        with crowd.holding(gate, beside=True):
            many = [Call(charge(gate, person, INSIGHT)) for _ in range(2 * sharing.FEW)]
            in_line(gate.shared, 2 * sharing.FEW)
            assert all(call.running for call in many)
    least = left - 2 * sharing.FEW
    assert sorted(call.end().remaining_balance for call in many) == list(range(least, left))


def test_half_of_the_callers_do_not_wait_for_the_other_half(
    gate: Tokens, join: Join, owner: psycopg.Connection, crowd: Crowd, monkeypatch: Any
) -> None:
    """Of eight who were here at once four are worth a batch beside the one at work, three not."""
    person = join("enterprise")
    gate.get_all_token_balances(person[0])
    crowd.run(gate, [charge(gate, person, INSIGHT)] * 7)
    monkeypatch.setattr(sharing, "AT_ONCE", 2)
    with crowd.holding(gate):
        half = [Call(charge(gate, person, INSIGHT)) for _ in range(3)]
        in_line(gate.shared, 3)
        assert all(call.running for call in half)
        half.append(Call(charge(gate, person, INSIGHT)))
        assert sorted(call.end().remaining_balance for call in half) == list(range(489, 493))
    assert commits(owner) == [7, 4]


def test_turned_off_nobody_waits_in_line(
    token_database: TestDatabase, crowd: Crowd, tmp_path: Path
) -> None:
    url = token_database.url().replace("+psycopg", "")
    settings = Settings(data_dir=tmp_path, database_url=url, shared_commit=False)
    with connect(settings=settings) as gate:
        organization = gate.create_organization("Acme", "pro")
        person = organization, gate.add_member(organization, "A member", "member@example.org")
        with crowd.holding(gate):
            assert gate.deduct_tokens(*person, GOAL).remaining_balance == 17
            assert asyncio.run(gate.aio.deduct_tokens(*person, GOAL)).remaining_balance == 14


def test_costs_keys_units_and_metadata_of_each_are_their_own(
    gate: Tokens, join: Join, owner: psycopg.Connection, crowd: Crowd
) -> None:
    """Against the plain sum in order of arrival, on five wallets of three organizations."""
    chance = random.Random(19)  # noqa: S311
    people = [join("enterprise") for _ in range(3)]
    cost = {name: each.cost for name, each in gate.catalog().features.items()}
    kind = {name: each.token_type for name, each in gate.catalog().features.items()}
    for person in people:
        gate.get_all_token_balances(person[0])
    for _ in range(3):
        asked = [
            (
                chance.choice(people),
                chance.choice(list(cost)),
                chance.randint(1, 3),
                chance.choice(
                    [None, {"n": chance.random(), "text": 'a "b" \\ {é} 🙂', "l": [None]}]
                ),
                chance.choice([None, f"key {uuid4()} {{}}\"',\\"]),
            )
            for _ in range(40)
        ]
        balances = {
            (person, wallet.token_type): wallet.balance
            for person in people
            for wallet in gate.get_all_token_balances(person[0])
        }
        answers = crowd.run(gate, [charge(gate, *request) for request in asked])
        for (person, feature, units, metadata, key), usage in zip(asked, answers, strict=True):
            needed = cost[feature] * units
            balances[person, kind[feature]] -= needed
            found = owner.execute(
                "select organization_id, user_id, token_type, feature_used, units,"
                " tokens_deducted, remaining_balance, metadata, idempotency_key"
                " from ai_token_usage_log where id = %s",
                (usage.id,),
            ).fetchone()
            left = balances[person, kind[feature]]
            assert found == (*person, kind[feature], feature, units, needed, left, metadata, key)
            assert seen(usage) == (kind[feature], needed, 0, left, False)
    assert max(commits(owner)) == 40


def test_a_balance_that_runs_out_pays_for_those_that_came_first(
    gate: Tokens, pro: Person, owner: psycopg.Connection, crowd: Crowd
) -> None:
    """20 of goal_generation: of 3, 9, 6, 6 and 2 the second 6 does not fit, the 2 does."""
    gate.get_all_token_balances(pro[0])
    calls = [charge(gate, pro, GOAL, units) for units in (1, 3, 2, 2)]
    other = charge(gate, pro, INSIGHT)
    answers = crowd.run(gate, [*calls, other])
    assert [seen(a)[3] for a in (*answers[:3], answers[4])] == [17, 8, 2, 49]
    refused = answers[3]
    assert isinstance(refused, InsufficientTokens)
    assert (refused.needed, refused.available) == (6, 2)
    assert commits(owner) == [4]
    refusals = owner.execute("select rule, count from ai_token_refusals").fetchall()
    assert refusals == [("insufficient_tokens", 1)]


def test_from_many_threads_few_commits_make_many_charges(
    gate: Tokens, join: Join, owner: psycopg.Connection
) -> None:
    """Nobody holds the line here: 16 threads as they come, on one wallet and on many."""
    people = [join("enterprise") for _ in range(4)]
    for person in people:
        gate.get_all_token_balances(person[0])

    def work(place: int) -> int:
        chance = random.Random(place)  # noqa: S311
        return sum(
            gate.deduct_tokens(
                *chance.choice((people[0], *people)), INSIGHT, idempotency_key=str(uuid4())
            ).tokens_deducted
            for _ in range(20)
        )

    calls = [Call(partial(work, place)) for place in range(16)]
    assert [call.end() for call in calls] == [20] * 16
    made = commits(owner)
    assert sum(made) == 320
    assert len(made) <= 160


# Keys --------------------------------------------------------------------------------------------


def test_a_key_that_comes_twice_is_charged_once(
    gate: Tokens, pro: Person, join: Join, owner: psycopg.Connection, crowd: Crowd
) -> None:
    gate.get_all_token_balances(pro[0])
    once = charge(gate, pro, GOAL, idempotency_key="k")
    answers = crowd.run(
        gate,
        [
            once,
            charge(gate, pro, INSIGHT, idempotency_key="k"),
            once,
            charge(gate, join("pro"), GOAL, idempotency_key="k"),
            once,
        ],
    )
    assert isinstance(answers.pop(1), IdempotencyConflict)
    other = answers.pop(2)
    assert [usage.replayed for usage in answers] == [False, True, True]
    assert len({usage.id for usage in answers}) == 1
    assert not other.replayed
    again = crowd.run(gate, [once, charge(gate, pro, INSIGHT)])
    assert (again[0].id, again[0].replayed) == (answers[0].id, True)
    assert gate.get_token_balance(pro[0], "goal_generation").balance == 17


def test_a_key_that_is_held_is_in_progress(gate: Tokens, pro: Person, crowd: Crowd) -> None:
    held = gate.reserve(*pro, GOAL, idempotency_key="k")
    answers = crowd.run(
        gate, [charge(gate, pro, GOAL, idempotency_key="k"), charge(gate, pro, GOAL)]
    )
    assert type(answers[0]).__name__ == "InProgress"
    gate.release(held)
    gate.grant(pro[0], "forecast", 9, idempotency_key="given")
    answers = crowd.run(
        gate, [charge(gate, pro, GOAL, idempotency_key="given"), charge(gate, pro, GOAL)]
    )
    assert isinstance(answers[0], IdempotencyConflict)


def test_two_gates_share_keys_and_a_wallet(
    gate: Tokens, token_database: TestDatabase, pro: Person, owner: psycopg.Connection, crowd: Crowd
) -> None:
    """As two processes do: each with a crew of its own, and the same keys in both."""
    gate.get_all_token_balances(pro[0])
    keys = [f"k{n}" for n in range(20)]
    with Tokens(Database(token_database.url(), pool_size=32, retry=PATIENT)) as other:
        with crowd.holding(gate), crowd.holding(other):
            calls = []
            for each in (gate, other):
                for place, key in enumerate(keys):
                    calls.append(Call(charge(each, pro, INSIGHT, idempotency_key=key)))
                    in_line(each.shared, place + 1)
        answers = [call.end() for call in calls]
    assert len({usage.id for usage in answers}) == 20
    assert sum(usage.replayed for usage in answers) == 20
    assert gate.get_token_balance(pro[0], "general").balance == 30
    assert owner.execute("select count(*) from ai_token_usage_log").fetchone() == (20,)


# Whoever is locked elsewhere ---------------------------------------------------------------------


def test_a_wallet_that_is_locked_elsewhere_holds_nobody_else_up(
    gate: Tokens, join: Join, token_database: TestDatabase, owner: psycopg.Connection, crowd: Crowd
) -> None:
    stuck, free = join("enterprise"), join("enterprise")
    for person in (stuck, free):
        gate.get_all_token_balances(person[0])
    with token_database.connect() as holder:
        holder.execute("begin")
        holder.execute("select from ai_tokens where organization_id = %s for update", (stuck[0],))
        calls = crowd.start(gate, [charge(gate, p, INSIGHT) for p in (stuck, free, stuck, free)])
        assert [calls[place].end().remaining_balance for place in (1, 3)] == [499, 498]
        # Whoever comes later goes past them too; or waits with them.
        later = crowd.start(gate, [charge(gate, free, INSIGHT), charge(gate, free, INSIGHT)])
        assert [call.end().remaining_balance for call in later] == [497, 496]
        until(lambda: len(gate.shared._lines) == 1)
        more = [Call(charge(gate, stuck, INSIGHT)) for _ in range(10)]
        [line] = gate.shared._lines.values()
        until(lambda: len(line.waiting) == 10)
        assert all(call.running for call in (calls[0], calls[2], *more))
        holder.execute("commit")
    left = [call.end().remaining_balance for call in (calls[0], calls[2])]
    assert left == [499, 498]
    assert sorted(call.end().remaining_balance for call in more) == list(range(488, 498))
    assert not gate.shared._lines
    # Waiting for the wallet they were still one crew, and so were those who came after them.
    assert sorted(commits(owner)) == [2, 2, 2, 10]


@pytest.mark.parametrize("name", ["user", "key"])
def test_a_person_or_key_that_is_in_other_hands_is_waited_for_by_its_own(
    name: str,
    gate: Tokens,
    join: Join,
    token_database: TestDatabase,
    owner: psycopg.Connection,
    crowd: Crowd,
) -> None:
    """As another process holds them while it charges with limits, or with that key."""
    mine, other = join("enterprise"), join("enterprise")
    for person in (mine, other):
        gate.get_all_token_balances(person[0])
        limit(requests_per_minute=100)(gate, person, owner)
    with token_database.connect() as holder:
        locked = {"user": f"user {mine[1]}", "key": "key k"}[name]
        holder.execute("begin")
        holder.execute(
            "select pg_advisory_xact_lock(hashtextextended(%s, hashtextextended(%s, 0)))",
            (locked, str(mine[0])),
        )
        calls = crowd.start(
            gate,
            [
                charge(gate, mine, INSIGHT, idempotency_key="k", limits=True),
                charge(gate, mine, INSIGHT, idempotency_key="other"),
                charge(gate, other, INSIGHT, idempotency_key="k", limits=True),
            ],
        )
        assert [call.end().remaining_balance for call in calls[1:]] == [499, 499]
        assert calls[0].running
        holder.execute("commit")
    assert calls[0].end().remaining_balance == 498


def test_a_caller_who_is_stuck_alone_holds_nobody_else_up(
    join: Join, token_database: TestDatabase
) -> None:
    """The lone caller waits for a lock; those who come meanwhile do not wait for the caller."""
    url = f"{token_database.url()}&options=-c%20lock_timeout%3D0"
    with Tokens(Database(url, pool_size=32, retry=PATIENT)) as gate:
        _stuck_alone(gate, join, token_database)


def _stuck_alone(gate: Tokens, join: Join, token_database: TestDatabase) -> None:
    stuck, free = join("enterprise"), join("enterprise")
    for person in (stuck, free):
        gate.get_all_token_balances(person[0])
    with token_database.connect() as holder:
        holder.execute("begin")
        holder.execute("select from ai_tokens where organization_id = %s for update", (stuck[0],))
        alone = Call(charge(gate, stuck, INSIGHT))
        until(lambda: len(gate.shared._main.begun) == 1)
        [begun] = gate.shared._main.begun
        calls = [Call(charge(gate, free, INSIGHT)) for _ in range(8)]
        assert sorted(call.end().remaining_balance for call in calls) == list(range(492, 500))
        assert gate.shared._main.begun[0] == begun  # the same attempt, all the while
        holder.execute("commit")
    assert alone.end().remaining_balance == 499


def test_who_waits_too_long_gives_up_uncharged(
    token_database: TestDatabase, pro: Person, owner: psycopg.Connection, monkeypatch: Any
) -> None:
    retry = Retry(deadline=0.2, again=False)
    with Tokens(Database(token_database.url(), retry=retry)) as gate:
        gate.get_all_token_balances(pro[0])
        monkeypatch.setattr("tokenlib.sharing._Line.free", lambda line, _now: not line.begun)
        monkeypatch.setattr(sharing, "AT_ONCE", 1)
        crowd = Crowd.__new__(Crowd)
        with crowd.holding(gate), pytest.raises(DatabaseUnavailable) as raised:
            gate.deduct_tokens(*pro, GOAL)
        assert raised.value.outcome == "not_charged"
        assert waiting(gate.shared) == 0
    assert commits(owner) == []


# Everything that is not plain: the same answer as alone ------------------------------------------


Setting = Callable[[Tokens, Person, psycopg.Connection], Any]


def limit(**limits: object) -> Setting:
    """Limits of this organization; what is not named is off."""
    row = {
        "requests_per_minute": None,
        "seconds_between_requests": None,
        "tokens_per_request": None,
        "output_units_per_request": None,
        "failed_attempts": None,
        **limits,
    }
    columns = ", ".join(row)

    def setting(tokens: Tokens, person: Person, owner: psycopg.Connection) -> None:
        owner.execute(
            f"insert into ai_token_limits (organization_id, {columns})"  # noqa: S608 - our names
            f" values (%s, {', '.join(['%s'] * len(row))})",
            (person[0], *row.values()),
        )

    return setting


def failed_attempts(tokens: Tokens, person: Person, owner: psycopg.Connection) -> None:
    for _ in range(5):
        tokens.failed_attempt(person[1], "nonsense")


def another_plan(tokens: Tokens, person: Person, owner: psycopg.Connection) -> None:
    owner.execute("update organizations set plan = 'enterprise' where id = %s", (person[0],))


def no_wallets(tokens: Tokens, person: Person, owner: psycopg.Connection) -> None:
    owner.execute("delete from user_profiles where id = %s", (person[1],))
    owner.execute("insert into user_profiles (id, organization_id) values (%s, %s)", person[::-1])


def unlimited(tokens: Tokens, person: Person, owner: psycopg.Connection) -> None:
    owner.execute(
        "insert into ai_token_organization_allowances values (%s, 'goal_generation', null)",
        (person[0],),
    )
    tokens.change_plan(person[0], "enterprise", **WHO)


def empty(tokens: Tokens, person: Person, owner: psycopg.Connection) -> None:
    tokens.deduct_tokens(*person, GOAL, 6)


def pack(tokens: Tokens, person: Person, owner: psycopg.Connection) -> None:
    empty(tokens, person, owner)
    tokens.upgrade_tokens(person[0], "shared", 50)


def about_to_expire(tokens: Tokens, person: Person, owner: psycopg.Connection) -> None:
    now = owner.execute("select tokenlib.clock()").fetchone()
    assert now is not None
    tokens.grant(person[0], "goal_generation", 7, expires_at=now[0] + timedelta(seconds=30))


def given_without_plan(tokens: Tokens, person: Person, owner: psycopg.Connection) -> None:
    tokens.change_plan(person[0], "starter", **WHO)
    tokens.grant(person[0], "goal_generation", 50)


SETTINGS: dict[str, tuple[Setting, dict[str, Any]]] = {
    "nothing": (lambda *_: None, {}),
    "limits": (lambda *_: None, {"limits": True}),
    "paused user": (lambda t, p, _: t.pause_user(*p, **WHO), {}),
    "suspended": (lambda t, p, _: t.set_status(p[0], "suspended", **WHO), {}),
    "payment failed": (lambda t, p, _: t.set_status(p[0], "limited", **WHO), {}),
    "grace over": (lambda t, p, _: t.set_status(p[0], "expired", **WHO), {}),
    "mode log only": (lambda t, p, _: t.set_mode("log_only", p[0], **WHO), {}),
    "mode off": (lambda t, p, _: t.set_mode("off", p[0], **WHO), {}),
    "mode enforce": (lambda t, p, _: t.set_mode("enforce", p[0], **WHO), {}),
    "not in the plan": (lambda t, p, _: t.change_plan(p[0], "starter", **WHO), {}),
    "not in the plan, but given": (given_without_plan, {}),
    "no requests": (limit(requests_per_minute=0), {"limits": True}),
    "one request": (limit(requests_per_minute=1), {"limits": True}),
    "one request, limits off": (limit(requests_per_minute=1), {}),
    "seconds between": (limit(seconds_between_requests=30), {"limits": True}),
    "tokens per request": (limit(tokens_per_request=2), {"limits": True}),
    "tokens per request fit": (limit(tokens_per_request=3), {"limits": True}),
    "output units": (
        limit(output_units_per_request=9),
        {"limits": True, "metadata": {"output_units": 10}},
    ),
    "output units fit": (
        limit(output_units_per_request=9),
        {"limits": True, "metadata": {"output_units": 9}},
    ),
    "output units, limits off": (
        limit(output_units_per_request=9),
        {"metadata": {"output_units": 10}},
    ),
    "output units, no limit": (limit(), {"limits": True, "metadata": {"output_units": 10**9}}),
    "failed attempts": (failed_attempts, {"limits": True}),
    "failed attempts, limits off": (failed_attempts, {}),
    "unknown feature": (lambda *_: None, {"feature": "nonsense"}),
    "too dear": (lambda *_: None, {"units": 7}),
    "empty": (empty, {}),
    "pays the pack": (pack, {}),
    "unlimited": (unlimited, {"units": 500}),
    "plan changed outside": (another_plan, {}),
    "no wallets yet": (no_wallets, {}),
    "grant expires": (about_to_expire, {"units": 9}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_answer_in_a_crew_is_the_one_alone(
    name: str,
    gate: Tokens,
    join: Join,
    owner: psycopg.Connection,
    token_clock: TestClock,
    crowd: Crowd,
) -> None:
    """Two organizations, the same past: one calls alone, the other beside others; twice each."""
    setting, changes = SETTINGS[name]
    by_itself, in_company, company = join("pro"), join("pro"), join("pro")
    if name != "no wallets yet":
        for person in (by_itself, in_company, company):
            gate.get_all_token_balances(person[0])
    for person in (by_itself, in_company):
        setting(gate, person, owner)
    token_clock.advance(timedelta(minutes=2))  # what the setting did is no request of this minute
    if name == "failed attempts":
        for person in (by_itself, in_company):
            setting(gate, person, owner)

    def ask(person: Person) -> Callable[[], Usage]:
        return lambda: gate.deduct_tokens(*person, **{"feature": GOAL, **changes})

    alone: list[Any] = []
    for _ in range(2):
        try:
            alone.append(ask(by_itself)())
        except TokenlibError as error:
            alone.append(error)
    beside = charge(gate, company, GOAL)
    one, first, two, second, three = crowd.run(
        gate, [beside, ask(in_company), beside, ask(in_company), beside]
    )
    if name in ("seconds between", "one request", "paused user"):
        assert any(isinstance(answer, TokenlibError) for answer in alone)
    # Those two may overtake each other.
    in_crew = [seen(first), seen(second)]
    assert sorted(map(str, in_crew)) == sorted(str(seen(answer)) for answer in alone)
    assert [seen(each)[3] for each in (one, two, three)] == [17, 14, 11]
    refusals = {
        person: owner.execute(
            "select rule, feature, needed, available, data, sum(count)::int from ai_token_refusals"
            " where organization_id = %s group by 1, 2, 3, 4, 5 order by 1, 2, 3, 4",
            (person[0],),
        ).fetchall()
        for person in (by_itself, in_company)
    }
    assert refusals[in_company] == refusals[by_itself]
    wallets = [gate.get_all_token_balances(person[0]) for person in (by_itself, in_company)]
    figures = [
        [(w.token_type, w.balance, w.reserved, w.total_used, w.total_allocated) for w in found]
        for found in wallets
    ]
    assert figures[0] == figures[1]


def test_a_stranger_is_refused_in_company(gate: Tokens, join: Join, crowd: Crowd) -> None:
    person, other = join("pro"), join("pro")
    for each in (person, other):
        gate.get_all_token_balances(each[0])
    answers = crowd.run(
        gate, [charge(gate, person, GOAL), charge(gate, (person[0], other[1]), GOAL)]
    )
    assert seen(answers[0])[3] == 17
    assert type(answers[1]).__name__ == "NotAMember"


def test_the_mode_for_everybody_reaches_a_crew(gate: Tokens, pro: Person, crowd: Crowd) -> None:
    gate.get_all_token_balances(pro[0])
    gate.set_mode("log_only", **WHO)
    answers = crowd.run(gate, [charge(gate, pro, GOAL) for _ in range(3)])
    assert [usage.tokens_waived for usage in answers] == [3, 3, 3]


@pytest.mark.parametrize("many", [False, True])
def test_limits_count_the_earlier_ones_of_the_commit(
    gate: Tokens, join: Join, owner: psycopg.Connection, crowd: Crowd, many: bool
) -> None:
    """Two wallets, one of two in a hold: nobody's sixth request of the minute passes."""
    person = join("enterprise")
    gate.get_all_token_balances(person[0])
    before = 2
    allowed = 5
    if many:
        # Above a thousand the gate reckons with entry numbers, and counts only near the limit.
        allowed = 1005
        gate.grant(person[0], "general", 1000)
        one = gate.charge_request(*person, INSIGHT)
        asked = batches.lists([one] * 1000, batches.new_ids(1000), wait=False)
        assert len(gate.database.tuples(statements("gate")["deduct_many"], asked, 60)) == 1000
    gate.release(gate.reserve(*person, INSIGHT))
    gate.deduct_tokens(*person, GOAL)
    limit(requests_per_minute=allowed)(gate, person, owner)
    calls = [
        charge(gate, person, feature, limits=True)
        for feature in (GOAL, INSIGHT, GOAL, INSIGHT, GOAL, INSIGHT)
    ]
    answers = crowd.run(gate, calls)
    charged = [answer for answer in answers if isinstance(answer, Usage)]
    assert len(charged) == 5 - before
    assert sum(isinstance(answer, RateLimited) for answer in answers) == 6 - len(charged)


# Faults ------------------------------------------------------------------------------------------


def test_an_error_of_one_is_nobody_else_s(
    gate: Tokens, pro: Person, owner: psycopg.Connection, crowd: Crowd
) -> None:
    """A cost that no number holds fails the whole statement; then each is asked for alone."""
    gate.get_all_token_balances(pro[0])
    owner.execute("update ai_token_features set cost = %s where feature = %s", (2**62, STRATEGY))
    answers = crowd.run(
        gate, [charge(gate, pro, GOAL), charge(gate, pro, STRATEGY, 9), charge(gate, pro, GOAL)]
    )
    assert isinstance(answers[1], InvalidInput)
    assert sorted(seen(answers[place])[3] for place in (0, 2)) == [14, 17]


@pytest.fixture
def blocked(token_database: TestDatabase) -> Iterator[Callable[[], None]]:
    """Nobody can write the log. Call it to end the server process that tries."""
    with (
        token_database.connect() as holder,
        token_database.connect("postgres") as operator,
    ):
        holder.execute("begin")
        holder.execute("lock table ai_token_usage_log in share mode")

        def end() -> None:
            query = (
                "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type ="
                " 'Lock' and query like '%%deduct_many%%' and datname = %s"
            )
            until(lambda: bool(operator.execute(query, (token_database.name,)).fetchall()))
            holder.execute("commit")

        yield end


def test_a_server_process_that_dies_costs_nobody_twice(
    gate: Tokens, pro: Person, owner: psycopg.Connection, crowd: Crowd, blocked: Callable[[], None]
) -> None:
    """With a key it is asked again; without one the caller is told that nobody knows."""
    gate.get_all_token_balances(pro[0])
    keys = [*(f"k{n}" for n in range(10)), None, None]
    calls = crowd.start(gate, [charge(gate, pro, INSIGHT, idempotency_key=key) for key in keys])
    blocked()
    answers = [call.end() for call in calls]
    for answer in answers[10:]:
        assert isinstance(answer, DatabaseUnavailable)
        assert answer.outcome == "unknown"
    assert sorted(usage.remaining_balance for usage in answers[:10]) == list(range(40, 50))
    logged = owner.execute("select count(*) from ai_token_usage_log").fetchone()
    assert logged == (10,)


def test_a_reply_that_is_lost_after_the_commit_is_asked_for_again(
    gate: Tokens, pro: Person, owner: psycopg.Connection, crowd: Crowd, monkeypatch: Any
) -> None:
    gate.get_all_token_balances(pro[0])
    tuples = gate.database.tuples

    def lost(*args: Any) -> Any:
        tuples(*args)
        raise DatabaseUnavailable("no reply in time", "unknown")

    monkeypatch.setattr(gate.database, "tuples", lost)
    keys = ["a", "b", None]
    answers = crowd.run(gate, [charge(gate, pro, INSIGHT, idempotency_key=key) for key in keys])
    assert [usage.replayed for usage in answers[:2]] == [True, True]
    assert isinstance(answers[2], DatabaseUnavailable)
    assert gate.get_token_balance(pro[0], "general").balance == 47


def test_a_leader_who_is_interrupted_strands_nobody(
    gate: Tokens, pro: Person, crowd: Crowd, monkeypatch: Any
) -> None:
    gate.get_all_token_balances(pro[0])

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(gate.database, "tuples", interrupted)
    calls = [charge(gate, pro, INSIGHT, idempotency_key=f"k{n}") for n in range(4)]
    *answers, keyless = crowd.run(gate, [*calls, charge(gate, pro, INSIGHT)])
    assert isinstance(answers[0], KeyboardInterrupt)
    # Nobody knows whether the statement that was interrupted went through.
    assert isinstance(keyless, DatabaseUnavailable)
    assert keyless.outcome == "unknown"
    assert sorted(usage.remaining_balance for usage in answers[1:]) == [47, 48, 49]
    monkeypatch.undo()
    assert gate.deduct_tokens(*pro, INSIGHT).remaining_balance == 46


def test_who_is_interrupted_in_line_leaves_it(gate: Tokens, pro: Person, crowd: Crowd) -> None:
    """Told to lead in the very moment: then the next one leads."""
    gate.get_all_token_balances(pro[0])
    from tokenlib.sharing import Caller

    with crowd.holding(gate):
        first = Caller({"organization_id": pro[0]})
        assert not gate.shared.enter(first)
        call = Call(charge(gate, pro, INSIGHT))
        in_line(gate.shared, 2)
    assert first.crew
    gate.shared.leave(first)
    assert call.end().remaining_balance == 49


def test_a_forked_process_finds_no_line(pro: Person) -> None:
    """Its parent held the lock, and had somebody at work."""
    script = """
import os, sys
from tokenlib.sharing import Caller, SharedCommit
shared = SharedCommit(None)
assert shared.enter(Caller({"organization_id": None}))
shared._mutex.acquire()
child = os.fork()
if not child:
    os._exit(0 if shared.enter(Caller({"organization_id": None})) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


# Awaited -----------------------------------------------------------------------------------------


def test_awaited_charges_share_a_commit_without_a_thread_each(
    gate: Tokens, join: Join, owner: psycopg.Connection, crowd: Crowd
) -> None:
    person = join("enterprise")
    gate.get_all_token_balances(person[0])

    async def ask() -> list[Any]:
        with crowd.holding(gate):
            asked = [
                asyncio.ensure_future(
                    gate.aio.deduct_tokens(
                        *person, INSIGHT, metadata={"n": n}, idempotency_key=f"k{n}"
                    )
                )
                for n in range(50)
            ]
            asked.append(asyncio.ensure_future(gate.aio.deduct_tokens(*person, INSIGHT, 1000)))
            gone = asyncio.ensure_future(gate.aio.deduct_tokens(*person, INSIGHT))
            while waiting(gate.shared) < 52:
                await asyncio.sleep(0)
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone
            assert waiting(gate.shared) == 51
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(ask())
    assert isinstance(answers.pop(), InsufficientTokens)
    assert [usage.remaining_balance for usage in answers] == list(range(499, 449, -1))
    assert commits(owner) == [50]


def test_a_leader_who_is_refused_keeps_the_one_thread(
    gate: Tokens, join: Join, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to lead, then that nothing was charged: the thread of the first asks alone, too."""
    person = join("enterprise")
    gate.get_all_token_balances(person[0])
    at_work: list[Any] = []
    carry_out = gate.carry_out

    def counted(*args: Any) -> Usage:
        at_work.append(args)
        return carry_out(*args)

    monkeypatch.setattr(gate, "carry_out", counted)

    async def ask() -> list[Any]:
        with crowd.holding(gate):
            asked = [
                asyncio.ensure_future(gate.aio.deduct_tokens(*person, INSIGHT, units))
                for units in (1000, 1)
            ]
            while waiting(gate.shared) < 2:
                await asyncio.sleep(0)
        return await asyncio.gather(*asked, return_exceptions=True)

    refused, charged = asyncio.run(ask())
    assert isinstance(refused, InsufficientTokens)
    assert charged.remaining_balance == 499
    assert len(at_work) == 1


def test_awaited_charges_go_through_as_they_come(
    gate: Tokens, join: Join, owner: psycopg.Connection
) -> None:
    """200 at once, malformed ones and refused ones among them."""
    person = join("enterprise")
    gate.get_all_token_balances(person[0])

    async def ask() -> list[Any]:
        calls = [gate.aio.deduct_tokens(*person, INSIGHT) for _ in range(200)]
        calls.append(gate.aio.deduct_tokens(*person, INSIGHT, 0))
        calls.append(gate.aio.deduct_tokens(person[0], uuid4(), INSIGHT))
        return await asyncio.gather(*calls, return_exceptions=True)

    *charged, malformed, stranger = asyncio.run(ask())
    assert isinstance(malformed, InvalidInput)
    assert type(stranger).__name__ == "NotAMember"
    assert sorted(usage.remaining_balance for usage in charged) == list(range(300, 500))
    assert len(commits(owner)) < 100
