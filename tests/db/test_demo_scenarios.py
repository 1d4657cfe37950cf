"""The scenarios of a presentation: played again and again, and reset whatever was done."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.db.demo_loaded import OWNER, Demo, few, play_the_scenarios
from tokenlib import (
    Tokens,
    demo,
)
from tokenlib.demo import SCENARIOS
from tokenlib.errors import ConfigurationError
from tokenlib.testing import TestDatabase


@pytest.fixture
def small(token_database: TestDatabase, tokens: Tokens) -> Demo:
    return few(token_database, tokens)


def test_it_starts_the_scenarios_again_and_again(small: Demo) -> None:
    for _ in range(3):
        play_the_scenarios(small.tokens)
        demo.reset(small.database.url(OWNER), small.tokens)
    play_the_scenarios(small.tokens)
    assert small.tokens.verify().closed


def test_reset_undoes_whatever_was_done_to_a_scenario(small: Demo) -> None:
    tokens, healthy = small.tokens, SCENARIOS["healthy"]
    organization, user = healthy.organization_id, healthy.user_id
    soon = datetime.now(UTC) + timedelta(days=3)
    tokens.grant(organization, "goal_generation", 100)
    tokens.grant(organization, "goal_generation", 50, effective_at=soon)
    tokens.upgrade_tokens(organization, "shared", 500)
    tokens.change_plan(organization, "enterprise")
    tokens.deduct_tokens(organization, user, "generate_goal", units=60)
    tokens.reserve(organization, user, "generate_goal")
    tokens.change_plan(organization, "starter")
    tokens.set_mode("log_only", organization, actor="test", reason="test")
    tokens.set_mode("log_only", until=soon, actor="test", reason="test")
    tokens.pause_user(organization, user, actor="test", reason="test")
    tokens.set_status(organization, "suspended", actor="test", reason="test")
    paused = SCENARIOS["paused"].organization_id
    tokens.set_status(paused, "active", actor="test", reason="test")
    before = tokens.verify()

    demo.reset(small.database.url(OWNER), tokens)

    assert tokens.switch_state().settings == ()
    wallets = {b.token_type: b for b in tokens.get_all_token_balances(organization)}
    assert {
        token_type: (b.balance, b.reserved, b.total_used, b.total_allocated)
        for token_type, b in wallets.items()
    } == {
        "lead_generation": (50, 0, 0, 50),
        "goal_generation": (20, 0, 0, 20),
        "strategy_analysis": (100, 0, 0, 100),
        "forecast": (30, 0, 0, 30),
        "general": (50, 0, 0, 50),
        "shared": (0, 0, 0, 0),
    }
    play_the_scenarios(tokens)
    after = tokens.verify()
    assert after.closed
    assert after.entries > before.entries


def test_reset_says_when_there_is_no_demo(token_database: TestDatabase, tokens: Tokens) -> None:
    with pytest.raises(ConfigurationError, match="no demo"):
        demo.reset(token_database.url(OWNER), tokens)
