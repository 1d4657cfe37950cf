"""Who used what: features, days, top spenders, refunds, money.

`tokens` is always gross, the sum of `tokens_deducted`; `refunded` counts refunds by the time they
were given, so it may concern charges before the window; `net` is gross less refunded. `waived` is
what the switch let through without a charge. Windows are `since` <= time < `until`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from tokenlib.reports.asking import Asking, Id, id_or_none, rows_at_most, window


@dataclass(frozen=True, slots=True)
class FeatureUsage:
    """Uses and tokens of one feature. `token_type` is the one that the catalog gives it."""

    feature: str
    token_type: str
    uses: int
    tokens: int
    waived: int
    refunded: int
    net: int


@dataclass(frozen=True, slots=True)
class DayUsage:
    """One calendar day in the reader's time zone. A day without use or refund has no row."""

    day: date
    feature: str | None
    uses: int
    tokens: int
    refunded: int


@dataclass(frozen=True, slots=True)
class OrganizationSpend:
    """One organization's use. `share` is its part of all tokens of the window, from 0 to 1."""

    organization_id: UUID
    name: str
    plan: str | None
    uses: int
    tokens: int
    refunded: int
    net: int
    share: float


@dataclass(frozen=True, slots=True)
class UserSpend:
    """One user's use. `user` is name, else e-mail, else id; "unknown" where the log has none."""

    organization_id: UUID
    organization: str
    user_id: UUID | None
    user: str
    calls: int
    tokens: int
    share: float


@dataclass(frozen=True, slots=True)
class RefundTotals:
    """Charges given back in the window: how many, and their tokens."""

    refunds: int
    tokens: int
    organizations: int


@dataclass(frozen=True, slots=True)
class CostRevenue:
    """Estimated cost of the tokens used against what the present plans bring in, in US cents.

    Plans count by the month of 30 days, prorated to the window.
    """

    tokens: int
    cost_cents: Decimal
    revenue_cents: Decimal


class UsageReports(Asking):
    """Questions about use, answered from the usage log and the refund entries."""

    def usage_by_feature(
        self, since: datetime, until: datetime, organization_id: Id | None = None
    ) -> list[FeatureUsage]:
        """Uses and tokens per feature, the most tokens first."""
        rows = self._ask(
            "usage",
            f"by_feature{self._closed}",
            **window(since, until),
            organization_id=id_or_none(organization_id, "organization_id"),
        )
        return [FeatureUsage(**row) for row in rows]

    def usage_by_day(
        self,
        since: datetime,
        until: datetime,
        timezone: str = "UTC",
        organization_id: Id | None = None,
        by_feature: bool = False,
    ) -> list[DayUsage]:
        """Tokens per day of `timezone` (a name such as Europe/Rome), or per day and feature.

        The first and the last day hold only what lies in the window. Raises InvalidInput for a time
        zone that the database does not know.
        """
        with self._in_zone(timezone) as ask:
            rows = ask(
                "usage",
                f"by_day{self._closed}",
                **window(since, until),
                organization_id=id_or_none(organization_id, "organization_id"),
                by_feature=by_feature,
            )
        return [DayUsage(**row) for row in rows]

    def top_organizations(
        self, since: datetime, until: datetime, limit: int = 10
    ) -> list[OrganizationSpend]:
        """The organizations that used the most tokens."""
        rows = self._ask(
            "usage",
            f"top_organizations{self._closed}",
            **window(since, until),
            limit=rows_at_most(limit),
        )
        return [OrganizationSpend(**row) for row in rows]

    def top_users(
        self,
        since: datetime,
        until: datetime,
        limit: int = 10,
        organization_id: Id | None = None,
    ) -> list[UserSpend]:
        """The users that used the most tokens, of everyone or of one organization."""
        rows = self._ask(
            "usage",
            f"top_users{self._closed}",
            **window(since, until),
            limit=rows_at_most(limit),
            organization_id=id_or_none(organization_id, "organization_id"),
        )
        return [UserSpend(**row) for row in rows]

    def refunds(
        self, since: datetime, until: datetime, organization_id: Id | None = None
    ) -> RefundTotals:
        """What was given back in the window."""
        rows = self._ask(
            "usage",
            "refunds",
            **window(since, until),
            organization_id=id_or_none(organization_id, "organization_id"),
        )
        return RefundTotals(**rows[0])

    def cost_against_revenue(self, since: datetime, until: datetime) -> CostRevenue:
        """What the AI calls cost against what the plans bring in. For staff: members may not ask.

        Raises PermissionDenied for a member.
        """
        rows = self._ask("usage", f"cost_against_revenue{self._closed}", **window(since, until))
        return CostRevenue(**rows[0])
