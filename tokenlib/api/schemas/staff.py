"""What staff do."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import (
    ConfigDict,
    Field,
)

from tokenlib.api.schemas.fields import Answer, Moment, Name, Question, Reason, Tokens, text
from tokenlib.domain import GrantKind, Mode, OrganizationStatus


class GrantQuestion(Question):
    """Add tokens. `shared` pays for every feature."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"tokenType": "goal_generation", "amount": 10, "reason": "Goodwill"}
        }
    )

    token_type: Name
    amount: Tokens
    kind: Literal["purchase", "gift", "adjustment"] = "gift"
    source: Annotated[str, text(200)] = "api"
    effective_at: Moment | None = None
    expires_at: Moment | None = None
    reason: Reason


class GrantAnswer(Answer):
    """An addition of tokens; `balance` is its wallet's after it."""

    id: UUID
    organization_id: UUID
    token_type: str
    kind: GrantKind
    source: str
    amount: int
    balance: int
    effective_at: datetime
    expires_at: datetime | None


class PlanQuestion(Question):
    """Move to another plan: the new allowance less what was used, never a refill."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"plan": "enterprise", "reason": "Upgrade, invoice 7"}}
    )

    plan: Name
    reason: Reason


class StatusQuestion(Question):
    """The payment state; AI runs only while it is `active`. `suspended` pauses it."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"status": "suspended", "reason": "Asked for"}}
    )

    status: OrganizationStatus
    reason: Reason


class PauseQuestion(Question):
    """Pause or resume one user."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"paused": True, "reason": "A script gone wild"}}
    )

    paused: Annotated[bool, Field(strict=True)] = True
    reason: Reason


class SwitchQuestion(Question):
    """The emergency switch, for one organization or everyone; back by itself at `until`."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"mode": "log_only", "reason": "A launch"}}
    )

    mode: Mode
    organization_id: UUID | None = None
    until: Moment | None = None
    reason: Reason


class RequestLimitQuestion(Question):
    """How many charges and holds a minute are taken from an organization; null is no own limit."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"requestsPerMinute": 600, "reason": "A quiet neighbour"}}
    )

    requests_per_minute: Tokens | None
    reason: Reason


class Done(Answer):
    """It was done and is on record."""

    organization_id: UUID | None
    done: Literal[True] = True
