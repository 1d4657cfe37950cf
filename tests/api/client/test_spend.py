"""`spend`, holds, and functions that are charged, over HTTP."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from tests.api.client.conftest import left
from tests.api.flaky import Flaky
from tokenlib import Client
from tokenlib.errors import (
    AlreadySpent,
    InProgress,
    InvalidInput,
    ReservationOver,
)
from tokenlib.testing import TestClock
from tokenlib.tokens import Tokens


def test_spend_charges_once_and_releases_on_an_exception(
    client: Client, way: Flaky, tokens: Tokens, org: UUID, user: UUID
) -> None:
    with client.spend(org, user, "generate_goal") as held:
        assert left(tokens, org) == (17, 3)
        assert held.tokens == 3
    assert left(tokens, org) == (17, 0)
    with pytest.raises(ZeroDivisionError), client.spend(org, user, "generate_goal"):
        _ = 1 / 0
    assert left(tokens, org) == (17, 0)
    with client.spend(org, user, "generate_goal", 2) as held:
        client.deduct(held, 1)
    with client.spend(org, user, "generate_goal") as held:
        client.release(held)
    assert left(tokens, org) == (14, 0)


def test_a_body_that_outlives_its_hold_charges_nothing(
    client: Client, tokens: Tokens, org: UUID, user: UUID, token_clock: TestClock
) -> None:
    with pytest.raises(ReservationOver) as over, client.spend(org, user, "generate_goal") as held:
        token_clock.advance(timedelta(minutes=11))
    assert (over.value.state, over.value.reservation_id) == ("expired", held.id)
    assert left(tokens, org) == (20, 0)


def test_a_key_that_was_charged_runs_no_body(
    client: Client, tokens: Tokens, org: UUID, user: UUID
) -> None:
    with client.spend(org, user, "generate_goal", idempotency_key="quest 1"):
        with pytest.raises(InProgress) as live:
            client.reserve(org, user, "generate_goal", idempotency_key="quest 1")
        assert live.value.expires_at is not None
    with (
        pytest.raises(AlreadySpent) as spent,
        client.spend(org, user, "generate_goal", idempotency_key="quest 1"),
    ):
        pytest.fail("the AI call ran twice for one charge")
    assert spent.value.usage.tokens_deducted == 3
    assert spent.value.usage.user_id == user
    # A release frees the key.
    held = client.reserve(org, user, "generate_goal", idempotency_key="quest 2")
    client.release(held)
    assert client.reserve(org, user, "generate_goal", idempotency_key="quest 2").id != held.id
    assert left(tokens, org) == (14, 3)


def test_a_function_is_charged_on_each_side(
    client: Client, tokens: Tokens, org: UUID, user: UUID
) -> None:
    for number, gate in enumerate((client, tokens), 1):

        @gate.charged("generate_goal", organization="tenant")
        def quest(tenant: UUID, user: UUID, goal: str = "grow") -> str:
            """Make a quest."""
            if goal == "fail":
                raise ZeroDivisionError
            return f"to {goal}"

        @gate.charged("generate_insight")
        async def insight(organization: UUID, *, user: UUID) -> str:
            return "so"

        assert quest(org, user) == "to grow"
        assert (quest.__name__, quest.__doc__) == ("quest", "Make a quest.")
        with pytest.raises(ZeroDivisionError):
            quest(org, user=user, goal="fail")
        assert left(tokens, org) == (20 - 3 * number, 0)
        assert asyncio.run(insight(org, user=user)) == "so"
        assert tokens.get_token_balance(org, "general").balance == 50 - number
        with pytest.raises(InvalidInput, match="user"):
            gate.charged("generate_goal")(lambda organization: organization)
