"""The error tree: what went wrong, its stable code, its HTTP status, and the data a person needs.

Every error that tokenlib raises on purpose is a :class:`TokenlibError`. A refusal (a rule said no)
is a :class:`Refused`; nothing was charged. Messages name the field and the way out.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from math import ceil
from typing import Any, ClassVar, Literal
from uuid import UUID

from tokenlib.domain import Usage, plain


class TokenlibError(Exception):
    """Root of every error that tokenlib raises on purpose."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses take other arguments; pickling (process pools) must not call them again.
        return _rebuild, (type(self), self.message, self.data, self.__dict__)


def _rebuild(
    kind: type[TokenlibError], message: str, data: dict[str, Any], state: dict[str, Any]
) -> TokenlibError:
    error = kind.__new__(kind)
    TokenlibError.__init__(error, message, **data)
    error.__dict__.update(state)
    return error


class ConfigurationError(TokenlibError):
    """A setting, a folder or the database is not what tokenlib needs to start."""

    code = "configuration"


class DatabaseUnavailable(TokenlibError):
    """The database did not answer; the answer to any charge is therefore no.

    `outcome` is "not_charged" when nothing was sent or all was rolled back, and "unknown" when the
    reply was lost: the charge may be on the books. `retry_after`: seconds, if known.
    """

    code = "database_unavailable"
    status = 503

    def __init__(
        self,
        message: str,
        outcome: Literal["not_charged", "unknown"] = "not_charged",
        retry_after: float | None = None,
    ) -> None:
        self.outcome, self.retry_after = outcome, retry_after
        super().__init__(message, outcome=outcome)


class NotMigrated(ConfigurationError):
    """The database lacks our tables, or has them in another version."""

    code = "not_migrated"
    status = 503


class LoginRefused(ConfigurationError):
    """The server answers, and refuses this login, its password or the name of the database."""

    code = "login_refused"
    status = 503


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


class Refused(TokenlibError):
    """A rule said no. Nothing was charged; the refusal is on record under `rule`."""

    status = 402
    rule: ClassVar[str] = "refused"


class FeatureNotInPlan(Refused):
    """The organization's plan does not include the feature."""

    code = rule = "feature_not_in_plan"
    status = 403

    def __init__(self, feature: str, plan: str) -> None:
        self.feature, self.plan = feature, plan
        super().__init__(
            f"The {plan} plan does not include {feature}. Upgrade the plan to use it.",
            feature=feature,
            plan=plan,
        )


class InsufficientTokens(Refused):
    """Too few tokens are free: `needed`, `available`, and the next refresh."""

    code = rule = "insufficient_tokens"

    def __init__(
        self, token_type: str, needed: int, available: int, refresh_date: datetime | None
    ) -> None:
        self.token_type, self.needed, self.available = token_type, needed, available
        self.refresh_date = refresh_date
        when = f" Tokens refresh on {refresh_date:%Y-%m-%d}." if refresh_date else ""
        super().__init__(
            f"Insufficient tokens. Need {needed}, have {available}.{when}"
            " Upgrade the plan or buy a pack to go on now.",
            token_type=token_type,
            needed=needed,
            available=available,
            refresh_date=refresh_date.isoformat() if refresh_date else None,
        )


class OrganizationPaused(Refused):
    """AI is switched off for this organization by an operator."""

    code = rule = "organization_paused"
    status = 403

    def __init__(self, organization_id: UUID) -> None:
        self.organization_id = organization_id
        super().__init__(
            "AI features are paused for this organization. Contact support to resume them.",
            organization_id=str(organization_id),
        )


class PaymentFailed(OrganizationPaused):
    """AI is off because the last payment failed; balances are kept."""

    code = rule = "payment_failed"
    status = 402

    def __init__(self, organization_id: UUID) -> None:
        super().__init__(organization_id)
        self.message = (
            "AI features are off because the last payment failed. Balances are kept and return"
            " with the payment."
        )
        self.args = (self.message,)


class UserPaused(Refused):
    """AI is switched off for this one user."""

    code = rule = "user_paused"
    status = 403

    def __init__(self, user_id: UUID) -> None:
        self.user_id = user_id
        super().__init__(
            "AI features are paused for this user. Contact an administrator to resume them.",
            user_id=str(user_id),
        )


