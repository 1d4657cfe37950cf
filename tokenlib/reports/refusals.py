"""Why requests were refused, and who often hits a limit.

The books keep one row per user, feature, rule and minute; it counts at the time of its last
refusal. What the switch let through on "log only" is marked and is no refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from tokenlib.reports.asking import Asking, Id, id_or_none, rows_at_most, window


@dataclass(frozen=True, slots=True)
class RuleCount:
    """One rule: how often it refused, and how often it would have while on "log only"."""

    rule: str
    count: int
    let_through: int
    organizations: int
    users: int


@dataclass(frozen=True, slots=True)
class RefusalRow:
    """Refusals of one user, feature and rule within one minute.

    `needed` and `available` are tokens as of the last of them; `data` has what the rule adds: plan,
    limit, allowed, and mode when the switch let it through. `user_id` is None where none is known.
    """

    organization_id: UUID
    organization: str
    user_id: UUID | None
    user: str
    feature: str
    rule: str
    token_type: str | None
    needed: int | None
    available: int | None
    count: int
    first_at: datetime
    last_at: datetime
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FrequentRefusal:
    """An organization, or one user of it, that often hits a limit.

    Empty wallets and missing features speak for an upgrade, rate limits for a look at the user.
    """

    organization_id: UUID
    organization: str
    plan: str | None
    user_id: UUID | None
    user: str | None
    refusals: int
    insufficient_tokens: int
    feature_not_in_plan: int
    rate_limited: int
    last_at: datetime


class RefusalReports(Asking):
    """Questions about refusals."""

    def refusals_by_rule(
        self, since: datetime, until: datetime, organization_id: Id | None = None
    ) -> list[RuleCount]:
        """How often each rule said no, the most frequent first."""
        rows = self._ask(
            "refusals",
            f"by_rule{self._closed}" if organization_id is None else "by_rule",
            **window(since, until),
            organization_id=id_or_none(organization_id, "organization_id"),
        )
        return [RuleCount(**row) for row in rows]

    def refusals(
        self,
        since: datetime,
        until: datetime,
        organization_id: Id | None = None,
        user_id: Id | None = None,
        limit: int = 100,
    ) -> list[RefusalRow]:
        """The refusals themselves, the latest first."""
        rows = self._ask(
            "refusals",
            "latest",
            **window(since, until),
            organization_id=id_or_none(organization_id, "organization_id"),
            user_id=id_or_none(user_id, "user_id"),
            limit=rows_at_most(limit),
        )
        return [RefusalRow(**row) for row in rows]

    def frequent_refusals(
        self,
        since: datetime,
        until: datetime,
        limit: int = 10,
        by: Literal["organization", "user"] = "organization",
        why: Literal["any", "plan"] = "any",
    ) -> list[FrequentRefusal]:
        """Who hit a limit most often: organizations, or with `by="user"` single users.

        With `why="plan"` only by what an upgrade or a pack would have helped: an empty wallet or a
        feature that the plan does not include.
        """
        rows = self._ask(
            "refusals",
            f"frequent{self._closed}",
            **window(since, until),
            limit=rows_at_most(limit),
            by_user=by == "user",
            by_plan=why == "plan",
        )
        return [FrequentRefusal(**row) for row in rows]
