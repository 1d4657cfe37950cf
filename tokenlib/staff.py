"""What staff may do. Each verb takes the acting person and is decided in the database.

Support gives gifts up to its daily limit and releases holds; everything else is for admins. Each
action needs a reason and is on record with the person's id, before and after. Anybody else, and
whoever was removed from staff meanwhile, gets PermissionDenied, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID, uuid4

from tokenlib import answers, inputs
from tokenlib.catalog import CatalogVerbs
from tokenlib.db import Kind, Row, as_uuid, statements
from tokenlib.domain import (
    MAX_TOKENS,
    Grant,
    Limits,
    Mode,
    OrganizationStatus,
    Reservation,
    StaffRole,
    Usage,
)
from tokenlib.errors import InvalidInput

Id = UUID | str

# By their key, or since twice is the same as once; the others would be on record twice.
_REPEATABLE = ("grant", "refund", "release")
_NO_LIMITS = Limits(None, None, None, None, None, None)


class StaffVerbs(CatalogVerbs):
    """The verbs of admins and support."""

    def staff_grant(
        self,
        actor: UUID,
        organization: Id,
        token_type: str,
        amount: int,
        *,
        reason: str,
        kind: Literal["purchase", "gift", "adjustment"] = "gift",
        source: str = "staff",
        effective_at: datetime | None = None,
        expires_at: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> Grant:
        """Add tokens. Support: gifts that take effect at once, up to its limit of the UTC day.

        The limit holds over all tabs and processes. A replay of the key gives nothing again;
        without a key it gets one of its own, so that a reply that was lost can be asked for again.
        """
        params = grant_params(
            token_type, amount, kind, source, effective_at, expires_at, idempotency_key
        )
        row = self._staff(
            actor, "grant", as_uuid(organization, "organization"), reason=reason, **params
        )
        return answers.grant(row, kind, source)

    def staff_release(
        self,
        actor: UUID,
        reservation: Reservation | Id,
        organization: Id | None = None,
        *,
        reason: str,
    ) -> None:
        """End an open hold and give its tokens back. Admins and support.

        `reservation` is a Reservation, or its id together with `organization`. Raises
        ReservationOver when it was deducted or has expired.
        """
        organization_id, reservation_id = inputs.owned(reservation, organization, "reservation")
        self._staff(actor, "release", organization_id, reservation_id=reservation_id, reason=reason)

    def staff_refund(
        self, actor: UUID, usage: Usage | Id, organization: Id | None = None, *, reason: str
    ) -> Usage:
        """Give back a charge, once. Raises AlreadyRefunded, NothingToRefund or UnknownUsage."""
        organization_id, usage_id = inputs.owned(usage, organization, "usage")
        row = self._staff(
            actor, "refund", organization_id, usage_id=usage_id, key=str(uuid4()), reason=reason
        )
        return answers.usage({**row, "waived": 0})

    def staff_change_plan(self, actor: UUID, organization: Id, plan: str, *, reason: str) -> None:
        """Move to another plan: the new allowance less what was used, never a refill."""
        self._staff(
            actor,
            "change_plan",
            as_uuid(organization, "organization"),
            plan=inputs.text(plan, "plan"),
            reason=reason,
        )

    def staff_set_status(
        self, actor: UUID, organization: Id, status: OrganizationStatus, *, reason: str
    ) -> None:
        """Set the payment state; AI runs only while it is `active`. `suspended` pauses it."""
        status_text = inputs.text(status, "status")
        self._staff(
            actor,
            "set_status",
            as_uuid(organization, "organization"),
            new_status=status_text,
            reason=reason,
        )

    def staff_pause_user(
        self, actor: UUID, organization: Id, user: Id, paused: bool = True, *, reason: str
    ) -> None:
        """Pause or resume one user of an organization. Raises NotAMember."""
        user_id = as_uuid(user, "user")
        self._staff(
            actor,
            "pause_user",
            as_uuid(organization, "organization"),
            user_id=user_id,
            paused=inputs.truth(paused, "paused"),
            reason=reason,
        )

    def staff_settle_finding(
        self, actor: UUID, organization: Id, finding: Id, *, reason: str
    ) -> None:
        """Settle a finding by an entry; `reason` says how. Raises AlreadySettled."""
        finding_id = as_uuid(finding, "finding")
        self._staff(
            actor,
            "settle_finding",
            as_uuid(organization, "organization"),
            id=finding_id,
            reason=reason,
        )

    def staff_set_mode(
        self,
        actor: UUID,
        mode: Mode,
        organization: Id | None = None,
        *,
        until: datetime | None = None,
        reason: str,
    ) -> None:
        """The emergency switch, for everyone or one organization; back by itself at `until`."""
        self._staff(
            actor,
            "set_mode",
            organization,
            mode=inputs.text(mode, "mode"),
            until=inputs.moment(until, "until"),
            reason=reason,
        )

    def staff_set_cost(self, actor: UUID, feature: str, cost: int, *, reason: str) -> None:
        """What one unit of a feature costs from now on; live holds keep the cost they have."""
        feature = inputs.text(feature, "feature")
        self._staff(actor, "set_cost", feature=feature, cost=_whole(cost, "cost"), reason=reason)

    def staff_set_unit_size(
        self, actor: UUID, feature: str, unit_size: int | None, *, reason: str
    ) -> None:
        """How many output units of an answer one unit of a feature pays from now on.

        None: a use costs the same however long its answer is.
        """
        feature = inputs.text(feature, "feature")
        size = None if unit_size is None else _whole(unit_size, "unit_size")
        self._staff(actor, "set_unit_size", feature=feature, unit_size=size, reason=reason)

    def staff_set_allowance(
        self, actor: UUID, plan: str, token_type: str, allowance: int | None, *, reason: str
    ) -> None:
        """What a plan gives per period, None for unlimited; each wallet has it from its refresh."""
        self._staff(
            actor,
            "set_allowance",
            plan=inputs.text(plan, "plan"),
            token_type=inputs.text(token_type, "token_type"),
            allowance=None if allowance is None else _whole(allowance, "allowance"),
            reason=reason,
        )

    def staff_set_limits(
        self, actor: UUID, organization: Id | None, limits: Limits | None, *, reason: str
    ) -> None:
        """Abuse limits of everyone (organization None) or of one organization: the throttle.

        `limits` None takes an organization's own limits away: those of everyone hold again.
        """
        self._staff(
            actor,
            "set_limits",
            organization,
            own=limits is not None,
            **_limits(_NO_LIMITS if limits is None else limits),
            reason=reason,
        )

    def staff_set_parameters(
        self,
        actor: UUID,
        *,
        hold_life: timedelta | None = None,
        top_up_block: int | None = None,
        token_cost_cents: Decimal | None = None,
        reason: str,
    ) -> None:
        """How long a hold lives, an unlimited wallet's top-up, what a token costs in US cents.

        None leaves a parameter as it is.
        """
        self._staff(
            actor,
            "set_parameters",
            hold_life=inputs.duration(hold_life, "hold_life"),
            top_up_block=None if top_up_block is None else _whole(top_up_block, "top_up_block"),
            token_cost_cents=inputs.number(token_cost_cents, "token_cost_cents"),
            reason=reason,
        )

    def staff_set_staff(
        self,
        actor: UUID,
        user: Id,
        role: StaffRole | None,
        grants_per_day: int | None = None,
        *,
        email: str | None = None,
        name: str | None = None,
        reason: str,
    ) -> None:
        """Make a person staff, change them, or (role None) take their rights away at once.

        Somebody new needs `email` and `name`; None leaves what is there. The last admin stays:
        PermissionDenied.
        """
        self._staff(
            actor,
            "set_staff",
            user_id=as_uuid(user, "user"),
            role=inputs.optional_text(role, "role"),
            grants_per_day=None
            if grants_per_day is None
            else _whole(grants_per_day, "grants_per_day"),
            email=inputs.optional_text(email, "email"),
            name=inputs.optional_text(name, "name"),
            reason=reason,
        )

    def _staff(
        self, actor: UUID, verb: str, organization: Id | None = None, *, reason: str, **params: Any
    ) -> Row:
        params |= {
            "actor": as_uuid(actor, "actor"),
            "organization_id": (
                None if organization is None else as_uuid(organization, "organization")
            ),
            "reason": inputs.text(reason, "reason"),
        }
        kind: Kind = "repeatable" if verb in _REPEATABLE else "once"
        row = self.database.call(statements("staff")[verb], params, kind)
        raise_refusal(self, params, row)
        return row


def raise_refusal(gate: CatalogVerbs, params: Row, row: Row) -> None:
    """Raise what an answer other than `ok` stands for."""
    if row["status"] == "ok":
        return
    known: Iterable[str] = ()
    match row["status"]:
        case "unknown_feature":
            known = gate.catalog().features
        case "unknown_token_type":
            known = gate.catalog().token_types
        case "unknown_plan":
            known = gate.catalog().plans
    # The answer speaks; what it leaves open, the request says.
    said = params | {name: value for name, value in row.items() if value is not None}
    said.setdefault("text", params.get("token_type"))
    raise answers.refusal(said, key=params.get("key"), known=known)


def grant_params(
    token_type: str,
    amount: int,
    kind: str,
    source: str,
    effective_at: datetime | None,
    expires_at: datetime | None,
    key: str | None,
) -> Row:
    """What a grant is asked with, checked."""
    return {
        "token_type": inputs.text(token_type, "token_type"),
        "amount": inputs.amount(amount),
        "kind": inputs.text(kind, "kind"),
        "source": inputs.text(source, "source"),
        "effective_at": inputs.moment(effective_at, "effective_at"),
        "expires_at": inputs.moment(expires_at, "expires_at"),
        "key": inputs.key(key) or str(uuid4()),
    }


def _limits(limits: Limits) -> Row:
    if not isinstance(limits, Limits):
        raise InvalidInput("limits", f"must be Limits or None, not {limits!r}")
    return {
        name: value if value is None or name == "seconds_between_requests" else _whole(value, name)
        for name, value in asdict(limits).items()
    }


def _whole(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS:
        raise InvalidInput(field, f"must be a whole number from 0 to {MAX_TOKENS}, not {value!r}")
    return value