class RateLimited(Refused):
    """Too many or too large requests: `limit` names the rule, `retry_after` is in seconds."""

    code = rule = "rate_limited"
    status = 429

    def __init__(self, limit: str, allowed: int, retry_after: float | None) -> None:
        self.limit, self.allowed, self.retry_after = limit, allowed, retry_after
        wait = f" Try again in {ceil(retry_after)} s." if retry_after is not None else ""
        super().__init__(
            f"Limit reached: {limit.replace('_', ' ')}, {allowed} allowed.{wait}",
            limit=limit,
            allowed=allowed,
            retry_after=retry_after,
        )


class ReservationOver(TokenlibError):
    """The reservation was already deducted, released, or has expired; nothing was charged."""

    code = "reservation_over"
    status = 409

    def __init__(self, reservation_id: UUID, state: str) -> None:
        self.reservation_id, self.state = reservation_id, state
        super().__init__(
            f"Reservation {reservation_id} is {state}."
            + ("" if state == "deducted" else " Reserve again to go on."),
            reservation_id=str(reservation_id),
            state=state,
        )


class AlreadySpent(TokenlibError):
    """This key was charged before; `usage` is the first charge. Do not run the AI call again."""

    code = "already_spent"
    status = 409

    def __init__(self, usage: Usage) -> None:
        self.usage = usage
        super().__init__(
            f"This idempotency key was already charged as usage {usage.id}.",
            usage_id=str(usage.id),
            usage=plain(usage),
        )


class InProgress(TokenlibError):
    """Another caller holds a live reservation under this key."""

    code = "in_progress"
    status = 409

    def __init__(self, reservation_id: UUID, expires_at: datetime | None) -> None:
        self.reservation_id, self.expires_at = reservation_id, expires_at
        until = f" until {expires_at:%H:%M:%S} UTC at the latest" if expires_at else ""
        super().__init__(
            f"Reservation {reservation_id} with this idempotency key is in progress{until}.",
            reservation_id=str(reservation_id),
            expires_at=expires_at.isoformat() if expires_at else None,
        )


class IdempotencyConflict(TokenlibError):
    """The key was used for another request. Use a new key for a new request."""

    code = "idempotency_conflict"
    status = 422

    def __init__(self, idempotency_key: str) -> None:
        self.idempotency_key = idempotency_key
        super().__init__(
            f"Idempotency key {idempotency_key!r} was used for another request."
            " Use a new key for a new request.",
            idempotency_key=idempotency_key,
        )


class AlreadyRefunded(TokenlibError):
    """The charge was given back before."""

    code = "already_refunded"
    status = 409

    def __init__(self, usage_id: UUID) -> None:
        self.usage_id = usage_id
        super().__init__(f"Usage {usage_id} was already refunded.", usage_id=str(usage_id))


class NothingToRefund(TokenlibError):
    """The usage cost no tokens (it was waived), so there is nothing to give back."""

    code = "nothing_to_refund"
    status = 409

    def __init__(self, usage_id: UUID) -> None:
        self.usage_id = usage_id
        super().__init__(f"Usage {usage_id} cost no tokens.", usage_id=str(usage_id))


class AlreadySettled(TokenlibError):
    """The finding was settled before."""

    code = "already_settled"
    status = 409

    def __init__(self, finding_id: UUID) -> None:
        self.finding_id = finding_id
        super().__init__(f"Finding {finding_id} was already settled.", finding_id=str(finding_id))


class ApiKeyOver(TokenlibError):
    """The API key is revoked or has expired, so it cannot be rotated. Make a new one."""

    code = "api_key_over"
    status = 409

    def __init__(self, key_id: UUID) -> None:
        self.key_id = key_id
        super().__init__(f"API key {key_id} is revoked or has expired.", key_id=str(key_id))


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


class PermissionDenied(TokenlibError):
    """The signed-in person or the login role may not do this."""

    code = "permission_denied"
    status = 403


class BooksBroken(TokenlibError):
    """An invariant of the books did not hold; nothing was written. Run `tokenlib verify`."""

    code = "books_broken"
