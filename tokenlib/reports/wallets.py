"""What wallets hold: balances, who runs low, holds, and the entries that explain a balance.

Figures are the stored ones; `refresh_due` marks a wallet whose period has ended and which its next
touch brings up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from tokenlib.db import as_uuid
from tokenlib.domain import Level, level
from tokenlib.reports.asking import Asking, Id, Page, id_or_none, open_window, rows_at_most


@dataclass(frozen=True, slots=True)
class WalletRow:
    """One wallet as stored. `allowance` is None when unlimited, or while its books are unopened.

    `granted_extra` is what open grants give beyond the allowance, less what earlier periods used.
    `plan` is the organization's; `status` its payment state.
    """

    organization_id: UUID
    name: str
    plan: str | None
    status: str
    token_type: str
    balance: int
    reserved: int
    total_used: int
    total_allocated: int
    allowance: int | None
    unlimited: bool
    granted_extra: int
    refresh_date: datetime
    refresh_due: bool
    last_used_at: datetime | None

    @property
    def level(self) -> Level:
        """Colour by what is left; unlimited is green, 0 of 0 is "none" (not in this plan)."""
        return "green" if self.unlimited else level(self.balance, self.total_allocated)


@dataclass(frozen=True, slots=True)
class ReservationRow:
    """A hold that nobody has ended yet. `expired`: its time is over, its next touch frees it."""

    id: UUID
    organization_id: UUID
    organization: str
    user_id: UUID
    user: str
    token_type: str
    feature: str
    units: int
    tokens: int
    waived: int
    created_at: datetime
    expires_at: datetime
    age: timedelta
    expired: bool


@dataclass(frozen=True, slots=True)
class EntryRow:
    """One entry of a wallet: a charge (`kind` "charge") or an event, with the balance after it.

    `log_position` and `event_position` are its place in the wallet's order; a legacy charge has 0.
    `actor` is the user id of a charge, else who caused the event; `reason` an event's stated one.
    `refunded`: a charge that was given back since.
    """

    id: UUID
    token_type: str
    log_position: int
    event_position: int
    kind: str
    created_at: datetime
    effective_at: datetime
    actor: str | None
    feature: str | None
    reason: str | None
    balance_change: int
    reserved_change: int
    used_change: int
    balance_after: int
    waived: int
    data: Mapping[str, Any] | None
    refunded: bool


class EntryPosition(Protocol):
    """An entry's place in the ledger, such as an EntryRow's."""

    @property
    def created_at(self) -> datetime: ...
    @property
    def token_type(self) -> str: ...
    @property
    def log_position(self) -> int: ...
    @property
    def event_position(self) -> int: ...
    @property
    def id(self) -> UUID: ...


class WalletReports(Asking):
    """Questions about balances and what moved them."""

    def wallets(self, organization_id: Id | None = None) -> list[WalletRow]:
        """Every wallet, by organization name and the catalog's order of token types."""
        organization = id_or_none(organization_id, "organization_id")
        rows = self._ask("wallets", "wallets", ids=None if organization is None else [organization])
        return [WalletRow(**row) for row in rows]

    def wallets_of(self, organization_ids: Iterable[Id]) -> dict[UUID, tuple[WalletRow, ...]]:
        """The wallets of some organizations: a page of a list, in one question."""
        ids = [as_uuid(one, "organization_ids") for one in organization_ids]
        found: dict[UUID, list[WalletRow]] = {one: [] for one in ids}
        for row in self._ask("wallets", "wallets", ids=ids):
            found[row["organization_id"]].append(WalletRow(**row))
        return {one: tuple(wallets) for one, wallets in found.items()}

    def reservations(
        self,
        expired_only: bool = False,
        live_only: bool = False,
        organization_id: Id | None = None,
    ) -> list[ReservationRow]:
        """Holds that nobody has ended: live ones, and ones past their expiry. The oldest first."""
        organization = id_or_none(organization_id, "organization_id")
        return list(self._reservations(expired_only, live_only, organization).rows)

    def _reservations(
        self,
        expired_only: bool = False,
        live_only: bool = False,
        organization_id: UUID | None = None,
        limit: int | None = None,
    ) -> Page[ReservationRow]:
        return self._page(
            ReservationRow,
            "wallets",
            "reservations",
            limit,
            expired_only=expired_only,
            live_only=live_only,
            organization_id=organization_id,
        )

    def ledger(
        self,
        organization_id: Id,
        token_type: str | None = None,
        limit: int = 50,
        before: EntryPosition | None = None,
        *,
        kind: str | None = None,
        feature: str | None = None,
        user_id: Id | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[EntryRow]:
        """Charges (`kind` "charge") and events of one organization, the latest first.

        Give the last row of one page (or its place) as `before` to get the next. `user_id` is who
        caused an entry, or whose charge was given back; `since` <= created_at < `until`, each may
        be open.
        """
        rows = self._ask(
            "wallets",
            "ledger",
            organization_id=as_uuid(organization_id, "organization_id"),
            token_type=token_type,
            limit=rows_at_most(limit),
            kind=kind,
            feature=feature,
            user_id=id_or_none(user_id, "user_id"),
            **open_window(since, until),
            before_at=before and before.created_at,
            before_type=before and before.token_type,
            before_log=before and before.log_position,
            before_event=before and before.event_position,
            before_id=before and before.id,
        )
        return [EntryRow(**row) for row in rows]
