"""The library's verbs, answers and signatures, over HTTP, and awaited."""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.api.client.conftest import left
from tests.api.flaky import Flaky
from tokenlib import Client, errors
from tokenlib.aio import AsyncTokens
from tokenlib.errors import (
    OrganizationPaused,
)
from tokenlib.tokens import Tokens

# What the API decides by the key; the client has no say.
BY_THE_KEY = {"limits", "actor"}


def verbs(kind: type) -> dict[str, Any]:
    return {
        name: verb
        for name, verb in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_verb_has_the_library_s_signature() -> None:
    ours = verbs(Client)
    assert {"can_use", "deduct_tokens", "reserve", "deduct", "release", "spend"} <= set(ours)
    assert {"refund", "grant", "get_token_stats", "catalog", "charged"} <= set(ours)
    assert ours.keys() >= {"has_enough_tokens", "staff_create_key", "staff_rotate_key"}
    # Of the library's reports, as pages: what a viewer's own names would say is not in the API.
    pages = {"history", "entries", "explain", "keys"}
    for name, verb in ours.items():
        if name in pages:
            continue
        theirs = inspect.signature(getattr(Tokens, name), eval_str=True)
        parameters = [each for each in theirs.parameters.values() if each.name not in BY_THE_KEY]
        mine = inspect.signature(verb, eval_str=True)
        assert list(mine.parameters.values()) == parameters, name
        assert mine.return_annotation == theirs.return_annotation, name


def test_answers_are_those_of_the_library(
    client: Client, tokens: Tokens, org: UUID, user: UUID
) -> None:
    assert client.catalog() == tokens.catalog()
    assert client.can_use(org, user, "generate_goal") == tokens.can_use(org, user, "generate_goal")
    assert client.can_use(org, user, "generate_goal", 9).rule == "insufficient_tokens"
    assert client.can_use(org, user, "generate_goal", output_units=10**6).allowed
    for units in (1, 6, 7):
        enough = client.has_enough_tokens(org, "generate_goal", units)
        assert enough is tokens.has_enough_tokens(org, "generate_goal", units) is (units < 7)
    charged = client.deduct_tokens(str(org), user, "generate_goal", 2, {"n": 1}, "quest 1")
    first = tokens.deduct_tokens(org, user, "generate_goal", 2, {"n": 1}, "quest 1")
    again = client.deduct_tokens(org, user, "generate_goal", 2, {"n": 1}, "quest 1")
    assert not charged.replayed
    assert again == first
    assert client.get_token_balance(org, "goal_generation") == tokens.get_token_balance(
        org, "goal_generation"
    )
    assert client.get_all_token_balances(org) == tokens.get_all_token_balances(org)
    assert client.get_token_stats(org) == tokens.get_token_stats(org)
    back = client.refund(charged, "it was empty", idempotency_key="refund 1")
    assert (back.id, back.user_id, back.tokens_deducted) == (charged.id, user, 6)
    again = client.refund(charged, "it was empty", idempotency_key="refund 1")
    assert again.replayed
    assert again.remaining_balance == back.remaining_balance == 20
    held = client.reserve(org, user, "generate_goal", 3, hold_for=timedelta(hours=1))
    assert (held.units, held.tokens, held.user_id) == (3, 9, user)
    assert held.expires_at - datetime.now(UTC) > timedelta(minutes=50)
    assert client.deduct(held, 1).tokens_deducted == 3
    given = client.grant(org, "general", 10, reason="Goodwill", idempotency_key="gift 1")
    assert (given.amount, given.balance, given.kind, given.replayed) == (10, 60, "gift", False)
    assert client.grant(org, "general", 10, reason="Goodwill", idempotency_key="gift 1").replayed
    assert client.upgrade_tokens(org, "shared", 500).kind == "purchase"
    assert tokens.verify().closed


def test_staff_verbs(client: Client, tokens: Tokens, org: UUID, user: UUID) -> None:
    client.change_plan(org, "enterprise", reason="Invoice 7")
    assert left(tokens, org) == (200, 0)
    client.set_mode("log_only", org, until=datetime(2099, 1, 1, tzinfo=UTC), reason="A launch")
    assert tokens.switch_state().settings[0].mode == "log_only"
    client.set_mode("enforce", org, reason="Over")
    client.pause_user(org, user, reason="A script")
    with pytest.raises(errors.UserPaused) as paused:
        client.deduct_tokens(org, user, "generate_goal")
    assert paused.value.user_id == user
    client.set_status(org, "suspended", reason="Asked for")
    with pytest.raises(OrganizationPaused) as suspended:
        client.deduct_tokens(org, user, "generate_goal")
    assert suspended.value.organization_id == org


def test_each_verb_can_be_awaited(
    client: Client, way: Flaky, tokens: Tokens, org: UUID, user: UUID
) -> None:
    async def program() -> None:
        assert isinstance(client.aio, AsyncTokens)
        async with client.aio.spend(org, user, "generate_goal"):
            assert (await client.aio.get_token_balance(org, "goal_generation")).reserved == 3
        with pytest.raises(ZeroDivisionError):
            async with client.aio.spend(org, user, "generate_goal"):
                _ = 1 / 0
        charges = [client.aio.deduct_tokens(org, user, "generate_insight") for _ in range(8)]
        assert len({usage.id for usage in await asyncio.gather(*charges)}) == 8

    asyncio.run(program())
    assert left(tokens, org) == (17, 0)
    assert tokens.get_token_balance(org, "general").balance == 42
