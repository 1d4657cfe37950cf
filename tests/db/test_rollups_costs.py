"""What another cost would have done: from what the closing keeps, and from the log alone."""

# ruff: noqa: S311 - chance is no secret

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random

import psycopg
import pytest

from tests.db.conftest import Person
from tokenlib import InsufficientTokens, NothingToRefund, Tokens
from tokenlib.domain import Usage
from tokenlib.reports import Reports
from tokenlib.reports.settings import CostPreview
from tokenlib.testing import TestClock

DAY = timedelta(days=1)
FEATURES = ("generate_insight", "analyze_efficiency", "generate_goal")
COSTS = (1, 2, 3, 7, 40)


class Plain(Reports):
    """The same questions, answered from the log alone."""

    @property
    def _closed(self) -> str:
        return ""


def previews(reports: Reports) -> list[CostPreview]:
    return [
        reports.preview_cost(feature, cost, limit)
        for feature in FEATURES
        for cost, limit in zip(COSTS, (50, 1, 50, 3, 2), strict=True)
    ]


def act(tokens: Tokens, chance: Random, person: Person, charged: list[Usage]) -> None:
    """One thing of those that move a balance, or whether it has a limit."""
    feature, units = chance.choice(FEATURES), chance.randrange(1, 6)
    match chance.randrange(12):
        case 0:
            held = tokens.reserve(*person, feature, units)
            if chance.random() < 0.5:
                charged.append(tokens.deduct(held, units=chance.randrange(1, units + 1)))
            elif chance.random() < 0.5:
                tokens.release(held)
        case 1:
            if charged:
                tokens.refund(charged.pop(), "a test")  # also of what the switch let through
        case 2:
            tokens.grant(person[0], "general", chance.randrange(1, 30), reason="a test")
        case 3:
            plan = chance.choice(("pro", "pro", "enterprise"))
            tokens.change_plan(person[0], plan, actor="a test")
        case 4:
            tokens.set_mode(
                chance.choice(("off", "enforce")), person[0], actor="a test", reason="a test"
            )
        case _:
            charged.append(tokens.deduct_tokens(*person, feature, units))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_every_cost_is_answered_as_the_log_answers_it(
    seed: int,
    tokens: Tokens,
    noon: datetime,
    token_clock: TestClock,
    join: Callable[[str], Person],
    owner: psycopg.Connection,
) -> None:
    """Charges, holds, refunds, gifts, refreshes and changes of plan over two months of a gate."""
    chance = Random(seed)
    kept, plain = Reports(tokens.database), Plain(tokens.database)
    people = [join(chance.choice(("pro", "pro", "enterprise"))) for _ in range(4)]
    charged: dict[Person, list[Usage]] = {person: [] for person in people}
    ran_out, compared = 0, 0
    for _ in range(220):
        token_clock.advance(timedelta(hours=chance.choice((0.01, 0.05, 0.1, 1, 5, 20))))
        person = chance.choice(people)
        try:
            act(tokens, chance, person, charged[person])
        except InsufficientTokens:
            ran_out += 1
        except NothingToRefund:
            pass  # it was waived
        if chance.random() < 0.4:
            token_clock.advance(timedelta(minutes=7))
            tokens.close_usage()
        if chance.random() < 0.15:
            token_clock.advance(timedelta(seconds=1))
            found, now = previews(kept), token_clock.now()
            row = owner.execute("select windows_to from ai_token_usage_closed").fetchone()
            if row and row[0] and row[0].date() != now.date():
                assert found[0].since <= now.replace(hour=0, minute=0, second=0) - 30 * DAY
                continue  # a first day more, until the day is closed for the first time
            assert found == previews(plain)
            compared += any(one.run_outs for one in found)
    assert ran_out
    assert compared > 5
    before = states(owner)
    tokens.close_usage()
    tokens.close_usage()
    closed = states(owner)
    assert len(closed) > 10
    tokens.close_usage(anew=True)
    assert before
    assert states(owner) == closed


def states(owner: psycopg.Connection) -> list[tuple[object, ...]]:
    return owner.execute("select * from ai_token_usage_costs order by 1, 2, 3").fetchall()
