"""What every body is made of: camelCase outside, ours inside; problems, and health."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasGenerator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)
from pydantic.alias_generators import to_camel

from tokenlib.domain import MAX_TOKENS, MAX_UNITS

A_TIME = "must be a time with its offset, such as 2026-04-01T00:00:00Z (in an address %2B is the +)"
# What pydantic takes besides, as seconds since 1970, is told from no typing error.
_ISO = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d([.,]\d+)?)?([Zz]|[+-]\d\d(:?\d\d)?)", re.ASCII
)

_DIGITS = re.compile(r"-?[0-9]+")


def _iso(value: object) -> object:
    if isinstance(value, datetime | None) or (isinstance(value, str) and _ISO.fullmatch(value)):
        return value
    raise ValueError(A_TIME)


def _decimal(value: object) -> object:
    # In an address every number is text, and pydantic reads 1_0 and 1.0, too.
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise ValueError("must be a whole number")
    return value


def _in_utc(value: datetime) -> datetime:
    # PostgreSQL knows offsets up to 16 hours only.
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a time that a calendar has") from None


NAME = r"^[A-Za-z0-9_.:-]{1,100}$"
NO_NUL = r"^[^\x00]*$"
NOT_BLANK = r"^[^\x00]*[^\x00\s][^\x00]*$"


def text(most: int) -> Any:
    """Text that PostgreSQL can keep and that says something."""
    return Field(min_length=1, max_length=most, pattern=NO_NUL)


# Named in the catalog, which is the database's; a name without a blank or a control character.
Name = Annotated[str, Field(pattern=NAME, examples=["generate_goal"])]
Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_iso, json_schema_input_type=AwareDatetime),
    AfterValidator(_in_utc),
]
Units = Annotated[int, Field(strict=True, ge=1, le=MAX_UNITS)]
Tokens = Annotated[int, Field(strict=True, ge=1, le=MAX_TOKENS)]
# How an address says a whole number, beside its bounds.
Decimal = BeforeValidator(_decimal)
Reason = Annotated[str, Field(min_length=1, max_length=500, pattern=NOT_BLANK)]


class Question(BaseModel):
    """A body that is asked."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)


class Answer(BaseModel):
    """A body that is answered."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(serialization_alias=to_camel), from_attributes=True
    )


class InvalidField(Answer):
    """One thing that is wrong with a request."""

    field: str
    problem: str


class Problem(Answer):
    """Why there is no other answer (RFC 9457). `code` is stable, `detail` is for people."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "type": "/api/v1/docs#insufficient-tokens",
                "title": "Payment Required",
                "status": 402,
                "detail": "Insufficient tokens. Need 3, have 2. Tokens refresh on 2026-04-01.",
                "code": "insufficient_tokens",
                "requestId": "5f0c3f5f3d0b4f0c9a3b1f6f3c2d1e0f",
                "tokenType": "goal_generation",
                "needed": 3,
                "available": 2,
            }
        },
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[InvalidField] | None = None


class Health(Answer):
    """Whether the process lives, or can serve."""

    status: Literal["ok", "unavailable"]
