"""What the write functions answer, as our dataclasses or our typed errors.

A refusal comes back from the database as a status and is already on record; here it becomes the
error that the caller sees.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenlib.db import Row
from tokenlib.domain import Balance, Grant, Reservation, Usage
from tokenlib.errors import (
    AlreadyRefunded,
    AlreadySettled,
    AlreadySpent,
    ApiKeyOver,
    BooksBroken,
    FeatureNotInPlan,
    IdempotencyConflict,
    InProgress,
    InsufficientTokens,
    NotAMember,
    NotFound,
    NothingToRefund,
    OrganizationPaused,
    PaymentFailed,
    RateLimited,
    ReservationOver,
    TokenlibError,
    UnknownFeature,
    UnknownOrganization,
    UnknownPlan,
    UnknownReservation,
    UnknownTokenType,
    UnknownUsage,
    UserPaused,
)

# Only `shared` is created at its first purchase and not before.
NO_PACK = "shared has no wallet yet: no pack was ever bought"


def usage(row: Row) -> Usage:
    """The charge that an `ok` answer speaks of."""
    return Usage(
        id=row["id"],
        organization_id=row["organization_id"],
        user_id=row["user_id"],
        feature=row["feature"],
        token_type=row["token_type"],
        tokens_deducted=row["tokens"],
        tokens_waived=row["waived"],
        remaining_balance=row["balance"],
        created_at=row["created_at"],
        replayed=bool(row["replayed"]),
    )


def reservation(row: Row, units: int) -> Reservation:
    """The hold that an `ok` answer speaks of."""
    return Reservation(
        id=row["id"],
        organization_id=row["organization_id"],
        user_id=row["user_id"],
        feature=row["feature"],
        token_type=row["token_type"],
        units=units,
        tokens=row["tokens"],
        remaining_balance=row["balance"],
        expires_at=row["until"],
    )


def grant(row: Row, kind: str, source: str) -> Grant:
    """The grant that an `ok` answer speaks of."""
    return Grant(
        id=row["id"],
        organization_id=row["organization_id"],
        token_type=row["token_type"],
        kind=kind,  # type: ignore[arg-type]  # checked by the function that answered
        source=source,
        amount=row["tokens"],
        balance=row["balance"],
        effective_at=row["created_at"],
        expires_at=row["until"],
        replayed=bool(row["replayed"]),
    )


def balance(row: Row) -> Balance:
    """One wallet's row. `allowance` is None where the plan sets no limit."""
    return Balance(
        organization_id=row["organization_id"],
        token_type=row["token_type"],
        balance=row["balance"],
        reserved=row["reserved"],
        total_used=row["total_used"],
        total_allocated=row["total_allocated"],
        allowance=row["allowance"],
        period_start=row["period_start"],
        refresh_date=row["refresh_date"],
        last_used_at=row["last_used_at"],
    )


def refusal(row: Row, *, key: str | None = None, known: Iterable[str] = ()) -> TokenlibError:
    """The error that an answer other than `ok` stands for. `known` names what the catalog has."""
    organization_id = row["organization_id"]
    match row["status"]:
        case "unknown_feature":
            return UnknownFeature(row["feature"], known)
        case "unknown_token_type":
            return UnknownTokenType(str(row["text"]), known)
        case "unknown_organization":
            return UnknownOrganization(organization_id)
        case "unknown_reservation":
            return UnknownReservation(row["id"])
        case "unknown_usage":
            return UnknownUsage(row["id"], row.get("until"))
        case "unknown_finding":
            return NotFound("finding", row["id"])
        case "unknown_plan":
            return UnknownPlan(row["plan"], known)
        case "unknown_staff":
            return NotFound("staff person", row["user_id"])
        case "unknown_key":
            return NotFound("API key", row["id"])
        case "key_over":
            return ApiKeyOver(row["id"])
        case "not_a_member":
            return NotAMember(organization_id, row["user_id"])
        case "feature_not_in_plan":
            return FeatureNotInPlan(row["feature"], row["plan"] or "unknown")
        case "insufficient_tokens":
            return InsufficientTokens(
                row["token_type"], row["needed"], row["available"], row["until"]
            )
        case "organization_paused":
            return OrganizationPaused(organization_id)
        case "payment_failed":
            return PaymentFailed(organization_id)
        case "user_paused":
            return UserPaused(row["user_id"])
        case "rate_limited":
            return RateLimited(row["limit_name"], row["allowed"], row["retry_after"])
        case "reservation_over":
            return ReservationOver(row["id"], row["text"])
        case "already_spent":
            return AlreadySpent(usage({**row, "replayed": True}))
        case "in_progress":
            return InProgress(row["id"], row["until"])
        case "conflict":
            return IdempotencyConflict(key or "")
        case "already_refunded":
            return AlreadyRefunded(row["id"])
        case "nothing_to_refund":
            return NothingToRefund(row["id"])
        case "already_settled":
            return AlreadySettled(row["id"])
        case other:
            return BooksBroken(f"The database gave an answer that tokenlib does not know: {other}.")
