"""What staff see first: the figures of a window, what needs attention, what moved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from tokenlib.db import Row, as_uuid
from tokenlib.reports.asking import Id, Page, rows_at_most, window, zone
from tokenlib.reports.health import FindingRow, HealthReports, OverduePeriod, VerificationRow
from tokenlib.reports.organizations import OrganizationReports, OrganizationRow
from tokenlib.reports.refusals import FrequentRefusal, RefusalReports
from tokenlib.reports.spend import AbuseRow, SpendReports
from tokenlib.reports.wallets import ReservationRow, WalletReports

SPARKLINE_DAYS = 14
_WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a window, of the equally long window before, and day by day.

    `daily` has one value for each of the overview's `days`.
    """

    value: float
    before: float
    daily: tuple[float, ...]

    @property
    def change(self) -> float | None:
        """The change to the window before, as a part of it (0.25: a quarter more); None from 0."""
        return (self.value - self.before) / self.before if self.before else None


@dataclass(frozen=True, slots=True)
class Overview:
    """The figures of a window. Money is in US cents; `refusal_rate` from 0 to 1.

    `tokens` is gross, `refunded` what was given back in the window; the refusal rate is refusals /
    (refusals + uses); `revenue_cents` is what the present plans bring in over as long a time.
    `days` are calendar days of the reader's time zone: those of the window, and at least the last
    14. The first may be cut; `whole_days` of them are over.
    """

    since: datetime
    until: datetime
    days: tuple[date, ...]
    whole_days: int
    tokens: Figure
    uses: Figure
    organizations: Figure
    refusal_rate: Figure
    refunded: Figure
    cost_cents: Figure
    revenue_cents: Figure


@dataclass(frozen=True, slots=True)
class Attention:
    """What needs somebody now: how many of each, and the first rows.

    `at_80` and `at_100` have a wallet near its limit or at it; `abuse` is the last 24 hours.
    `verification` is the last of everybody's books, None when there was none.
    """

    at_80: Page[OrganizationRow]
    at_100: Page[OrganizationRow]
    expired_holds: Page[ReservationRow]
    overdue: Page[OverduePeriod]
    abuse: Page[AbuseRow]
    findings: Page[FindingRow]
    verification: VerificationRow | None


@dataclass(frozen=True, slots=True)
class Mover:
    """An organization whose use changed against the same days a week before, in tokens."""

    organization_id: UUID
    name: str
    plan: str | None
    tokens: int
    before: int

    @property
    def change(self) -> int:
        """Tokens more (or fewer) than the week before."""
        return self.tokens - self.before


@dataclass(frozen=True, slots=True)
class RunOut:
    """A wallet that is empty, or will be at its pace (tokens a day over the last 7 days)."""

    organization_id: UUID
    name: str
    plan: str | None
    token_type: str
    balance: int
    reserved: int
    total_allocated: int
    refresh_date: datetime
    pace: float
    run_out_at: datetime


@dataclass(frozen=True, slots=True)
class Movers:
    """Since Monday: what moved most, who runs out within a week, who should hear of an upgrade.

    `since` is the last Monday at midnight; on a Monday, that of the week before.
    """

    since: datetime
    moved: tuple[Mover, ...]
    run_outs: Page[RunOut]
    upgrades: tuple[FrequentRefusal, ...]


