"""Refunds: a charge comes back once, in its period as balance, later as a grant of one period."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import AlreadyRefunded, InvalidInput, NothingToRefund, Tokens, UnknownUsage
from tokenlib.testing import TestClock

Person = tuple[UUID, UUID]

pytestmark = pytest.mark.usefixtures("books_close")


def figures(tokens: Tokens, person: Person, token_type: str = "goal_generation") -> tuple[int, int]:
    """Balance, used."""
    wallet = tokens.get_token_balance(person[0], token_type)
    assert wallet.total_allocated == wallet.balance + wallet.reserved + wallet.total_used
    return wallet.balance, wallet.total_used


def test_within_the_period_a_refund_lowers_what_was_used(
    tokens: Tokens, pro: Person, owner: psycopg.Connection
) -> None:
    usage = tokens.deduct_tokens(*pro, "generate_goal", 2)
    back = tokens.refund(usage, "the model answered nonsense", actor="support")
    assert (back.tokens_deducted, back.remaining_balance) == (6, 20)
    assert figures(tokens, pro) == (20, 0)
    entries = owner.execute(
        "select balance_change, used_change, actor, reason, subject_id from ai_token_events"
        " where kind = 'refund'"
    ).fetchall()
    assert entries == [(6, -6, "support", "the model answered nonsense", usage.id)]
    # The log keeps the charge: usage figures are gross.
    log = owner.execute("select tokens_deducted from ai_token_usage_log").fetchall()
    assert log == [(6,)]


def test_a_charge_is_refunded_once(tokens: Tokens, pro: Person) -> None:
    usage = tokens.deduct_tokens(*pro, "generate_goal")
    tokens.refund(usage.id, "nonsense", organization=pro[0])
    with pytest.raises(AlreadyRefunded):
        tokens.refund(usage, "nonsense")
    assert figures(tokens, pro) == (20, 0)


def test_after_its_period_a_refund_is_a_grant_of_one_period(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    usage = tokens.deduct_tokens(*pro, "generate_goal")
    token_clock.advance(timedelta(days=45))
    tokens.deduct_tokens(*pro, "generate_goal")
    tokens.refund(usage, "found late")
    assert figures(tokens, pro) == (20, 3)
    # It survives the refresh on day 60 and ends on day 75.
    token_clock.set(noon + timedelta(days=75) - timedelta(microseconds=1))
    assert figures(tokens, pro) == (23, 0)
    token_clock.set(noon + timedelta(days=75))
    assert figures(tokens, pro) == (20, 0)


def test_a_waived_charge_has_nothing_to_give_back(tokens: Tokens, pro: Person) -> None:
    tokens.set_mode("off", pro[0], actor="test", reason="outage")
    usage = tokens.deduct_tokens(*pro, "generate_goal")
    with pytest.raises(NothingToRefund):
        tokens.refund(usage, "nonsense")
    assert figures(tokens, pro) == (20, 0)


def test_a_refund_goes_back_to_the_pack_that_paid(tokens: Tokens, pro: Person) -> None:
    tokens.upgrade_tokens(pro[0], "shared", 500)
    usage = tokens.deduct_tokens(*pro, "generate_goal", 30)
    assert (usage.token_type, usage.remaining_balance) == ("shared", 410)
    tokens.refund(usage, "nonsense")
    assert figures(tokens, pro, "shared") == (500, 0)
    assert figures(tokens, pro) == (20, 0)


def test_a_refund_returns_to_what_was_burnt_last(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    tokens.grant(pro[0], "goal_generation", 4, expires_at=noon + timedelta(days=2))
    token_clock.advance(timedelta(days=1))
    usage = tokens.deduct_tokens(*pro, "generate_goal", 2)  # 4 of the gift, 2 of the allowance
    token_clock.advance(timedelta(days=1))  # the gift ends, all used
    assert figures(tokens, pro) == (18, 6)
    tokens.refund(usage, "nonsense")
    # 2 return to the allowance; 4 come from a gift that is over, so they live one period.
    assert figures(tokens, pro) == (24, 0)
    token_clock.set(noon + timedelta(days=30))
    assert figures(tokens, pro) == (24, 0)
    token_clock.set(noon + timedelta(days=32))
    assert figures(tokens, pro) == (20, 0)


def test_a_refund_does_not_return_to_what_an_earlier_period_burnt(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    tokens.upgrade_tokens(pro[0], "goal_generation", 100)
    tokens.deduct_tokens(*pro, "generate_goal", 10)  # the allowance and 10 of the purchase
    token_clock.set(noon + timedelta(days=30))
    usage = tokens.deduct_tokens(*pro, "generate_goal")
    tokens.grant(pro[0], "goal_generation", 1, expires_at=noon + timedelta(days=31))
    tokens.refund(usage, "nonsense")
    assert figures(tokens, pro) == (20 + 90 + 1, 0)
    # The 3 came back to the allowance, and end with it.
    token_clock.set(noon + timedelta(days=60))
    assert figures(tokens, pro) == (20 + 90, 0)


def test_a_refund_after_a_downgrade_is_not_lost(tokens: Tokens, pro: Person) -> None:
    tokens.change_plan(pro[0], "enterprise")
    usage = tokens.deduct_tokens(*pro, "generate_goal", 30)
    tokens.change_plan(pro[0], "pro")
    assert figures(tokens, pro) == (0, 90)
    tokens.refund(usage, "nonsense")
    wallet_after = figures(tokens, pro)
    assert wallet_after[1] == 0
    assert wallet_after[0] >= 20
    tokens.change_plan(pro[0], "enterprise")
    assert figures(tokens, pro) == (200, 0)


def test_a_refund_of_a_partly_used_hold_gives_back_what_was_charged(
    tokens: Tokens, pro: Person
) -> None:
    held = tokens.reserve(*pro, "generate_goal", 4)
    usage = tokens.deduct(held, 1)
    live = tokens.reserve(*pro, "generate_goal", 5)
    assert tokens.refund(usage, "nonsense").tokens_deducted == 3
    assert figures(tokens, pro) == (5, 0)
    tokens.release(live)
    assert figures(tokens, pro) == (20, 0)


@pytest.mark.one_node
@pytest.mark.parametrize("reason", ["", "   "])
def test_a_refund_says_why(tokens: Tokens, pro: Person, reason: str) -> None:
    usage = tokens.deduct_tokens(*pro, "generate_goal")
    with pytest.raises(InvalidInput) as refused:
        tokens.refund(usage, reason)
    assert refused.value.field == "reason"
    assert figures(tokens, pro) == (17, 3)


def test_a_refund_names_a_charge_of_its_organization(tokens: Tokens, pro: Person) -> None:
    usage = tokens.deduct_tokens(*pro, "generate_goal")
    other = tokens.create_organization("Other", "pro")
    with pytest.raises(UnknownUsage):
        tokens.refund(usage.id, "nonsense", organization=other)
    with pytest.raises(UnknownUsage):
        tokens.refund(uuid4(), "nonsense", organization=pro[0])
    with pytest.raises(InvalidInput) as refused:
        tokens.refund(usage.id, "nonsense")
    assert refused.value.field == "organization"
    assert figures(tokens, pro) == (17, 3)
