"""Grants: when they arrive, what burns first, what survives, and packs that pay for everything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import (
    FeatureNotInPlan,
    IdempotencyConflict,
    InsufficientTokens,
    InvalidInput,
    Tokens,
    UnknownOrganization,
    UnknownTokenType,
)
from tokenlib.testing import TestClock

Person = tuple[UUID, UUID]

pytestmark = pytest.mark.usefixtures("books_close")

GOAL = "goal_generation"
DAY = timedelta(days=1)


def balance(tokens: Tokens, person: Person, token_type: str = GOAL) -> int:
    wallet = tokens.get_token_balance(person[0], token_type)
    assert wallet.total_allocated == wallet.balance + wallet.reserved + wallet.total_used
    return wallet.balance


def test_a_grant_adds_to_the_balance_at_once(
    tokens: Tokens, noon: datetime, pro: Person, owner: psycopg.Connection
) -> None:
    grant = tokens.grant(
        pro[0], GOAL, 10, source="campaign", actor="support", reason="sorry", expires_at=noon + DAY
    )
    assert (grant.amount, grant.balance, grant.kind) == (10, 30, "gift")
    assert (grant.effective_at, grant.expires_at) == (noon, noon + DAY)
    entries = owner.execute(
        "select balance_change, balance_after, actor, reason, subject_id from ai_token_events"
        " where kind = 'grant'"
    ).fetchall()
    assert entries == [(10, 30, "support", "sorry", grant.id)]


def test_usage_is_settled_into_grants_in_the_order_of_time(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    """Allowance 20, 15 used on day 5, a gift of 10 for days 10 to 12: on day 13 there are 5."""
    tokens.grant(pro[0], GOAL, 10, effective_at=noon + 10 * DAY, expires_at=noon + 12 * DAY)
    token_clock.set(noon + 5 * DAY)
    tokens.deduct_tokens(*pro, "generate_goal", 5)
    assert balance(tokens, pro) == 5
    token_clock.set(noon + 13 * DAY)
    assert balance(tokens, pro) == 5


@pytest.mark.parametrize(("day", "left"), [(9, 5), (10, 15), (11, 15), (12, 5)])
def test_a_grant_lives_from_its_first_moment_to_its_last(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock, day: int, left: int
) -> None:
    tokens.grant(pro[0], GOAL, 10, effective_at=noon + 10 * DAY, expires_at=noon + 12 * DAY)
    tokens.deduct_tokens(*pro, "generate_goal", 5)
    token_clock.set(noon + day * DAY)
    assert balance(tokens, pro) == left


def test_what_expires_first_burns_first(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    tokens.grant(pro[0], GOAL, 5)  # never
    tokens.grant(pro[0], GOAL, 5, expires_at=noon + 40 * DAY)  # after the allowance
    tokens.grant(pro[0], GOAL, 5, expires_at=noon + 2 * DAY)  # before it
    tokens.deduct_tokens(*pro, "generate_goal", 3)  # 5 of the last gift, 4 of the allowance
    assert balance(tokens, pro) == 26
    token_clock.set(noon + 2 * DAY)
    assert balance(tokens, pro) == 26
    tokens.deduct_tokens(*pro, "generate_goal", 6)  # 16 of the allowance, 2 of the gift of 40 days
    token_clock.set(noon + 30 * DAY)
    assert balance(tokens, pro) == 20 + 3 + 5
    token_clock.set(noon + 40 * DAY)
    assert balance(tokens, pro) == 20 + 5


def test_of_two_that_expire_together_the_older_burns_first(
    tokens: Tokens, noon: datetime, token_clock: TestClock
) -> None:
    """Also where both arrived at the same touch, long after their times."""
    people = []
    for number in range(6):
        organization = tokens.create_organization(f"Acme {number}", "pro")
        people.append((organization, tokens.add_member(organization, "A member", "m@example.org")))
        tokens.grant(
            organization, GOAL, 6, effective_at=noon + 31 * DAY, expires_at=noon + 60 * DAY
        )
    token_clock.set(noon + 40 * DAY)
    for person in people:
        tokens.deduct_tokens(*person, "generate_goal", 5)  # of the allowance of day 30
        tokens.change_plan(person[0], "starter")
    assert [balance(tokens, person) for person in people] == [6] * 6


def test_a_grant_survives_a_refresh_and_a_plan_change(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    tokens.upgrade_tokens(pro[0], GOAL, 100)
    tokens.deduct_tokens(*pro, "generate_goal", 10)  # the allowance and 10 of the purchase
    token_clock.set(noon + 30 * DAY)
    assert balance(tokens, pro) == 20 + 90
    tokens.change_plan(pro[0], "enterprise")
    assert balance(tokens, pro) == 200 + 90
    tokens.change_plan(pro[0], "starter")
    assert balance(tokens, pro) == 90


def test_a_hold_on_a_grant_that_expires_gives_nothing_back(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    tokens.grant(pro[0], GOAL, 6, expires_at=noon + timedelta(minutes=5))
    lost = tokens.reserve(*pro, "generate_goal", 2)  # all of the gift
    token_clock.advance(timedelta(seconds=1))
    used = tokens.reserve(*pro, "generate_goal", 2)
    assert balance(tokens, pro) == 14
    token_clock.set(noon + timedelta(minutes=5))
    tokens.release(lost)
    assert balance(tokens, pro) == 14
    assert tokens.deduct(used, 1).remaining_balance == 17


def test_scheduling_a_grant_settles_nothing(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    tokens.grant(pro[0], GOAL, 6, expires_at=noon + DAY)
    tokens.reserve(*pro, "generate_goal", 2)
    tokens.grant(pro[0], GOAL, 1, effective_at=noon + 2 * DAY)
    tokens.deduct_tokens(*pro, "generate_goal", 2)
    # The hold expires and counts as never taken, so the charge has burnt the gift.
    token_clock.set(noon + DAY)
    assert balance(tokens, pro) == 20


def test_a_replay_of_a_grant_returns_the_first_answer(
    tokens: Tokens, noon: datetime, pro: Person
) -> None:
    first = tokens.grant(pro[0], GOAL, 10, expires_at=noon + DAY, idempotency_key="key")
    tokens.deduct_tokens(*pro, "generate_goal")
    again = tokens.grant(pro[0], GOAL, 10, expires_at=noon + DAY, idempotency_key="key")
    assert (again.id, again.balance, again.replayed) == (first.id, 30, True)
    assert balance(tokens, pro) == 27
    with pytest.raises(IdempotencyConflict):
        tokens.grant(pro[0], GOAL, 11, expires_at=noon + DAY, idempotency_key="key")
    with pytest.raises(IdempotencyConflict):
        tokens.grant(pro[0], "general", 10, expires_at=noon + DAY, idempotency_key="key")
    assert balance(tokens, pro) == 27


def test_packs_pay_for_every_feature_and_are_never_split(tokens: Tokens, pro: Person) -> None:
    assert len(tokens.get_all_token_balances(pro[0])) == 5
    tokens.upgrade_tokens(pro[0], "shared", 10)
    assert len(tokens.get_all_token_balances(pro[0])) == 6
    tokens.deduct_tokens(*pro, "generate_goal", 6)  # 2 left of its own
    # 2 + 10 would pay for 12, but a charge comes whole from one wallet.
    with pytest.raises(InsufficientTokens):
        tokens.deduct_tokens(*pro, "generate_goal", 4)
    usage = tokens.deduct_tokens(*pro, "generate_goal", 3)
    assert (usage.token_type, usage.remaining_balance) == ("shared", 1)
    assert balance(tokens, pro) == 2
    assert tokens.deduct_tokens(*pro, "generate_insight", 50).token_type == "general"
    assert tokens.deduct_tokens(*pro, "generate_insight").token_type == "shared"
    with pytest.raises(InsufficientTokens):
        tokens.deduct_tokens(*pro, "generate_insight")


def test_has_enough_and_can_use_count_the_pack(tokens: Tokens, pro: Person) -> None:
    assert not tokens.has_enough_tokens(pro[0], "generate_goal", 10)
    tokens.upgrade_tokens(pro[0], "shared", 30)
    assert tokens.has_enough_tokens(pro[0], "generate_goal", 10)
    assert tokens.can_use(*pro, "generate_goal", 10).allowed
    assert not tokens.has_enough_tokens(pro[0], "generate_goal", 11)


def test_a_pack_survives_refreshes_and_ends_on_its_day(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    year = datetime(2027, 3, 1, 12, tzinfo=UTC)
    tokens.grant(pro[0], "shared", 500, kind="purchase", source="pack_500", expires_at=year)
    tokens.deduct_tokens(*pro, "generate_goal", 10)
    token_clock.set(year - DAY)
    wallet = tokens.get_token_balance(pro[0], "shared")
    assert (wallet.balance, wallet.total_used, wallet.allowance) == (470, 0, 0)
    token_clock.set(year)
    assert balance(tokens, pro, "shared") == 0


def test_a_pack_does_not_lift_the_plan(tokens: Tokens, pro: Person) -> None:
    tokens.upgrade_tokens(pro[0], "shared", 10)
    tokens.change_plan(pro[0], "starter")
    with pytest.raises(FeatureNotInPlan):
        tokens.deduct_tokens(*pro, "generate_goal")
    # Neither the button nor the verdict says otherwise.
    assert not tokens.has_enough_tokens(pro[0], "generate_goal")
    assert tokens.can_use(*pro, "generate_goal").rule == "feature_not_in_plan"
    tokens.upgrade_tokens(pro[0], "goal_generation", 10)
    assert not tokens.has_enough_tokens(pro[0], "generate_goal")
    assert balance(tokens, pro, "shared") == 10


def test_the_shared_wallet_is_not_there_before_the_first_pack(tokens: Tokens, pro: Person) -> None:
    with pytest.raises(InvalidInput, match="no pack was ever bought"):
        tokens.get_token_balance(pro[0], "shared")


def test_grants_that_end_while_nobody_looks_are_settled_one_by_one(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock, owner: psycopg.Connection
) -> None:
    for day in (1, 2, 3):
        tokens.grant(
            pro[0], GOAL, 10, effective_at=noon + day * DAY, expires_at=noon + (day + 1) * DAY
        )
    tokens.deduct_tokens(*pro, "generate_goal", 6)
    token_clock.set(noon + 31 * DAY)
    assert balance(tokens, pro) == 20
    history = owner.execute(
        "select kind, balance_after, effective_at from ai_token_events"
        " where token_type = 'goal_generation' order by number offset 4"
    ).fetchall()
    assert history == [
        ("grant", 12, noon + DAY),
        ("grant_expired", 2, noon + 2 * DAY),
        ("grant", 12, noon + 2 * DAY),
        ("grant_expired", 2, noon + 3 * DAY),
        ("grant", 12, noon + 3 * DAY),
        ("grant_expired", 2, noon + 4 * DAY),
        ("refresh", 20, noon + 30 * DAY),
    ]


@pytest.mark.one_node
def test_impossible_grants_change_nothing(tokens: Tokens, noon: datetime, pro: Person) -> None:
    with pytest.raises(InvalidInput, match="expires_at must be later"):
        tokens.grant(pro[0], GOAL, 1, expires_at=noon)
    with pytest.raises(InvalidInput, match="expires_at must be later"):
        tokens.grant(pro[0], GOAL, 1, effective_at=noon + 2 * DAY, expires_at=noon + DAY)
    with pytest.raises(InvalidInput, match="effective_at must be a time with a time zone"):
        tokens.grant(pro[0], GOAL, 1, effective_at=datetime(2026, 3, 2))  # noqa: DTZ001
    with pytest.raises(InvalidInput, match="amount"):
        tokens.grant(pro[0], GOAL, 0)
    with pytest.raises(InvalidInput, match="kind"):
        tokens.grant(pro[0], GOAL, 1, kind="bribe")  # type: ignore[arg-type]
    with pytest.raises(UnknownTokenType, match="goal_generation"):
        tokens.grant(pro[0], "gold", 1)
    with pytest.raises(UnknownOrganization):
        tokens.grant(uuid4(), GOAL, 1)
    assert balance(tokens, pro) == 20
