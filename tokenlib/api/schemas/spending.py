"""The path of an AI call: questions, charges, holds, refunds, verdicts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    ConfigDict,
    Field,
)

from tokenlib.api.schemas.fields import Answer, Name, Question, Reason, Units


class _Spend(Question):
    feature: Name
    units: Units = 1
    user_id: UUID | None = Field(
        None, description="The member who spends. Needed with an API key; a person is their own."
    )
    metadata: dict[str, Any] | None = Field(None, description="JSON of at most 16 KiB.")


class ChargeQuestion(_Spend):
    """Charge a feature at once."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"feature": "generate_goal", "metadata": {"quarter": "2026-Q2"}}
        }
    )


class ReservationQuestion(_Spend):
    """Hold the cost of a feature while the AI call runs."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"feature": "generate_goal", "units": 2, "holdSeconds": 300}}
    )

    hold_seconds: Annotated[int, Field(strict=True, ge=1, le=86_400)] | None = Field(
        None, description="The life of the hold; 10 minutes unless said."
    )
    id: UUID | None = Field(
        None,
        description="Your name for the hold, new for each call and the same in its repetitions: the"
        " same Idempotency-Key in another call is then told `in_progress`. 422 where another hold"
        " has it.",
    )


class SettleQuestion(Question):
    """Charge what was used of a hold, all of it unless said; the rest goes back."""

    model_config = ConfigDict(json_schema_extra={"example": {"units": 1}})

    units: Units | None = None
    metadata: dict[str, Any] | None = None


class ReleaseQuestion(Question):
    """Give a hold back."""

    model_config = ConfigDict(json_schema_extra={"example": {"reason": "The user cancelled"}})

    reason: Reason | None = None


class ReasonQuestion(Question):
    """Why something is done; it is on record."""

    model_config = ConfigDict(json_schema_extra={"example": {"reason": "The answer was empty"}})

    reason: Reason


class Charge(Answer):
    """One charge as the usage log has it. `tokensWaived` is what the switch let through."""

    id: UUID
    organization_id: UUID
    user_id: UUID | None
    feature: str
    token_type: str
    tokens_deducted: int
    tokens_waived: int
    remaining_balance: int
    created_at: datetime


class Reservation(Answer):
    """Tokens held while the AI call runs; it ends deducted, released, or by itself."""

    id: UUID
    organization_id: UUID
    user_id: UUID
    feature: str
    token_type: str
    units: int
    tokens: int
    remaining_balance: int
    expires_at: datetime


class Released(Answer):
    """A hold that was given back."""

    id: UUID
    organization_id: UUID
    token_type: str
    remaining_balance: int


class Refund(Answer):
    """A charge that was given back."""

    usage_id: UUID
    organization_id: UUID
    user_id: UUID | None
    feature: str
    token_type: str
    tokens: int
    remaining_balance: int
    created_at: datetime


class Enough(Answer):
    """Whether the balance would pay; who asks, payment states and limits do not matter."""

    has_enough: bool


class Verdict(Answer):
    """Whether the user may run the feature now, and the rule that would refuse."""

    allowed: bool
    rule: str | None
    message: str
    needed: int
    available: int
    token_type: str
    refresh_date: datetime | None
    retry_after: float | None
