"""What holds for everyone or one organization, who is staff, and who changed what. For staff."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Protocol
from uuid import UUID

from tokenlib.db import as_uuid
from tokenlib.domain import Limits, Mode, Scope, StaffRole
from tokenlib.reports.asking import Asking, Id, id_or_none, rows_at_most, whole


@dataclass(frozen=True, slots=True)
class LimitsRow:
    """Abuse limits: of everyone (`organization_id` None), or of an organization that differs."""

    organization_id: UUID | None
    organization: str | None
    limits: Limits


@dataclass(frozen=True, slots=True)
class Parameters:
    """What holds for everyone. `mode` is the switch as it is in force now."""

    period: timedelta
    hold_life: timedelta
    top_up_block: int
    token_cost_cents: Decimal
    mode: Mode
    mode_until: datetime | None


@dataclass(frozen=True, slots=True)
class StaffRow:
    """A staff person; `granted_today` of `grants_per_day` tokens, in the present UTC day.

    `issuer` is whose claim makes them staff, None for those whom a person made it.
    """

    user_id: UUID
    email: str
    full_name: str
    role: StaffRole
    grants_per_day: int
    granted_today: int
    created_at: datetime
    issuer: str | None

    @property
    def left_today(self) -> int | None:
        """What support may still grant today; None for an admin, who has no limit."""
        return None if self.role == "admin" else max(0, self.grants_per_day - self.granted_today)


@dataclass(frozen=True, slots=True)
class RequestLimitRow:
    """Charges and holds a minute over the HTTP API. None is no limit.

    From each organization (`organization_id` None), or from one that differs.
    """

    organization_id: UUID | None
    organization: str | None
    requests_per_minute: int | None


@dataclass(frozen=True, slots=True)
class KeyRow:
    """An API key. `organization_id` None: for every organization; `owner` is who made it.

    `start` is what the key begins with. Until `old_until` the secret from before a rotation works,
    too. `last_used_at` is to the minute. A limit that is None is off.
    """

    id: UUID
    organization_id: UUID | None
    organization: str | None
    name: str
    start: str
    scopes: list[Scope]
    owner: str
    requests_per_minute: int | None
    seconds_between_requests: Decimal | None
    tokens_per_request: int | None
    output_units_per_request: int | None
    limit_users: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    old_until: datetime | None
    revoked_at: datetime | None
    state: Literal["good", "expired", "revoked"]

    @property
    def limits(self) -> dict[str, int | Decimal]:
        """The limits that it has of its own, by name."""
        every = {
            "requests_per_minute": self.requests_per_minute,
            "seconds_between_requests": self.seconds_between_requests,
            "tokens_per_request": self.tokens_per_request,
            "output_units_per_request": self.output_units_per_request,
        }
        return {name: limit for name, limit in every.items() if limit is not None}


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """One thing that somebody did: a change with before and after, or a wallet entry.

    `action` is set_cost, set_status, change_plan … or an entry's kind: grant, refund, release,
    finding_settled. `actor_name` is the staff person's name, else what is on record.
    """

    id: UUID
    organization_id: UUID | None
    organization: str | None
    action: str
    actor: str
    actor_name: str
    reason: str | None
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class CostEffect:
    """One organization's use of a feature at another cost.

    `units` are those that were charged for: what was waived stays free. `runs_out_from` is the
    lowest cost at which a wallet of it would have run out; None where none has a limit.
    """

    organization_id: UUID
    name: str
    plan: str | None
    uses: int
    units: int
    tokens: int
    new_tokens: int
    runs_out_from: int | None


@dataclass(frozen=True, slots=True)
class CostPreview:
    """What a feature's use from `since` until now would have cost, altogether.

    `used_by` is how many organizations used it, `run_outs` how many of them would have run out;
    `organizations` are the first ones, who would run out at the lowest cost first.
    """

    feature: str
    cost: int
    since: datetime
    tokens: int
    new_tokens: int
    used_by: int
    run_outs: int
    organizations: tuple[CostEffect, ...]


class ChangePosition(Protocol):
    """A change's place among all, such as a ChangeRow's."""

    @property
    def created_at(self) -> datetime: ...
    @property
    def id(self) -> UUID: ...


class SettingsReports(Asking):
    """Questions about settings: PermissionDenied for a member, but on its own `preview_cost`."""

    def limits(self) -> list[LimitsRow]:
        """The limits of everyone first, then of each organization with limits of its own."""
        return [
            LimitsRow(row.pop("organization_id"), row.pop("organization"), Limits(**row))
            for row in self._ask("settings", "limits")
        ]

    def output_limit(self, organization_id: Id) -> int | None:
        """How many output units one request of a member may have; None is no limit."""
        organization = as_uuid(organization_id, "organization_id")
        rows = self._ask("settings", "output_limit", organization_id=organization)
        return rows[0]["output_units_per_request"] if rows else None

    def request_limits(self) -> list[RequestLimitRow]:
        """How much the HTTP API takes from each organization, then from each that differs."""
        return [RequestLimitRow(**row) for row in self._ask("settings", "request_limits")]

    def parameters(self) -> Parameters:
        """What holds for everyone."""
        return Parameters(**self._ask("settings", "parameters")[0])

    def staff(self) -> list[StaffRow]:
        """Who is staff: admins first."""
        return [StaffRow(**row) for row in self._ask("settings", "staff")]

    def api_keys(self) -> list[KeyRow]:
        """Every API key, those that work first."""
        return [KeyRow(**row) for row in self._ask("settings", "keys")]

    def former_staff(self) -> dict[UUID, str]:
        """The e-mail address of everybody who was staff and is no more, by their id."""
        return {row["user_id"]: row["name"] for row in self._ask("settings", "former_staff")}

    def changes(
        self,
        organization_id: Id | None = None,
        action: str | None = None,
        actor: str | None = None,
        limit: int = 50,
        before: ChangePosition | None = None,
    ) -> list[ChangeRow]:
        """What people did, the latest first; the last row of a page (or its place) as `before`
        goes on."""
        rows = self._ask(
            "settings",
            "changes",
            organization_id=id_or_none(organization_id, "organization_id"),
            action=action,
            actor=actor,
            limit=rows_at_most(limit),
            before_at=before and before.created_at,
            before_id=before and before.id,
        )
        return [ChangeRow(**row) for row in rows]

    def preview_cost(self, feature: str, cost: int, limit: int = 50) -> CostPreview:
        """What the last 30 days' use of a feature would have cost, and who would have run out.

        The days are those of UTC, and today so far; soon after midnight one more. The same use is
        assumed. Each wallet's extra cost is carried along its own charges within a period, until it
        passes what was left. Waived charges stay free; refunds are not counted.
        """
        rows = self._ask(
            "settings",
            f"cost_effects{self._closed}",
            feature=feature,
            cost=whole(cost, "cost", 1, 1_000_000),
            limit=rows_at_most(limit),
        )
        first, names = rows[0], [field.name for field in fields(CostEffect)]
        effects = [
            CostEffect(**{name: row[name] for name in names})
            for row in rows
            if row["organization_id"] is not None  # the row of nobody, which has the time alone
        ]
        return CostPreview(
            feature,
            cost,
            first["since"],
            first["all_tokens"] or 0,
            (first["all_units"] or 0) * cost,
            first["used_by"] or 0,
            first["run_outs"] or 0,
            tuple(effects),
        )
