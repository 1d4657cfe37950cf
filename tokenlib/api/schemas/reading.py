"""What is there, what was used, and how it came to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from tokenlib.api.schemas.fields import Answer
from tokenlib.domain import Balance
from tokenlib.reports.explain import Story
from tokenlib.reports.series import UsageRow
from tokenlib.reports.wallets import EntryRow


class Wallet(Answer):
    """One wallet, current: `totalAllocated` = `balance` + `reserved` + `totalUsed`.

    `allowance` is what the plan gives per period; null means unlimited.
    """

    token_type: str
    balance: int
    reserved: int
    total_used: int
    total_allocated: int
    allowance: int | None
    period_start: datetime
    refresh_date: datetime
    last_used_at: datetime | None


class Balances(Answer):
    """Every wallet of an organization, in the catalog's order."""

    organization_id: UUID
    wallets: list[Wallet]


class Totals(Answer):
    """Totals of an organization over its wallets, and each wallet."""

    organization_id: UUID
    total_balance: int
    total_reserved: int
    total_used: int
    total_allocated: int
    refresh_date: datetime | None
    wallets: list[Wallet]

    @classmethod
    def of(cls, organization_id: UUID, wallets: Sequence[Balance]) -> Totals:
        """The sums over these wallets."""
        return cls(
            organization_id=organization_id,
            total_balance=sum(wallet.balance for wallet in wallets),
            total_reserved=sum(wallet.reserved for wallet in wallets),
            total_used=sum(wallet.total_used for wallet in wallets),
            total_allocated=sum(wallet.total_allocated for wallet in wallets),
            refresh_date=min((wallet.refresh_date for wallet in wallets), default=None),
            wallets=[Wallet.model_validate(wallet) for wallet in wallets],
        )


class HistoryRow(Answer):
    """One charge of the past. `metadata` is what came with it, or null once it was erased."""

    id: UUID
    user_id: UUID | None
    feature: str
    token_type: str
    units: int
    tokens: int
    waived: int
    remaining_balance: int
    refunded: bool
    reservation_id: UUID | None
    metadata: Mapping[str, Any] | None
    created_at: datetime


class History(Answer):
    """Charges, the latest first. `nextCursor` asks for the page after this one; null: the last."""

    rows: list[HistoryRow]
    next_cursor: str | None

    @classmethod
    def of(cls, rows: Sequence[UsageRow], next_cursor: str | None) -> History:
        """One page."""
        return cls(rows=[HistoryRow.model_validate(row) for row in rows], next_cursor=next_cursor)


EntryKind = Literal[
    "charge",
    "opening",
    "refresh",
    "plan_change",
    "top_up",
    "grant",
    "grant_scheduled",
    "grant_expired",
    "reserve",
    "release",
    "hold_expired",
    "refund",
    "finding_settled",
    "metadata_erased",
    "archived",
]


class Entry(Answer):
    """One entry of a wallet: a charge, or another event, with the balance after it.

    The three changes are signed, and `balanceAfter` is what could be spent then. `actor` is the
    user of a charge, else who caused the event.
    """

    id: UUID
    kind: EntryKind
    token_type: str
    feature: str | None
    actor: str | None
    reason: str | None
    balance_change: int
    reserved_change: int
    used_change: int
    balance_after: int
    waived: int
    refunded: bool
    effective_at: datetime
    created_at: datetime


class Entries(Answer):
    """Entries, the latest first. `nextCursor` asks for the page after this one; null: the last."""

    rows: list[Entry]
    next_cursor: str | None

    @classmethod
    def of(cls, rows: Sequence[EntryRow], next_cursor: str | None) -> Entries:
        """One page."""
        return cls(rows=[Entry.model_validate(row) for row in rows], next_cursor=next_cursor)


class Movement(Answer):
    """Movements of one kind: how many, and their sum (below 0: it lowered the balance)."""

    kind: str
    detail: str | None
    label: str
    count: int
    tokens: int
    waived: int


class Explanation(Answer):
    """How a balance came to be: `opening` + the sum of `lines` = `balance` + `held`, always."""

    organization_id: UUID
    token_type: str
    at: datetime
    opened_by: str
    opened_at: datetime
    opening: int
    lines: list[Movement]
    holds: int
    held: int
    balance: int
    used: int
    unlimited: bool
    refresh_date: datetime

    @classmethod
    def of(cls, story: Story) -> Explanation:
        """The library's story."""
        return cls.model_validate(story)


class CatalogFeature(Answer):
    """What one unit of a feature costs, and which token type pays.

    `unitSize` is how many output units of an answer one unit pays; null: a use is one unit.
    """

    feature: str
    title: str
    token_type: str
    cost: int
    unit_size: int | None


class Allowance(Answer):
    """What a plan gives of a token type per period; null is unlimited."""

    plan: str
    token_type: str
    allowance: int | None


class CatalogAnswer(Answer):
    """Plans, token types, features, costs and allowances as they stand now."""

    features: list[CatalogFeature]
    token_types: list[str]
    plans: list[str]
    allowances: list[Allowance]