class OverviewReports(
    OrganizationReports, WalletReports, RefusalReports, SpendReports, HealthReports
):
    """Questions that bring others together, for staff. A member may ask `run_outs` alone, of its
    own organization; the others are PermissionDenied."""

    def overview(self, since: datetime, until: datetime, timezone: str = "UTC") -> Overview:
        """The figures of a window beside those of the window before."""
        bounds = window(since, until)
        first = min(since, until - timedelta(days=SPARKLINE_DAYS - 1))
        with self._in_zone(timezone) as ask:
            totals = {
                row["period"]: row
                for row in ask("overview", "totals", **bounds, before=since - (until - since))
            }
            found = ask("overview", "days", since=_midnight(first, timezone), until=until)
        by_day = {row["day"]: row for row in found}
        days = _days(first, until, timezone)
        now, before = totals["now"], totals["before"]
        day_revenue = float(now["revenue_cents"]) / max((until - since) / timedelta(days=1), 1e-9)

        def figure(name: str) -> Figure:
            daily = tuple(float(by_day[day][name]) if day in by_day else 0.0 for day in days)
            return Figure(float(now[name]), float(before[name]), daily)

        rates = tuple(_rate(by_day[day]) if day in by_day else 0.0 for day in days)
        revenue = Figure(
            float(now["revenue_cents"]), float(before["revenue_cents"]), (day_revenue,) * len(days)
        )
        return Overview(
            since=since,
            until=until,
            days=days,
            whole_days=len(days) - (_midnight(until, timezone) != until),
            tokens=figure("tokens"),
            uses=figure("uses"),
            organizations=figure("organizations"),
            refusal_rate=Figure(_rate(now), _rate(before), rates),
            refunded=figure("refunded"),
            cost_cents=figure("cost_cents"),
            revenue_cents=revenue,
        )

    def attention(self, limit: int = 5) -> Attention:
        """What needs somebody now: counts, and the first `limit` rows of each."""
        with self.together() as reports:
            now = reports.now()
            verifications = reports.verifications(limit=1)
            return Attention(
                at_80=reports.organizations(near=80, limit=limit),
                at_100=reports.organizations(near=100, limit=limit),
                expired_holds=reports._reservations(expired_only=True, limit=limit),
                overdue=reports._overdue(limit),
                abuse=reports.abuse(now - timedelta(hours=24), now, limit),
                findings=reports._findings(settled=False, limit=limit),
                verification=verifications[0] if verifications else None,
            )

    def movers(self, timezone: str = "UTC", limit: int = 5) -> Movers:
        """What changed since last Monday, against the same days of the week before."""
        with self.together() as reports:
            now = reports.now()
            since = last_monday(now, timezone)
            rows = reports._ask(
                "overview",
                f"movers{reports._closed}",
                since=since,
                until=now,
                before=since - _WEEK,
                before_until=now - _WEEK,
                limit=rows_at_most(limit),
            )
            return Movers(
                since=since,
                moved=tuple(Mover(**row) for row in rows),
                run_outs=reports.run_outs(_WEEK, limit),
                upgrades=tuple(reports.upgrade_candidates(since, now, limit)),
            )

    def run_outs(
        self,
        within: timedelta = _WEEK,
        limit: int = 50,
        organization_ids: Iterable[Id] | None = None,
    ) -> Page[RunOut]:
        """Wallets that are in use and run out before their refresh, `within` that time."""
        ids = None
        if organization_ids is not None:
            ids = [as_uuid(one, "organization_ids") for one in organization_ids]
        question = f"run_outs{self._closed}" if ids is None else "run_outs"
        return self._page(RunOut, "overview", question, limit, within=within, ids=ids)

    def upgrade_candidates(
        self, since: datetime, until: datetime, limit: int = 10
    ) -> list[FrequentRefusal]:
        """Organizations that more tokens or another plan would have helped, by refusals."""
        return self.frequent_refusals(since, until, limit, why="plan")


def last_monday(now: datetime, timezone: str) -> datetime:
    """The last Monday at midnight in a time zone; on a Monday, that of the week before."""
    local = now.astimezone(zone(timezone))
    back = local.weekday() or 7
    return datetime.combine(local.date() - timedelta(days=back), datetime.min.time(), local.tzinfo)


def _days(since: datetime, until: datetime, timezone: str) -> tuple[date, ...]:
    end = max(since, until - timedelta(microseconds=1))  # a midnight belongs to the day after it
    first, last = (moment.astimezone(zone(timezone)).date() for moment in (since, end))
    return tuple(first + timedelta(days=day) for day in range((last - first).days + 1))


def _midnight(moment: datetime, timezone: str) -> datetime:
    local = moment.astimezone(zone(timezone))
    return datetime.combine(local.date(), datetime.min.time(), local.tzinfo)


def _rate(row: Row) -> float:
    asked = row["refusals"] + row["uses"]
    return float(Decimal(row["refusals"]) / asked) if asked else 0.0
