"""Generate a quest through the gate, and claim the rewards of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from tokenlib.config import Settings
from tokenlib.console import format as fmt
from tokenlib.console.acting import Member
from tokenlib.db import statements
from tokenlib.domain import Balance, Feature
from tokenlib.errors import NotAMember
from tokenlib.features import quests
from tokenlib.features.inputs import InvalidInput
from tokenlib.features.model import (
    MAX_OUTPUT_UNITS,
    FailingModel,
    Model,
    ModelError,
    OpenAIModel,
)
from tokenlib.features.quests import QuestLine, QuestRequest, QuestStep
from tokenlib.reports import Reports
from tokenlib.reports.organizations import QuestRow
from tokenlib.tokens import Tokens

FEATURE = quests.FEATURE.name
NUMBERS = (
    ("current_revenue", "Revenue now, in dollars", 1_000, quests.MOST_REVENUE - 1),
    ("target_revenue", "Target revenue, in dollars", 1_001, quests.MOST_REVENUE),
    ("completed_jobs", "Jobs completed", 1, 100_000),
    ("labour_cost_percent", "Labour, percent of revenue", 1, 100),
)
"""The numbers that a request asks for: field, label, least, most."""

CLAIMED = "claimed"
"""In a quest's metadata: the keys of the steps whose rewards were claimed."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A quest line that was generated, saved and charged."""

    line: QuestLine
    used: int
    left: Balance


def message(used: int, feature: str, left: Balance) -> str:
    """What was used and, where there is an end to it, what is left."""
    said = f"Used {fmt.count(used, 'token')} for {feature}."
    return said if left.unlimited else f"{said} {fmt.number(left.balance)} left."


def quarters(today: datetime) -> list[str]:
    """This quarter and the three after it: 2026-Q4."""
    first = today.year * 4 + (today.month - 1) // 3
    return [f"{quarter // 4}-Q{quarter % 4 + 1}" for quarter in range(first, first + 4)]


def label(error: InvalidInput) -> str:
    """A problem with a field under the label that the form gives it."""
    labels = {name: label for name, label, _, _ in NUMBERS}
    return str(error).replace(error.field, labels.get(error.field, error.field.capitalize()), 1)


def price(
    tokens: Tokens, member: Member, feature: Feature, settings: Settings
) -> tuple[str, str | None]:
    """What a quest costs, from the shortest answer to the longest, and why that differs."""
    if feature.unit_size is None or settings.llm_base_url is None:
        return fmt.price(feature, 0), None  # what is made offline has no output units
    limit = Reports(tokens.database).output_limit(member.organization_id)
    said = f"{fmt.price(feature)}, started ones as whole. The most is held while the model writes."
    return fmt.price(feature, _longest(limit)), f"By the length of the answer: {said}"


def _longest(limit: int | None) -> int:
    """How many output units an answer may have; `limit` is the member's."""
    return MAX_OUTPUT_UNITS if limit is None else min(MAX_OUTPUT_UNITS, limit)


def model(settings: Settings, failing: bool, limit: int | None) -> Model | None:
    """The model that words quests: none by default, the operator's, or one that fails.

    `limit` is the most output units for the member. Raises ModelError or ValueError when the
    operator's settings cannot be used.
    """
    if failing:
        return FailingModel()
    if settings.llm_base_url is None:
        return None
    return OpenAIModel(
        settings.llm_base_url,
        settings.llm_api_key or "none",
        settings.llm_model or "",
        _longest(limit),
    )


def generate(
    tokens: Tokens,
    member: Member,
    feature: Feature,
    request: QuestRequest,
    model: Model | None,
    key: str,
    progress: Callable[[str], object],
) -> Generated:
    """Hold the cost, ask the model, save the quest, charge; `progress` hears what it does.

    Where the catalog charges by the size of the answer, that of the longest one is held, and that
    of the answer charged. Raises a Refused, or ModelError when the model fails; either way nothing
    was charged.
    """
    progress("Holding the tokens…")
    most = model.max_output_units if model else 0
    metadata: dict[str, str | int] = {"quarter": request.quarter}
    with tokens.spend(
        member.organization_id,
        member.user_id,
        FEATURE,
        feature.units(most),
        {**metadata, "output_units": most} if most else metadata,
        idempotency_key=key,
        limits=True,
    ) as held:
        progress(f"Writing the quest line, with {fmt.count(held.tokens, 'token')} held…")
        try:
            line = quests.generate(request, model)
            if feature.unit_size and line.written_by == "model" and not line.output_units:
                raise ModelError(
                    "The model did not say how long its answer is, and the cost depends on it.",
                    "broken_answer",
                )
        except ModelError as error:
            error.held = held.tokens
            raise
        progress("Saving the quest line, and charging for it…")
        _save(tokens, member, line)
        if line.written_by == "model":
            metadata |= {"input_units": line.input_units, "output_units": line.output_units}
        used = tokens.deduct(held, feature.units(line.output_units), metadata)
    left = tokens.get_token_balance(member.organization_id, held.token_type)
    return Generated(line, used.tokens_deducted, left)


def steps(metadata: Mapping[str, Any]) -> list[QuestStep]:
    """The steps that a quest's metadata holds; none when another product wrote it."""
    try:
        return [
            QuestStep(**{**step, "action_items": tuple(step["action_items"])})
            for step in metadata["steps"]
        ]
    except (KeyError, TypeError):
        return []


def claim(tokens: Tokens, member: Member, quest: QuestRow, step: str) -> None:
    """Claim a step's reward: the quest advances by that step. Costs nothing, on every plan."""
    claimed = sorted({*quest.metadata.get(CLAIMED, ()), step})
    share = 100 * len(claimed) // len(steps(quest.metadata))
    tokens.database.call(
        statements("plans")["advance_quest"],
        {
            "organization_id": member.organization_id,
            "user_id": member.user_id,
            "quest_id": quest.id,
            "progress": share,
            "metadata": Jsonb({**quest.metadata, CLAIMED: claimed}),
        },
    )


def _save(tokens: Tokens, member: Member, line: QuestLine) -> None:
    row = tokens.database.call(
        statements("plans")["save_quest"],
        {
            "organization_id": member.organization_id,
            "user_id": member.user_id,
            "title": line.title,
            "description": line.description,
            "quarter": line.quarter,
            "target": line.target_amount,
            "metadata": Jsonb(line.metadata()),
        },
    )
    if row["id"] is None:
        raise NotAMember(member.organization_id, member.user_id)
