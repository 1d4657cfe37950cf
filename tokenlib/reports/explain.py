"""A balance as a story: what opened the period, what moved it, what is held, what remains."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from tokenlib import inputs
from tokenlib.db import as_uuid
from tokenlib.errors import InvalidInput
from tokenlib.reports.asking import Asking, Id, rows_at_most

_LABELS = {
    "charge": "used for {}",
    "refund": "given back for {}",
    "grant": "granted as {}",
    "grant_expired": "expired, of {}",
    "plan_change": "plan changed",
    "top_up": "topped up, as the plan is unlimited",
    "hold_lapsed": "released from a hold after the grant had expired",
}


@dataclass(frozen=True, slots=True)
class StoryLine:
    """Movements of one kind: how many, and their sum in tokens (below 0: it lowered the balance).

    `kind` is charge, refund, grant, grant_expired, plan_change, top_up or hold_lapsed (held tokens
    whose grant expired meanwhile). `detail` is the feature of a charge or refund and the kind of a
    grant. `waived` is what the switch let through without a charge.
    """

    kind: str
    detail: str | None
    count: int
    tokens: int
    waived: int

    @property
    def label(self) -> str:
        """The movement in words, such as "used for generate_goal"."""
        words = _LABELS.get(self.kind, self.kind.replace("_", " "))
        return words.format(self.detail or "unknown")


@dataclass(frozen=True, slots=True)
class Story:
    """How a balance came to be: `opening` + the sum of `lines` = `balance` + `held`, always.

    `opening` is what the period began with: the balance then and what was held then. `opened_by` is
    "opening" (the wallet's first entry) or "refresh". `at` is the moment that the story ends at;
    `refresh_due` marks a period that has ended and that the next touch brings up to date.
    """

    organization_id: UUID
    token_type: str
    at: datetime
    opened_by: Literal["opening", "refresh"]
    opened_at: datetime
    opening: int
    lines: tuple[StoryLine, ...]
    holds: int
    held: int
    balance: int
    used: int
    unlimited: bool
    refresh_date: datetime

    @property
    def allocated(self) -> int:
        """What the period had to give: balance + held + used."""
        return self.balance + self.held + self.used

    @property
    def refresh_due(self) -> bool:
        """Whether the period had ended at `at`, untouched since."""
        return self.refresh_date <= self.at

    @property
    def closes(self) -> bool:
        """Whether the sums close; they always do in books of ours."""
        return self.opening + sum(line.tokens for line in self.lines) == self.balance + self.held


@dataclass(frozen=True, slots=True)
class GrantRow:
    """A grant and what is left of it now; `actor` and `reason` are None for an allowance.

    `arrived_at` is None while it is scheduled; `closed_at` is when it expired or its period ended.
    """

    id: UUID
    organization_id: UUID
    token_type: str
    kind: str
    source: str
    amount: int
    remaining: int
    created_at: datetime
    effective_at: datetime
    arrived_at: datetime | None
    expires_at: datetime | None
    closed_at: datetime | None
    actor: str | None
    reason: str | None


class ExplainReports(Asking):
    """Questions about how one balance came to be."""

    def explain(
        self, organization_id: Id, token_type: str, at: datetime | None = None
    ) -> Story | None:
        """The story of a wallet now, or as it stood at a past moment, exact to the entry.

        What fell due by itself (a refresh, an expiry) counts from its own time on, also where it
        was written later. None where the viewer sees no such wallet, and before its books opened.
        """
        if at is not None and at.tzinfo is None:
            raise InvalidInput("at", "must have a time zone")
        rows = self._ask(
            "explain",
            f"story{self._closed}",
            organization_id=as_uuid(organization_id, "organization_id"),
            token_type=inputs.text(token_type, "token_type"),
            at=at,
        )
        if not rows:
            return None
        told = rows[0]
        opened_at, refresh_date = _period(
            told["opened_at"], told["refresh_date"], told["period"], told["at"]
        )
        return Story(
            organization_id=told["organization_id"],
            token_type=told["token_type"],
            at=told["at"],
            opened_by=told["opened_by"],
            opened_at=opened_at,
            opening=int(told["opening"]),
            lines=tuple(
                StoryLine(row["kind"], row["detail"], row["count"], row["tokens"], row["waived"])
                for row in rows
                if row["kind"] is not None
            ),
            holds=told["holds"],
            held=int(told["held"]),
            balance=int(told["balance"]),
            used=int(told["used"]),
            unlimited=told["unlimited"],
            refresh_date=refresh_date,
        )

    def grants(
        self, organization_id: Id, closed: bool = False, limit: int = 1000
    ) -> list[GrantRow]:
        """Open grants in burn order (first used first); with `closed`, then the ended ones."""
        rows = self._ask(
            "explain",
            "grants",
            organization_id=as_uuid(organization_id, "organization_id"),
            closed=closed,
            limit=rows_at_most(limit),
        )
        return [GrantRow(**row) for row in rows]


def _period(
    opened_at: datetime, refresh_date: datetime, period: timedelta, at: datetime
) -> tuple[datetime, datetime]:
    """The bounds of the period that `at` lies in: an idle wallet's refresh spans several."""
    if refresh_date > at:
        refresh_date -= (refresh_date - at - timedelta(microseconds=1)) // period * period
    return max(opened_at, refresh_date - period), refresh_date
