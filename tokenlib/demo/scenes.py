"""The scenarios' start states, made with the real verbs: after a load and after every reset."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from psycopg.types.json import Jsonb

from tokenlib.db import statements
from tokenlib.demo.cast import PERSONAS, SCENARIOS, Scenario
from tokenlib.demo.owner import Owner
from tokenlib.features import quests
from tokenlib.tokens import Tokens

_FEATURE = quests.FEATURE.name
# They have an older quest to look at; viewing is open on every plan.
_WITH_A_QUEST = ("low", "empty", "starter", "unlimited")


def start(connection: Owner, tokens: Tokens, now: datetime, key: str) -> None:
    """Bring each scenario's quests and quest tokens to where it starts. `key` names this start, so
    that one that was interrupted can be repeated."""
    connection.execute(statements("reset", "demo")["clear_quests"], {"ids": organization_ids()})
    feature = tokens.catalog().features[_FEATURE]
    for scenario in SCENARIOS.values():
        organization = scenario.organization_id
        if scenario.goodwill:
            tokens.grant(
                organization,
                feature.token_type,
                scenario.goodwill,
                kind="gift",
                source="goodwill",
                actor=str(PERSONAS["support"].user_id),
                reason="For a quest that came out empty",
                idempotency_key=f"demo goodwill {key}",
            )
        if scenario.quest_tokens is not None:
            wallet = tokens.get_token_balance(organization, feature.token_type)
            for _ in range((wallet.balance - scenario.quest_tokens) // feature.cost):
                tokens.deduct_tokens(organization, scenario.colleague_id, _FEATURE)
    for name in _WITH_A_QUEST:
        _save_a_quest(tokens, SCENARIOS[name], now)


def _save_a_quest(tokens: Tokens, scenario: Scenario, now: datetime) -> None:
    request = quests.QuestRequest(
        goal="Grow the spring business",
        quarter=f"{now.year}-Q{(now.month + 2) // 3}",
        current_revenue=84_000,
        target_revenue=120_000,
        completed_jobs=120,
        labour_cost_percent=40,
    )
    line = quests.generate(request)
    statement = statements("plans")["save_quest"]
    params = {
        "organization_id": scenario.organization_id,
        "user_id": scenario.colleague_id,
        "title": line.title,
        "description": line.description,
        "quarter": line.quarter,
        "target": line.target_amount,
        "metadata": Jsonb(line.metadata()),
    }
    tokens.database.call(statement, params)


def organization_ids() -> list[UUID]:
    """The scenarios' organizations."""
    return [scenario.organization_id for scenario in SCENARIOS.values()]
