"""Use over time for stacked charts, and the raw rows behind a bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol
from uuid import UUID

from tokenlib.errors import InvalidInput
from tokenlib.reports.asking import Asking, Id, id_or_none, open_window, rows_at_most, whole, window

Grouping = Literal["feature", "plan", "organization", "user", "all"]
Bucket = Literal["hour", "day", "week"]


@dataclass(frozen=True, slots=True)
class SeriesPoint:
    """One part of one bar. `start` is when its hour, day or week (from Monday) begins.

    `key` is a feature, a plan, an organization's or a user's id; None stands for all that is
    outside the top ("Other"), "" for charges whose user or plan is not known. Plans are those of
    today. Who was charged in two organizations is ranked as two, and so is nobody known.
    """

    start: datetime
    key: str | None
    label: str
    uses: int
    tokens: int
    refunded: int


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """The sums of a window: tokens gross, refunded by the time it was given, net, waived."""

    uses: int
    tokens: int
    waived: int
    refunded: int
    net: int


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One charge as the log has it; `refunded` when it was given back since."""

    id: UUID
    organization_id: UUID
    organization: str
    plan: str | None
    user_id: UUID | None
    user: str
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


class Position(Protocol):
    """A place in the log: any UsageRow has it, and so does what a caller kept of one."""

    @property
    def created_at(self) -> datetime: ...
    @property
    def organization_id(self) -> UUID: ...
    @property
    def id(self) -> UUID: ...


class SeriesReports(Asking):
    """Questions about use over time."""

    def usage_series(
        self,
        since: datetime,
        until: datetime,
        by: Grouping = "feature",
        bucket: Bucket = "day",
        timezone: str = "UTC",
        top: int = 8,
        *,
        organization_id: Id | None = None,
        user_id: Id | None = None,
        feature: str | None = None,
        plan: str | None = None,
    ) -> list[SeriesPoint]:
        """Tokens per hour, day or week of `timezone`, stacked by something.

        The `top` keys of the whole window have a part of their own, the rest is one part. Within a
        bar the largest key of the window comes first. A bar without use or refund has no row.
        """
        if by not in ("feature", "plan", "organization", "user", "all"):
            raise InvalidInput("by", "must be feature, plan, organization, user or all")
        if bucket not in ("hour", "day", "week"):
            raise InvalidInput("bucket", "must be hour, day or week")
        # The rollups know of a plan no organizations and of a person no features.
        question = "series"
        if self._closed and not user_id:
            if plan or by == "plan":
                if not organization_id and by in ("feature", "plan", "all"):
                    question = "plans_closed"
            elif by in ("feature", "all"):
                question = "series_closed"
            elif not feature and (by == "user" or not organization_id):
                question = f"{by}s_closed"
        with self._in_zone(timezone) as ask:
            rows = ask(
                "series",
                question,
                **window(since, until),
                by=by,
                bucket=bucket,
                top=whole(top, "top", 1, 100),
                **_filters(organization_id, user_id, feature, plan),
            )
        return [SeriesPoint(**{**row, "label": row["label"] or row["key"]}) for row in rows]

    def usage_before(
        self,
        since: datetime,
        until: datetime,
        before: tuple[datetime, datetime],
        by: Grouping = "organization",
        top: int = 8,
        *,
        organization_id: Id | None = None,
        user_id: Id | None = None,
        feature: str | None = None,
        plan: str | None = None,
    ) -> dict[str | None, int]:
        """What those who used most in a window were charged in another, `before`: tokens by key.

        Keys are those of `usage_series` with the same `top`; who was charged nothing has none. What
        is divided or narrowed otherwise than by organization is ranked by the window before.
        """
        if by not in ("organization", "user") or user_id or feature or plan:
            used: dict[str | None, int] = {}
            for point in self.usage_series(
                *before,
                by,
                "week",
                top=top,
                organization_id=organization_id,
                user_id=user_id,
                feature=feature,
                plan=plan,
            ):
                used[point.key] = used.get(point.key, 0) + point.tokens
            return used
        earlier = window(*before)
        alone = by == "organization" and organization_id
        rows = self._ask(
            "series",
            f"before_{by}_closed" if self._closed and not alone else "before",
            **window(since, until),
            by=by,
            top=whole(top, "top", 1, 100),
            before=earlier["since"],
            before_until=earlier["until"],
            organization_id=id_or_none(organization_id, "organization_id"),
        )
        return {row["key"]: row["tokens"] for row in rows}

    def usage_totals(
        self,
        since: datetime,
        until: datetime,
        *,
        organization_id: Id | None = None,
        user_id: Id | None = None,
        feature: str | None = None,
        plan: str | None = None,
    ) -> UsageTotals:
        """The sums of a window; ask again with the window before to compare."""
        question = f"totals{self._closed}"
        if user_id:
            question = "totals" if plan or feature or not self._closed else "totals_of_user"
        elif plan:
            question = "totals" if organization_id or not self._closed else "totals_of_plan"
        rows = self._ask(
            "series",
            question,
            **window(since, until),
            **_filters(organization_id, user_id, feature, plan),
        )
        return UsageTotals(**rows[0])

    def usage_rows(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        before: Position | None = None,
        *,
        organization_id: Id | None = None,
        user_id: Id | None = None,
        feature: str | None = None,
        token_type: str | None = None,
        plan: str | None = None,
    ) -> list[UsageRow]:
        """The charges themselves, the latest first; the last row of a page as `before` goes on."""
        rows = self._ask(
            "series",
            "rows",
            **open_window(since, until),
            limit=rows_at_most(limit),
            token_type=token_type,
            before_at=before and before.created_at,
            before_organization=before and before.organization_id,
            before_id=before and before.id,
            **_filters(organization_id, user_id, feature, plan),
        )
        return [UsageRow(**row) for row in rows]

    def latest_charges(self, limit: int = 20, organization_id: Id | None = None) -> list[UsageRow]:
        """The latest charges of everybody, or of one organization."""
        return self.usage_rows(limit=limit, organization_id=organization_id)


def _filters(
    organization_id: Id | None, user_id: Id | None, feature: str | None, plan: str | None
) -> dict[str, Any]:
    return {
        "organization_id": id_or_none(organization_id, "organization_id"),
        "user_id": id_or_none(user_id, "user_id"),
        "feature": feature,
        "plan": plan,
    }
