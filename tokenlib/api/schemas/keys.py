"""API keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import (
    ConfigDict,
    Field,
)

from tokenlib.api.schemas.fields import NOT_BLANK, Answer, Moment, Question, Reason, Tokens

ScopeName = Literal["check", "spend", "read", "admin", "metrics"]


class KeyQuestion(Question):
    """Make a key, for one organization or (without) for all. Limits are its own; null is off."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "The product's server",
                "scopes": ["check", "spend"],
                "reason": "Launch",
            }
        }
    )

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=NOT_BLANK)]
    scopes: Annotated[
        list[ScopeName], Field(min_length=1, max_length=5, json_schema_extra={"uniqueItems": True})
    ]
    organization_id: UUID | None = None
    expires_at: Moment | None = None
    requests_per_minute: Tokens | None = None
    seconds_between_requests: Tokens | None = None
    tokens_per_request: Tokens | None = None
    output_units_per_request: Tokens | None = None
    limit_users: Annotated[bool, Field(strict=True)] = False
    reason: Reason


class RotateQuestion(Question):
    """Give a key a new secret; the one before it is good for a while."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"overlapSeconds": 86400, "reason": "Once a year"}}
    )

    overlap_seconds: Annotated[int, Field(strict=True, ge=0, le=2_592_000)] = 86_400
    reason: Reason


class NewKey(Answer):
    """A key and its secret. `secret` is shown once: a replay of the call has null there."""

    id: UUID
    organization_id: UUID | None
    start: str
    secret: str | None


class KeyRow(Answer):
    """A key as it stands. `start` is what it begins with; `oldUntil` when its old secret ends."""

    id: UUID
    organization_id: UUID | None
    name: str
    start: str
    scopes: list[ScopeName]
    owner_id: UUID
    requests_per_minute: int | None
    seconds_between_requests: float | None
    tokens_per_request: int | None
    output_units_per_request: int | None
    limit_users: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    old_until: datetime | None
    revoked_at: datetime | None


class Keys(Answer):
    """The keys that the caller manages, the latest first."""

    keys: list[KeyRow]
