"""The error tree: code, status, data and a way out for each; and the driver's errors as ours."""

from __future__ import annotations

import copy
import inspect
import pickle
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest
from psycopg import errors as pg

import tokenlib
from tokenlib import errors
from tokenlib.db import translate
from tokenlib.domain import Usage
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

ID, OTHER = UUID(int=1), UUID(int=2)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
USAGE = Usage(ID, OTHER, ID, "generate_goal", "goal_generation", 3, 0, 17, NOON)

# One of each, with its HTTP status and words that its message must have.
EXAMPLES: list[tuple[TokenlibError, int, str]] = [
    (ConfigurationError("TOKENLIB_PORT must be a number."), 500, "TOKENLIB_PORT"),
    (DatabaseUnavailable("The database did not answer."), 503, "did not answer"),
    (NotMigrated("Run `tokenlib migrate`."), 503, "tokenlib migrate"),
    (LoginRefused("The password is wrong."), 503, "password"),
    (InvalidInput("units", "must be from 1 to 10, not 0"), 400, "units must be from 1 to 10"),
    (UnknownFeature("tea", ["a", "b"]), 400, "'tea' is not in the catalog. Known features: a, b."),
    (UnknownTokenType("gold", ["general"]), 400, "'gold' is not one of: general."),
    (UnknownPlan("gold", ["pro"]), 400, "'gold' is not one of: pro."),
    (NotFound("finding", ID), 404, f"There is no finding {ID}."),
    (UnknownOrganization(ID), 404, f"There is no organization {ID}."),
    (UnknownReservation(ID), 404, f"There is no reservation {ID}."),
    (UnknownUsage(ID), 404, f"There is no usage {ID}."),
    (NotAMember(ID, OTHER), 403, f"User {OTHER} is not a member of organization {ID}."),
    (FeatureNotInPlan("generate_goal", "starter"), 403, "Upgrade the plan"),
    (
        InsufficientTokens("goal_generation", 3, 2, NOON),
        402,
        "Insufficient tokens. Need 3, have 2. Tokens refresh on 2026-03-01. Upgrade the plan or",
    ),
    (OrganizationPaused(ID), 403, "Contact support"),
    (PaymentFailed(ID), 402, "the last payment failed. Balances are kept"),
    (UserPaused(ID), 403, "Contact an administrator"),
    (
        RateLimited("requests_per_minute", 30, 12.2),
        429,
        "per minute, 30 allowed. Try again in 13 s.",
    ),
    (ReservationOver(ID, "expired"), 409, "is expired. Reserve again"),
    (AlreadySpent(USAGE), 409, f"already charged as usage {ID}"),
    (InProgress(ID, NOON), 409, "until 12:00:00 UTC at the latest"),
    (IdempotencyConflict("key"), 422, "Use a new key for a new request."),
    (AlreadyAMember(ID, OTHER), 409, f"belongs to user {OTHER}"),
    (ApiKeyOver(ID), ApiKeyOver.status, str(ID)),
    (AlreadyRefunded(ID), 409, "already refunded"),
    (NothingToRefund(ID), 409, "cost no tokens"),
    (AlreadySettled(ID), 409, "already settled"),
    (PlanMismatch("pro", "enterprise"), 409, "Use change_plan"),
    (PermissionDenied("The database refused."), 403, "refused"),
    (BooksBroken("The sums would not close."), 500, "would not close"),
]
IDS = [type(example[0]).__name__ for example in EXAMPLES]


def test_every_error_is_named_here_and_public() -> None:
    tree = {
        error
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, TokenlibError)
    }
    assert {type(example[0]) for example in EXAMPLES} == tree - {TokenlibError, Refused}
    assert {error.__name__ for error in tree} <= set(tokenlib.__all__)
    assert all(getattr(tokenlib, name) is not None for name in tokenlib.__all__)


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [type(example[0]).__dict__["code"] for example in EXAMPLES]
    assert len(set(codes)) == len(codes)
    for error, _, _ in EXAMPLES:
        if isinstance(error, Refused):
            assert error.rule == error.code


@pytest.mark.parametrize(("error", "status", "words"), EXAMPLES, ids=IDS)
def test_each_says_what_is_wrong(error: TokenlibError, status: int, words: str) -> None:
    assert error.status == status
    assert words in str(error)
    assert error.message == str(error)
    assert "!" not in str(error)
    assert type(error).__doc__


@pytest.mark.parametrize(("error", "status", "words"), EXAMPLES, ids=IDS)
def test_each_survives_a_process_pool(error: TokenlibError, status: int, words: str) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own bytes
        assert type(twin) is type(error)
        assert (str(twin), twin.data) == (str(error), error.data)
        assert vars(twin) == vars(error)


def test_refusals_carry_what_a_person_needs() -> None:
    short = InsufficientTokens("goal_generation", 3, 2, NOON)
    assert (short.needed, short.available, short.refresh_date) == (3, 2, NOON)
    assert short.data == {
        "token_type": "goal_generation",
        "needed": 3,
        "available": 2,
        "refresh_date": "2026-03-01T12:00:00Z",
    }
    assert "refresh on" not in str(InsufficientTokens("shared", 3, 2, None))
    assert RateLimited("tokens_per_request", 10, None).retry_after is None
    assert "Try again in 1 s." in str(RateLimited("seconds_between_requests", 3, 0.1))
    assert UnknownFeature("tea", {"a": 1}).known == ("a",)
    assert isinstance(InvalidInput("units", "must be"), ValueError)
    assert isinstance(PaymentFailed(ID), OrganizationPaused)


# The driver's errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (pg.LockNotAvailable("lock"), DatabaseUnavailable),
        (pg.QueryCanceled("cancel"), DatabaseUnavailable),
        (pg.DeadlockDetected("deadlock"), DatabaseUnavailable),
        (pg.DiskFull("disk"), DatabaseUnavailable),
        (pg.AdminShutdown("shutdown"), DatabaseUnavailable),
        (psycopg.OperationalError("connection refused"), DatabaseUnavailable),
        (psycopg.InterfaceError("closed"), DatabaseUnavailable),
        (OSError("no route"), DatabaseUnavailable),
        (None, DatabaseUnavailable),
        (pg.InsufficientPrivilege("denied"), PermissionDenied),
        (pg.UndefinedTable("no table"), NotMigrated),
        (pg.UndefinedFunction("no function"), NotMigrated),
        (pg.InvalidSchemaName("no schema"), NotMigrated),
        (pg.CheckViolation("sums_close"), BooksBroken),
        (pg.UniqueViolation("twice"), BooksBroken),
        (pg.NotNullViolation("null"), BooksBroken),
        (pg.ForeignKeyViolation("nothing there"), BooksBroken),
    ],
)
def test_what_the_driver_raises_becomes_ours(
    error: BaseException | None, kind: type[TokenlibError]
) -> None:
    """The rest of the tree comes from a real server, in the tests of the gate."""
    translated = translate(error)
    assert type(translated) is kind
    assert str(translated)
