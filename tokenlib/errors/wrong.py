"""A request that no rule could accept: bad values, and what is not there."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from tokenlib.errors.base import TokenlibError


class InvalidInput(TokenlibError, ValueError):
    """A value that no rule could accept: `field` names it, the message says what is allowed."""

    code = "invalid_input"
    status = 400

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}", field=field)
        self.field = field


class UnknownFeature(InvalidInput):
    """The catalog has no such feature."""

    code = "unknown_feature"

    def __init__(self, feature: str, known: Iterable[str] = ()) -> None:
        self.feature, self.known = feature, tuple(known)
        names = ", ".join(self.known) or "none"
        super().__init__("feature", f"{feature!r} is not in the catalog. Known features: {names}.")
        self.data |= {"feature": feature, "known": self.known}


class UnknownTokenType(InvalidInput):
    """The catalog has no such token type."""

    code = "unknown_token_type"

    def __init__(self, token_type: str, known: Iterable[str] = ()) -> None:
        self.token_type, self.known = token_type, tuple(known)
        names = ", ".join(self.known) or "none"
        super().__init__("token_type", f"{token_type!r} is not one of: {names}.")
        self.data |= {"token_type": token_type, "known": self.known}


class UnknownPlan(InvalidInput):
    """The catalog has no such plan."""

    code = "unknown_plan"

    def __init__(self, plan: str, known: Iterable[str] = ()) -> None:
        self.plan, self.known = plan, tuple(known)
        super().__init__("plan", f"{plan!r} is not one of: {', '.join(self.known) or 'none'}.")
        self.data |= {"plan": plan, "known": self.known}


class NotFound(TokenlibError):
    """Something named by id does not exist (or is not yours to see)."""

    code = "not_found"
    status = 404

    def __init__(self, what: str, id: object) -> None:  # noqa: A002 - the field's own name
        super().__init__(f"There is no {what} {id}.", id=str(id))
        self.id = id


class UnknownOrganization(NotFound):
    """No organization has this id."""

    code = "unknown_organization"

    def __init__(self, organization_id: UUID) -> None:
        super().__init__("organization", organization_id)
        self.organization_id = organization_id


class UnknownReservation(NotFound):
    """No reservation has this id."""

    code = "unknown_reservation"

    def __init__(self, reservation_id: UUID) -> None:
        super().__init__("reservation", reservation_id)
        self.reservation_id = reservation_id


class UnknownUsage(NotFound):
    """No usage-log row has this id; those until `archived_until` may have been archived."""

    code = "unknown_usage"

    def __init__(self, usage_id: UUID, archived_until: datetime | None = None) -> None:
        super().__init__("usage", usage_id)
        self.usage_id, self.archived_until = usage_id, archived_until
        if archived_until is not None:
            TokenlibError.__init__(
                self,
                f"There is no usage {usage_id} in the log. What was charged until"
                f" {archived_until:%Y-%m-%d} is archived and cannot be refunded.",
                id=str(usage_id),
                archived_until=archived_until,
            )


class NotAMember(TokenlibError):
    """The user does not exist or belongs to another organization."""

    code = "not_a_member"
    status = 403

    def __init__(self, organization_id: UUID, user_id: UUID) -> None:
        super().__init__(
            f"User {user_id} is not a member of organization {organization_id}.",
            organization_id=str(organization_id),
            user_id=str(user_id),
        )
        self.organization_id, self.user_id = organization_id, user_id


class AlreadyAMember(TokenlibError):
    """The organization has a member with this e-mail address: `user_id`."""

    code = "already_a_member"
    status = 409

    def __init__(self, organization_id: UUID, user_id: UUID) -> None:
        super().__init__(
            f"The e-mail address belongs to user {user_id} of this organization already.",
            organization_id=str(organization_id),
            user_id=str(user_id),
        )
        self.organization_id, self.user_id = organization_id, user_id


class PlanMismatch(TokenlibError):
    """`initialize_tokens` was called with another plan than the organization has."""

    code = "plan_mismatch"
    status = 409

    def __init__(self, plan: str, asked: str) -> None:
        self.plan, self.asked = plan, asked
        super().__init__(
            f"The organization is on {plan}, not {asked}. Use change_plan to move it.",
            plan=plan,
        )
