"""What was done before stands in the way: holds that are over, keys that were used."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from tokenlib.domain import Usage, plain
from tokenlib.errors.base import TokenlibError


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
            expires_at=plain(expires_at),
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
        super().__init__(
            f"Usage {usage_id} was already refunded. Nothing more is to be given back.",
            usage_id=str(usage_id),
        )


class NothingToRefund(TokenlibError):
    """The usage cost no tokens (it was waived), so there is nothing to give back."""

    code = "nothing_to_refund"
    status = 409

    def __init__(self, usage_id: UUID) -> None:
        self.usage_id = usage_id
        super().__init__(
            f"Usage {usage_id} cost no tokens. There is nothing to give back.",
            usage_id=str(usage_id),
        )


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
        super().__init__(
            f"API key {key_id} is revoked or has expired. Make a new one.", key_id=str(key_id)
        )
