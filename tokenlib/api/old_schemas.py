"""Bodies of the two old endpoints. Their names are a contract: camelCase outside, ours inside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AliasGenerator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from tokenlib.domain import Stats, Usage
from tokenlib.errors import InsufficientTokens


class _Question(BaseModel):
    # Old callers send more than is asked: what is not known is ignored.
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class _Answer(BaseModel):
    model_config = ConfigDict(alias_generator=AliasGenerator(serialization_alias=to_camel))


class CheckBalance(_Question):
    """What is asked of check-balance: the question, or the charge."""

    organization_id: UUID
    # PostgreSQL has no NUL in text; every other name is looked up in the catalog.
    feature_used: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]
    action: Literal["check", "deduct"] = "check"


class StatsQuery(_Question):
    """What is asked of stats."""

    organization_id: UUID


class HasTokens(_Answer):
    """The answer to `check`."""

    has_tokens: bool


class Deduction(_Answer):
    """The answer to `deduct`: charged, or too few tokens."""

    success: bool
    remaining_balance: int
    message: str

    @classmethod
    def charged(cls, usage: Usage) -> Deduction:
        """The answer for a charge; the same again for its replay."""
        return cls(
            success=True,
            remaining_balance=usage.remaining_balance,
            message=f"Used {usage.tokens_deducted} tokens for {usage.feature}",
        )

    @classmethod
    def refused(cls, error: InsufficientTokens) -> Deduction:
        """The answer when the balance does not pay: no error in the old form."""
        return cls(
            success=False,
            remaining_balance=error.available,
            message=f"Insufficient tokens. Need {error.needed}, have {error.available}",
        )


class OldWallet(BaseModel):
    """One token type in the answer of stats, in the table's own names."""

    token_type: str
    balance: int
    total_allocated: int
    total_used: int
    refresh_date: datetime


class StatsAnswer(_Answer):
    """Totals of an organization, and each wallet."""

    total_balance: int
    total_allocated: int
    total_used: int
    refresh_date: datetime | None
    by_type: list[OldWallet]

    @classmethod
    def of(cls, stats: Stats) -> StatsAnswer:
        """The library's answer in the old form."""
        return cls(
            total_balance=stats.total_balance,
            total_allocated=stats.total_allocated,
            total_used=stats.total_used,
            refresh_date=stats.refresh_date,
            by_type=[
                OldWallet(
                    token_type=wallet.token_type,
                    balance=wallet.balance,
                    total_allocated=wallet.total_allocated,
                    total_used=wallet.total_used,
                    refresh_date=wallet.refresh_date,
                )
                for wallet in stats.by_type
            ],
        )
