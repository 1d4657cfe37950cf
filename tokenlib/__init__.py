"""A token gate for the AI features of a multi-tenant product, on one PostgreSQL.

import tokenlib
tokens = tokenlib.connect()
tokens.deduct_tokens(organization, user, "generate_goal")
"""

from typing import TYPE_CHECKING, Any

from tokenlib.config import Settings
from tokenlib.domain import (
    ApiKey,
    Balance,
    Catalog,
    Feature,
    Grant,
    Problem,
    Reservation,
    Stats,
    Usage,
    Verdict,
)
from tokenlib.errors import (
    AlreadyAMember,
    AlreadyRefunded,
    AlreadySettled,
    AlreadySpent,
    ApiKeyOver,
    BooksBroken,
    ConfigurationError,
    DatabaseUnavailable,
    FeatureNotInPlan,
    IdempotencyConflict,
    InProgress,
    InsufficientTokens,
    InvalidInput,
    LoginRefused,
    NotAMember,
    NotFound,
    NothingToRefund,
    NotMigrated,
    OrganizationPaused,
    PaymentFailed,
    PermissionDenied,
    PlanMismatch,
    RateLimited,
    Refused,
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

if TYPE_CHECKING:
    from tokenlib.client import Client
    from tokenlib.tokens import Tokens, connect

__all__ = [
    "AlreadyAMember",
    "AlreadyRefunded",
    "AlreadySettled",
    "AlreadySpent",
    "ApiKey",
    "ApiKeyOver",
    "Balance",
    "BooksBroken",
    "Catalog",
    "Client",
    "ConfigurationError",
    "DatabaseUnavailable",
    "Feature",
    "FeatureNotInPlan",
    "Grant",
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
    "Problem",
    "RateLimited",
    "Refused",
    "Reservation",
    "ReservationOver",
    "Settings",
    "Stats",
    "TokenlibError",
    "Tokens",
    "UnknownFeature",
    "UnknownOrganization",
    "UnknownPlan",
    "UnknownReservation",
    "UnknownTokenType",
    "UnknownUsage",
    "Usage",
    "UserPaused",
    "Verdict",
    "connect",
]


def __getattr__(name: str) -> Any:
    # SQLAlchemy and Alembic load at the first use, not at the import.
    if name in ("Tokens", "connect"):
        from tokenlib import tokens

        return getattr(tokens, name)
    if name == "Client":
        from tokenlib.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
