"""Who spends most, how unusual that is, and who goes beyond the abuse limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from statistics import fmean, median
from typing import Literal
from uuid import UUID

from tokenlib.reports.asking import Asking, Id, Page, id_or_none, rows_at_most, window

BASELINE_DAYS = 28
UNUSUAL_FROM = 3.5
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Spender:
    """An organization, or a user of one, in a window. Tokens are gross.

    `share` is its part of all tokens of the window (0 to 1), `before` its tokens in the equally
    long window before. `daily` counts blocks of 24 hours that begin at full hours: 28 before the
    window, then those of the window. At its ends a block may be longer or shorter.
    """

    organization_id: UUID
    organization: str
    plan: str | None
    user_id: UUID | None
    user: str | None
    calls: int
    tokens: int
    refunded: int
    share: float
    before: int
    daily: tuple[int, ...]
    days: float

    @property
    def trend(self) -> tuple[int, ...]:
        """The last 28 blocks of 24 hours, for a sparkline."""
        return self.daily[-BASELINE_DAYS:]

    @property
    def change(self) -> float | None:
        """The change to the window before, as a part of it; None when that had none."""
        return (self.tokens - self.before) / self.before if self.before else None

    @property
    def unusual(self) -> float | None:
        """How far the window's tokens per day lie from the 28 days before it: a robust z-score.

        It is 0.6745 × (tokens per day less the median of those days) / their median absolute
        deviation, so that one wild day does not hide the next; where more than half of the days are
        alike, the mean absolute deviation × 1.2533 divides in its place. Above 3.5 is unusual. None
        without a past to compare with.
        """
        return robust_z(self.tokens / max(self.days, 1.0), self.daily[:BASELINE_DAYS])

    @property
    def new(self) -> bool:
        """Whether nothing was used in the 28 days before the window."""
        return not any(self.daily[:BASELINE_DAYS])


@dataclass(frozen=True, slots=True)
class AbuseRow:
    """A user who went beyond limits of theirs in a window; `over` names them.

    Peaks are of any 60 minutes and any 60 seconds that end at a request. `shortest_gap` is seconds
    between two requests, `largest_request` tokens. `rate_limited` counts what the gate refused.
    """

    organization_id: UUID
    organization: str
    user_id: UUID
    user: str
    requests: int
    tokens: int
    peak_hour_tokens: int
    peak_hour_until: datetime
    peak_minute_requests: int
    shortest_gap: float | None
    largest_request: int
    over: Sequence[str]
    rate_limited: int
    paused_at: datetime | None


class SpendReports(Asking):
    """Questions about heavy and unusual use."""

    def spenders(
        self,
        since: datetime,
        until: datetime,
        by: Literal["organization", "user"] = "organization",
        limit: int = 10,
        organization_id: Id | None = None,
    ) -> list[Spender]:
        """Who used the most tokens, beside the window before and the 28 days before."""
        bounds = window(since, until)
        days = (until - since) / _DAY
        rows = self._ask(
            "spend",
            f"spenders{self._closed}",
            **bounds,
            before=since - (until - since),
            by_user=by == "user",
            last_day=max(ceil(days), 1) - 1,
            limit=rows_at_most(limit),
            organization_id=id_or_none(organization_id, "organization_id"),
        )
        return [Spender(**{**row, "daily": tuple(row["daily"])}, days=days) for row in rows]

    def abuse(
        self,
        since: datetime,
        until: datetime,
        limit: int = 50,
        organization_id: Id | None = None,
    ) -> Page[AbuseRow]:
        """Users beyond the hourly alert or a limit of theirs.

        The limits of the organization count, else those of everyone. PermissionDenied for a member.
        """
        return self._page(
            AbuseRow,
            "spend",
            f"abuse{self._closed}",
            limit,
            **window(since, until),
            organization_id=id_or_none(organization_id, "organization_id"),
        )


def robust_z(value: float, past: Sequence[float]) -> float | None:
    """How many robust standard deviations `value` lies from the median of `past`."""
    if not any(past):
        return None
    middle = median(past)
    spread = median(abs(one - middle) for one in past) / 0.6745
    if spread == 0:
        spread = fmean(abs(one - middle) for one in past) * 1.2533
    if spread == 0:  # every day alike
        return None if value != middle else 0.0
    return (value - middle) / spread
