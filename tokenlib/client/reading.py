"""Questions: may it run, what is there, what was used, and how it came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from tokenlib import inputs
from tokenlib.client import forms, wire
from tokenlib.client.calling import Calling, not_understood, read
from tokenlib.client.http import Reply
from tokenlib.db import as_uuid
from tokenlib.domain import Balance, Catalog, Feature, Stats, Verdict, plain
from tokenlib.reports.explain import Story

Id = UUID | str
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PastCharge:
    """A charge of the past. `metadata` is None where there was none, and once it was erased."""

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


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a wallet, with signed changes and the balance after it.

    `actor` is the user of a charge, else who caused the event; `reason` an event's stated one.
    """

    id: UUID
    kind: str
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


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some rows of a longer list. `next_cursor` asks for those after them; None: the last page."""

    rows: tuple[T, ...]
    next_cursor: str | None


class ReadingVerbs(Calling):
    """What changes nothing."""

    def can_use(
        self,
        organization: Id,
        user: Id,
        feature: str,
        units: int = 1,
        *,
        output_units: int | None = None,
    ) -> Verdict:
        """The whole verdict without charging, and the rule that would refuse.

        By the limits of this key, too. `output_units`: what the metadata of the charge would say.
        """
        asked = {
            "feature": inputs.text(feature, "feature"),
            "units": inputs.units(units),
            "outputUnits": inputs.output_units(output_units),
            "userId": as_uuid(user, "user"),
        }
        path = f"/organizations/{as_uuid(organization, 'organization')}/can-use"
        return read(Verdict, self._get(path, **asked))

    def has_enough_tokens(self, organization: Id, feature: str, units: int = 1) -> bool:
        """Whether the balance would pay: the UI's question, never the decision."""
        asked = {"feature": inputs.text(feature, "feature"), "units": inputs.units(units)}
        path = f"/organizations/{as_uuid(organization, 'organization')}/has-enough"
        said = (self._get(path, **asked).document or {}).get("hasEnough")
        if not isinstance(said, bool):
            raise not_understood()
        return said

    def history(
        self,
        organization: Id,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
        *,
        user: Id | None = None,
        feature: str | None = None,
        token_type: str | None = None,
    ) -> Page[PastCharge]:
        """Charges, the latest first; `next_cursor` of a page as `cursor` goes on.

        `since` <= created_at < `until`, each may be open. At most 1,000 on a page.
        """
        path = f"/organizations/{as_uuid(organization, 'organization')}/history"
        asked = _filters(since, until, limit, cursor, user, feature, token_type)
        return _page(PastCharge, self._get(path, **asked))

    def entries(
        self,
        organization: Id,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
        *,
        kind: str | None = None,
        user: Id | None = None,
        feature: str | None = None,
        token_type: str | None = None,
    ) -> Page[Entry]:
        """All that moved the wallets, the latest first: charges, grants, holds, refunds …

        `kind` is one of them, `user` who caused an entry or whose charge was given back.
        """
        path = f"/organizations/{as_uuid(organization, 'organization')}/entries"
        asked = _filters(since, until, limit, cursor, user, feature, token_type)
        return _page(Entry, self._get(path, kind=kind, **asked))

    def explain(self, organization: Id, token_type: str, at: datetime | None = None) -> Story:
        """How a balance came to be, now or at a past moment. NotFound before its books opened."""
        name = forms.name(token_type, "token_type")
        path = f"/organizations/{as_uuid(organization, 'organization')}/explain/{name}"
        return read(Story, self._get(path, at=plain(inputs.moment(at, "at"))))

    def get_token_balance(self, organization: Id, token_type: str) -> Balance:
        """One wallet, current: a period that has ended is already refreshed."""
        organization_id = as_uuid(organization, "organization")
        name = forms.name(token_type, "token_type")
        reply = self._get(f"/organizations/{organization_id}/balances/{name}")
        return read(Balance, reply, organization_id=str(organization_id))

    def get_all_token_balances(self, organization: Id) -> tuple[Balance, ...]:
        """Every wallet of the organization, current, in the catalog's order."""
        path = f"/organizations/{as_uuid(organization, 'organization')}/balances"
        return read(Stats, _wallets(self._get(path)), **_NO_TOTALS).by_type

    def get_token_stats(self, organization: Id) -> Stats:
        """Totals over the wallets, each wallet, and the next refresh."""
        path = f"/organizations/{as_uuid(organization, 'organization')}/stats"
        return read(Stats, _wallets(self._get(path)))

    def catalog(self) -> Catalog:
        """The catalog as it stands now."""
        reply = self._get("/catalog")
        try:
            said = reply.document or {}
            features = [wire.read(Feature, each) for each in said["features"]]
            allowances = {
                (each["plan"], each["tokenType"]): each["allowance"] for each in said["allowances"]
            }
            return Catalog(
                features={each.feature: each for each in features},
                token_types=tuple(said["tokenTypes"]),
                plans=tuple(said["plans"]),
                allowances=allowances,
            )
        except (KeyError, TypeError, ValueError):
            raise not_understood() from None


_NO_TOTALS = dict.fromkeys(
    ("total_balance", "total_reserved", "total_used", "total_allocated", "refresh_date")
)


def _wallets(reply: Reply) -> Reply:
    """Wallets as our Stats have them: each with its organization."""
    said = dict(reply.document or {})
    place, wallets = said.get("organizationId"), said.pop("wallets", None)
    if not isinstance(wallets, list):
        raise not_understood()
    return replace(
        reply, document={**said, "byType": [{**each, "organizationId": place} for each in wallets]}
    )


def _filters(
    since: datetime | None,
    until: datetime | None,
    limit: int,
    cursor: str | None,
    user: Id | None,
    feature: str | None,
    token_type: str | None,
) -> dict[str, Any]:
    return {
        "since": plain(inputs.moment(since, "since")),
        "until": plain(inputs.moment(until, "until")),
        "limit": limit,
        "cursor": cursor,
        "userId": None if user is None else as_uuid(user, "user"),
        "feature": inputs.optional_text(feature, "feature"),
        "tokenType": inputs.optional_text(token_type, "token_type"),
    }


def _page(kind: type[T], reply: Reply) -> Page[T]:
    said = reply.document or {}
    rows = said.get("rows")
    if not isinstance(rows, list):
        raise not_understood()
    return Page(
        tuple(read(kind, replace(reply, document=each)) for each in rows), said.get("nextCursor")
    )
