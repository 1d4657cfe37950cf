"""The error tree: what went wrong, its stable code, its HTTP status, and the data a person needs.

Every error that tokenlib raises on purpose is a :class:`TokenlibError`. A refusal (a rule said no)
is a :class:`Refused`; nothing was charged. Messages name the field and the way out.
"""

from tokenlib.errors.base import (
    BooksBroken,
    ConfigurationError,
    DatabaseUnavailable,
    LoginRefused,
    NotMigrated,
    PermissionDenied,
    TokenlibError,
)
from tokenlib.errors.before import (
    AlreadyRefunded,
    AlreadySettled,
    AlreadySpent,
    ApiKeyOver,
    IdempotencyConflict,
    InProgress,
    NothingToRefund,
    ReservationOver,
)
from tokenlib.errors.refused import (
    FeatureNotInPlan,
    InsufficientTokens,
    OrganizationPaused,
    PaymentFailed,
    RateLimited,
    Refused,
    UserPaused,
)
from tokenlib.errors.wrong import (
    AlreadyAMember,
    InvalidInput,
    NotAMember,
    NotFound,
    PlanMismatch,
    UnknownFeature,
    UnknownOrganization,
    UnknownPlan,
    UnknownReservation,
    UnknownTokenType,
    UnknownUsage,
)

__all__ = [
    "AlreadyAMember",
    "AlreadyRefunded",
    "AlreadySettled",
    "AlreadySpent",
    "ApiKeyOver",
    "BooksBroken",
    "ConfigurationError",
    "DatabaseUnavailable",
    "FeatureNotInPlan",
    "IdempotencyConflict",
    "InProgress",
    "InsufficientTokens",
    "InvalidInput",
    "LoginRefused",
    "NotAMember",
    "NotFound",
    "NotMigrated",
    "NothingToRefund",
    "OrganizationPaused",
    "PaymentFailed",
    "PermissionDenied",
    "PlanMismatch",
    "RateLimited",
    "Refused",
    "ReservationOver",
    "TokenlibError",
    "UnknownFeature",
    "UnknownOrganization",
    "UnknownPlan",
    "UnknownReservation",
    "UnknownTokenType",
    "UnknownUsage",
    "UserPaused",
]
