"""Charges that share a commit get the answer that each of them gets alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.db.charging import (
    GOAL,
    INSIGHT,
    WHO,
    Join,
    Person,
    Setting,
    charge,
    limit,
    seen,
)
from tests.db.crowd import Crowd
from tokenlib import (
    RateLimited,
    TokenlibError,
    Tokens,
    Usage,
    batches,
)
from tokenlib.db import statements
from tokenlib.testing import TestClock

pytestmark = pytest.mark.usefixtures("books_close")


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
