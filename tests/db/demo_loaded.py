"""The demo in a database, and how its tests look at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tokenlib import (
    FeatureNotInPlan,
    InsufficientTokens,
    OrganizationPaused,
    PaymentFailed,
    Tokens,
    demo,
)
from tokenlib.demo import SCENARIOS
from tokenlib.testing import TestDatabase

FEW = 3_000
OWNER = "tokenlib_owner"


@dataclass(frozen=True)
class Demo:
    """A database that holds the demo."""

    database: TestDatabase
    tokens: Tokens
    summary: demo.DemoSummary

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Plain SQL of somebody who may see everything."""
        with self.database.connect("postgres") as connection:
            return connection.execute(statement, values).fetchall()


def few(database: TestDatabase, tokens: Tokens) -> Demo:
    """The demo with few charges, for a test that changes it."""
    return Demo(database, tokens, demo.load(database.url(OWNER), tokens, charges=FEW))


def play_the_scenarios(tokens: Tokens) -> None:
    """Every scenario from its start to its end."""

    def quest(name: str) -> int:
        scenario = SCENARIOS[name]
        return tokens.deduct_tokens(
            scenario.organization_id, scenario.user_id, "generate_goal"
        ).remaining_balance

    assert [quest("healthy") for _ in range(6)] == [17, 14, 11, 8, 5, 2]
    with pytest.raises(InsufficientTokens) as refused:
        quest("healthy")
    assert refused.value.refresh_date is not None
    assert quest("low") == 0
    with pytest.raises(InsufficientTokens):
        quest("low")
    with pytest.raises(InsufficientTokens) as short:
        quest("empty")
    assert short.value.available == 2
    with pytest.raises(FeatureNotInPlan):
        quest("starter")
    with pytest.raises(OrganizationPaused):
        quest("paused")
    with pytest.raises(PaymentFailed):
        quest("payment_failed")
    organization, user = SCENARIOS["unlimited"].organization_id, SCENARIOS["unlimited"].user_id
    assert tokens.deduct_tokens(organization, user, "generate_goal", units=900).tokens_deducted
