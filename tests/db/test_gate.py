"""Charges: all or nothing, once per key, and each refusal with what a person needs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import (
    FeatureNotInPlan,
    IdempotencyConflict,
    InProgress,
    InsufficientTokens,
    NotAMember,
    Tokens,
)
from tokenlib.testing import TestClock

Person = tuple[UUID, UUID]
Join = Callable[[str], Person]

pytestmark = pytest.mark.usefixtures("books_close")


def test_pro_makes_six_quests_and_the_seventh_is_refused_with_the_refresh_date(
    tokens: Tokens, noon: datetime, pro: Person
) -> None:
    left = [tokens.deduct_tokens(*pro, "generate_goal").remaining_balance for _ in range(6)]
    assert left == [17, 14, 11, 8, 5, 2]

    with pytest.raises(InsufficientTokens) as refused:
        tokens.deduct_tokens(*pro, "generate_goal")
    assert (refused.value.needed, refused.value.available) == (3, 2)
    assert refused.value.refresh_date == noon + timedelta(days=30)
    assert "2026-03-31" in str(refused.value)
    wallet = tokens.get_token_balance(pro[0], "goal_generation")
    assert (wallet.balance, wallet.total_used, wallet.total_allocated) == (2, 18, 20)
    assert wallet.last_used_at == noon


@pytest.mark.parametrize(
    ("feature", "token_type", "cost", "allowance"),
    [
        ("generate_leads", "lead_generation", 5, 50),
        ("generate_goal", "goal_generation", 3, 20),
        ("analyze_strategy", "strategy_analysis", 2, 100),
        ("forecast_revenue", "forecast", 4, 30),
        ("generate_insight", "general", 1, 50),
        ("analyze_efficiency", "general", 2, 50),
    ],
)
def test_each_feature_costs_what_the_catalog_says(
    tokens: Tokens, pro: Person, feature: str, token_type: str, cost: int, allowance: int
) -> None:
    usage = tokens.deduct_tokens(*pro, feature, units=2)
    assert (usage.token_type, usage.tokens_deducted) == (token_type, 2 * cost)
    assert usage.remaining_balance == allowance - 2 * cost
    assert tokens.get_token_balance(pro[0], token_type).balance == usage.remaining_balance


def test_a_charge_is_one_row_of_the_log(
    tokens: Tokens, noon: datetime, pro: Person, owner: psycopg.Connection
) -> None:
    usage = tokens.deduct_tokens(*pro, "generate_goal", metadata={"quarter": "Q1"})
    rows = owner.execute(
        "select id, organization_id, user_id, token_type, feature_used, tokens_deducted,"
        " remaining_balance, metadata, created_at from ai_token_usage_log"
    ).fetchall()
    assert rows == [
        (usage.id, *pro, "goal_generation", "generate_goal", 3, 17, {"quarter": "Q1"}, noon)
    ]


def test_starter_is_refused_and_the_refusal_is_on_record(
    tokens: Tokens, join: Join, owner: psycopg.Connection
) -> None:
    organization, user = join("starter")
    for _ in range(2):
        with pytest.raises(FeatureNotInPlan, match="Upgrade the plan") as refused:
            tokens.deduct_tokens(organization, user, "generate_goal")
        assert refused.value.plan == "starter"
    rows = owner.execute(
        "select organization_id, user_id, feature, rule, needed, available, sum(count)::int"
        " from ai_token_refusals group by 1, 2, 3, 4, 5, 6"
    ).fetchall()
    assert rows == [(organization, user, "generate_goal", "feature_not_in_plan", 3, 0, 2)]
    assert owner.execute("select count(*) from ai_token_usage_log").fetchone() == (0,)


def test_refusals_are_one_row_per_user_feature_rule_and_minute(
    tokens: Tokens,
    noon: datetime,
    join: Join,
    token_clock: TestClock,
    owner: psycopg.Connection,
) -> None:
    person = join("starter")
    for step in (0, 20, 20, 20):
        token_clock.advance(timedelta(seconds=step))
        with pytest.raises(FeatureNotInPlan):
            tokens.deduct_tokens(*person, "generate_goal")
    rows = owner.execute(
        "select count, first_at, last_at from ai_token_refusals order by minute"
    ).fetchall()
    assert rows == [
        (3, noon, noon + timedelta(seconds=40)),
        (1, noon + timedelta(seconds=60), noon + timedelta(seconds=60)),
    ]


def test_an_unlimited_contract_keeps_going_with_an_entry_per_block(
    tokens: Tokens, owner: psycopg.Connection
) -> None:
    organization = uuid4()
    owner.execute(
        "insert into organizations (id, name, plan) values (%s, 'Endless', 'enterprise')",
        (organization,),
    )
    owner.execute(
        "insert into ai_token_organization_allowances values (%s, 'goal_generation', null)",
        (organization,),
    )
    user = tokens.add_member(organization, "A member", "member@example.org")
    wallet = tokens.get_token_balance(organization, "goal_generation")
    assert wallet.unlimited
    assert wallet.balance == 1000
    for _ in range(4):  # 4 × 900 against blocks of 1,000
        assert tokens.has_enough_tokens(organization, "generate_goal", 300)
        assert tokens.can_use(organization, user, "generate_goal", 300).allowed
        tokens.deduct_tokens(organization, user, "generate_goal", 300)
    tokens.deduct_tokens(organization, user, "generate_goal", 1_000_000)
    wallet = tokens.get_token_balance(organization, "goal_generation")
    assert wallet.total_used == 3_003_600
    top_ups = owner.execute(
        "select balance_change from ai_token_events where kind = 'top_up' order by number"
    ).fetchall()
    assert top_ups == [(1000,), (1000,), (1000,), (2_999_600,)]


def test_a_replay_returns_the_first_answer_even_from_an_empty_wallet(
    tokens: Tokens, pro: Person
) -> None:
    first = tokens.deduct_tokens(*pro, "generate_goal", 6, {"n": 1}, "key")
    again = tokens.deduct_tokens(*pro, "generate_goal", 6, {"n": 1}, "key")
    assert not first.replayed
    assert again.replayed
    assert (again.id, again.remaining_balance, again.created_at) == (
        first.id,
        first.remaining_balance,
        first.created_at,
    )
    assert tokens.get_token_balance(pro[0], "goal_generation").balance == 2


@pytest.mark.parametrize(
    ("feature", "units", "metadata"),
    [
        ("generate_goal", 2, {"n": 1}),
        ("generate_goal", 1, {"n": 2}),
        ("generate_goal", 1, None),
        ("generate_insight", 1, {"n": 1}),
    ],
)
def test_a_key_with_other_content_is_a_conflict(
    tokens: Tokens, pro: Person, feature: str, units: int, metadata: dict[str, int] | None
) -> None:
    tokens.deduct_tokens(*pro, "generate_goal", 1, {"n": 1}, "key")
    with pytest.raises(IdempotencyConflict):
        tokens.deduct_tokens(*pro, feature, units, metadata, "key")
    with pytest.raises(IdempotencyConflict):
        tokens.reserve(*pro, feature, units, metadata, "key")
    assert tokens.get_token_stats(pro[0]).total_used == 3


def test_a_key_of_another_user_is_a_conflict_and_of_another_organization_is_another_key(
    tokens: Tokens, join: Join, pro: Person
) -> None:
    colleague = tokens.add_member(pro[0], "A colleague", "colleague@example.org")
    tokens.deduct_tokens(*pro, "generate_goal", idempotency_key="key")
    with pytest.raises(IdempotencyConflict):
        tokens.deduct_tokens(pro[0], colleague, "generate_goal", idempotency_key="key")
    other = join("pro")
    assert not tokens.deduct_tokens(*other, "generate_goal", idempotency_key="key").replayed


def test_a_key_is_one_key_over_charges_holds_and_grants(tokens: Tokens, pro: Person) -> None:
    tokens.grant(pro[0], "goal_generation", 5, idempotency_key="granted")
    with pytest.raises(IdempotencyConflict):
        tokens.deduct_tokens(*pro, "generate_goal", idempotency_key="granted")
    with pytest.raises(IdempotencyConflict):
        tokens.reserve(*pro, "generate_goal", idempotency_key="granted")

    tokens.deduct_tokens(*pro, "generate_goal", idempotency_key="charged")
    with pytest.raises(IdempotencyConflict):
        tokens.grant(pro[0], "goal_generation", 5, idempotency_key="charged")

    tokens.reserve(*pro, "generate_goal", idempotency_key="held")
    with pytest.raises(IdempotencyConflict):
        tokens.grant(pro[0], "goal_generation", 5, idempotency_key="held")
    with pytest.raises(InProgress):
        tokens.deduct_tokens(*pro, "generate_goal", idempotency_key="held")
    wallet = tokens.get_token_balance(pro[0], "goal_generation")
    assert (wallet.balance, wallet.reserved, wallet.total_used) == (19, 3, 3)


def test_a_refusal_leaves_the_key_free(tokens: Tokens, pro: Person) -> None:
    with pytest.raises(InsufficientTokens):
        tokens.deduct_tokens(*pro, "generate_goal", 7, idempotency_key="key")
    assert not tokens.deduct_tokens(*pro, "generate_goal", 1, idempotency_key="key").replayed


def test_a_user_of_another_organization_is_no_member(
    tokens: Tokens, join: Join, pro: Person
) -> None:
    stranger = join("pro")[1]
    for verb in (tokens.deduct_tokens, tokens.reserve, tokens.can_use):
        with pytest.raises(NotAMember) as refused:
            verb(pro[0], stranger, "generate_goal")
        assert refused.value.user_id == stranger
    assert tokens.get_token_stats(pro[0]).total_used == 0


def test_has_enough_asks_and_can_use_gives_the_whole_verdict(
    tokens: Tokens, noon: datetime, join: Join, pro: Person, owner: psycopg.Connection
) -> None:
    assert tokens.has_enough_tokens(pro[0], "generate_goal", 6)
    assert not tokens.has_enough_tokens(pro[0], "generate_goal", 7)
    yes = tokens.can_use(*pro, "generate_goal", 6)
    assert (yes.allowed, yes.rule, yes.needed, yes.available) == (True, None, 18, 20)
    no = tokens.can_use(*pro, "generate_goal", 7)
    assert (no.allowed, no.rule, no.needed, no.available) == (False, "insufficient_tokens", 21, 20)
    assert no.refresh_date == noon + timedelta(days=30)
    assert "Insufficient tokens. Need 21, have 20." in no.message
    verdict = tokens.can_use(*join("starter"), "generate_goal")
    assert (verdict.allowed, verdict.rule) == (False, "feature_not_in_plan")
    # Asking changes nothing and is no refusal.
    assert owner.execute("select count(*) from ai_token_refusals").fetchone() == (0,)
    assert tokens.get_token_balance(pro[0], "goal_generation").balance == 20


def test_stats_are_totals_and_each_wallet(tokens: Tokens, noon: datetime, pro: Person) -> None:
    tokens.deduct_tokens(*pro, "generate_goal")
    tokens.reserve(*pro, "generate_insight", 2)
    stats = tokens.get_token_stats(pro[0])
    assert (stats.total_balance, stats.total_reserved, stats.total_used) == (245, 2, 3)
    assert stats.total_allocated == 250
    assert stats.refresh_date == noon + timedelta(days=30)
    assert [(w.token_type, w.balance, w.total_allocated) for w in stats.by_type] == [
        ("lead_generation", 50, 50),
        ("goal_generation", 17, 20),
        ("strategy_analysis", 100, 100),
        ("forecast", 30, 30),
        ("general", 48, 50),
    ]
    assert stats.by_type == tokens.get_all_token_balances(str(pro[0]))


def test_a_wallet_that_is_missing_is_created_at_the_first_touch(
    tokens: Tokens, owner: psycopg.Connection
) -> None:
    organization = uuid4()
    owner.execute(
        "insert into organizations (id, name, plan) values (%s, 'Acme', 'pro')", (organization,)
    )
    user = tokens.add_member(organization, "A member", "member@example.org")
    assert tokens.deduct_tokens(organization, user, "generate_goal").remaining_balance == 17
    assert owner.execute("select token_type from ai_tokens").fetchall() == [("goal_generation",)]
    assert len(tokens.get_all_token_balances(organization)) == 5


def test_entries_keep_their_order_when_the_clock_is_set_back(
    tokens: Tokens, noon: datetime, pro: Person, token_clock: TestClock
) -> None:
    first = tokens.deduct_tokens(*pro, "generate_goal")
    token_clock.advance(timedelta(hours=-2))
    second = tokens.deduct_tokens(*pro, "generate_goal")
    assert first.created_at == second.created_at == noon
