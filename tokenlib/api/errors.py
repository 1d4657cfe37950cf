"""Every error as an answer: problem details (RFC 9457), and the old form for the two old endpoints.

A caller learns what it did wrong and how to go on; what the server or its database said is for the
log. Another's organization and one that does not exist are the same 404.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic.alias_generators import to_camel
from starlette.exceptions import HTTPException

from tokenlib.api.faults import fault
from tokenlib.api.strict import Malformed
from tokenlib.domain import plain
from tokenlib.errors import (
    DatabaseUnavailable,
    IdempotencyConflict,
    InProgress,
    InvalidInput,
    LoginRefused,
    NotAMember,
    NotFound,
    NotMigrated,
    PermissionDenied,
    RateLimited,
    Refused,
    TokenlibError,
    UnknownFeature,
    UnknownOrganization,
    UnknownReservation,
    UnknownUsage,
)

log = logging.getLogger("tokenlib")

# Of the request that this task works on; every log line has it.
request_id: ContextVar[str] = ContextVar("request_id", default="")

OLD_PATHS = ("/v1/tokens/check-balance", "/v1/tokens/stats")

# The same for a stranger, for another organization and for one that does not exist.
NOT_YOURS = "You are not a member of this organization."
NOTHING = "There is nothing here that you may see."
FAILED = "The server failed. What was asked was not done or not confirmed; try again later."
BUSY = "The server is busy. Try again shortly."
NO_PATH = "There is nothing here."
_NO_METHOD = "This method is not allowed here."
_UNAVAILABLE = (
    "The service cannot answer now. Try again shortly, with the same Idempotency-Key if you sent"
    " one, so that nothing is charged twice."
)
_RETRY_SECONDS = 5

_BODY = "The body must be a JSON object with organizationId, featureUsed and action."
_FIELDS = {
    "organizationId": "organizationId must be a UUID.",
    "featureUsed": "featureUsed must be the name of a feature.",
    "action": "action must be check or deduct.",
}
# Where a status alone says what is wrong.
_BY_STATUS = {
    400: "invalid_request",
    401: "unauthorized",
    403: "permission_denied",
    404: "no_such_path",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unsupported_media_type",
    500: "failed",
    503: "unavailable",
}
# Every code that a problem can have.
CODES = {
    "invalid_request": (400, "What was sent cannot be understood; errors says where."),
    "invalid_input": (400, "A value that no rule could accept; errors names the field."),
    "unknown_feature": (400, "The catalog has no such feature; the known ones are named."),
    "unknown_token_type": (400, "The catalog has no such token type."),
    "unknown_plan": (400, "The catalog has no such plan."),
    "unauthorized": (401, "No credentials, or none that are good here."),
    "insufficient_tokens": (402, "Neither the wallet nor a pack pays."),
    "payment_failed": (402, "The last payment failed; balances are kept."),
    "feature_not_in_plan": (403, "The plan does not include the feature."),
    "organization_paused": (403, "An operator suspended the organization."),
    "user_paused": (403, "An operator paused this user."),
    "not_a_member": (403, "The user is not a member of the organization."),
    "missing_scope": (403, "The API key lacks the scope that the endpoint asks for."),
    "permission_denied": (403, "The caller may not do this."),
    "no_such_path": (404, "The API has no such path: the address is wrong."),
    "not_found": (404, "Nothing there that the caller may see."),
    "unknown_usage": (404, "The organization has no such charge, or it is archived."),
    "unknown_reservation": (404, "There is no such hold that the caller may end."),
    "no_story": (404, "The wallet had no books at that time."),
    "method_not_allowed": (405, "The path takes other methods; Allow names them."),
    "too_slow": (408, "The body took too long to arrive."),
    "in_progress": (409, "Somebody holds a live reservation under this key."),
    "in_flight": (409, "A call with this Idempotency-Key is still running."),
    "already_spent": (409, "The key was charged before: do not make the AI call again."),
    "reservation_over": (409, "The reservation was released, has expired or was charged."),
    "already_refunded": (409, "The charge was given back before."),
    "nothing_to_refund": (409, "The charge cost no tokens."),
    "api_key_over": (409, "The API key is revoked or has expired."),
    "too_large": (413, "The body is larger than 64 KiB."),
    "unsupported_media_type": (415, "The body is not UTF-8 JSON, or does not say so."),
    "idempotency_conflict": (422, "The Idempotency-Key, or the id, was used for another request."),
    "rate_limited": (429, "A limit was reached; Retry-After says when, if it helps."),
    "failed": (500, "The server failed; try again later, with the same Idempotency-Key."),
    "busy": (503, "Every place is taken; Retry-After says when to try again."),
    "unavailable": (503, "It cannot answer now."),
    "database_unavailable": (503, "The database does not answer; outcome says what is known."),
}


class NotYours(TokenlibError):
    """What was asked about is another's, or does not exist: nobody is told which."""

    code = "not_found"
    status = 404

    def __init__(self) -> None:
        super().__init__(NOTHING)


class NotYourself(TokenlibError):
    """A member named another user: nobody is told whether there is one."""

    code = "permission_denied"
    status = 403

    def __init__(self) -> None:
        said = "must be your own, or left out: a member asks and is charged for themselves only"
        super().__init__(f"userId {said}.", errors=[{"field": "userId", "problem": said}])


class NoStory(TokenlibError):
    """A wallet that had no books at the time that was asked about."""

    code = "no_story"
    status = 404

    def __init__(self) -> None:
        super().__init__("The wallet had no books then. Ask for a later time, or leave out at.")


class InFlight(TokenlibError):
    """A call with the same Idempotency-Key has not ended yet."""

    code = "in_flight"
    status = 409

    def __init__(self) -> None:
        super().__init__("A call with this Idempotency-Key is still running. Try again shortly.")


class NameTaken(TokenlibError):
    """The id that a hold should get is that of a hold under another Idempotency-Key."""

    code = "idempotency_conflict"
    status = 422

    def __init__(self) -> None:
        said = "is the name of another hold: send a new one, or none"
        super().__init__(f"id {said}.", errors=[{"field": "id", "problem": said}])


class MissingScope(TokenlibError):
    """The API key lacks the scope that the endpoint asks for."""

    code = "missing_scope"
    status = 403

    def __init__(self, scope: str) -> None:
        super().__init__(
            f"The API key lacks the scope {scope}. Use a key that has it; an admin makes one.",
            scope=scope,
        )


def problem(
    status: int,
    code: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    **data: Any,
) -> JSONResponse:
    """An error as problem details; `data` goes beside the standard members, in camelCase."""
    members = {
        "type": f"/api/v1/docs#{code.replace('_', '-')}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "requestId": request_id.get(),
    }
    extra = _camel(data)
    return JSONResponse(extra | members, status, headers, "application/problem+json")


def _camel(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        to_camel(name): _camel(value) if isinstance(value, Mapping) else plain(value)
        for name, value in data.items()
    }


def answer(status: int, said: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error in the old form."""
    return JSONResponse({"error": said}, status, headers)


def failed(path: str) -> JSONResponse:
    """What nobody foresaw."""
    return answer(500, FAILED) if path in OLD_PATHS else problem(500, "failed", FAILED)


def old_problem(error: ValidationError) -> str:
    """What is wrong with a question in the old form, by the name that the caller used."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        return f"{field} is missing."
    return _FIELDS.get(field, _BODY)


def register(api: FastAPI) -> None:
    """Answer HTTP errors, bad input and tokenlib's errors, each in the form of its endpoint."""
    api.exception_handler(HTTPException)(_http)
    api.exception_handler(Malformed)(_malformed)
    api.exception_handler(RequestValidationError)(_invalid)
    api.exception_handler(TokenlibError)(tokenlib_error)


def is_old(request: Request) -> bool:
    """Whether the path is one of the two old endpoints."""
    return request.scope["path"].removeprefix(request.scope.get("root_path", "")) in OLD_PATHS


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    status = error.status_code
    said = {404: NO_PATH, 405: _NO_METHOD}.get(status, str(error.detail))
    if is_old(request):
        return answer(status, said, error.headers)
    if status == 400:
        said = "The body must be JSON, and not deeply nested."
    return problem(status, _BY_STATUS.get(status, "failed"), said, error.headers)


async def _malformed(_: Request, error: Malformed) -> JSONResponse:
    errors = [{"field": error.field, "problem": error.problem}]
    return problem(400, "invalid_request", str(error.detail), errors=errors)


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    # Where and what, never the value: it may be a prompt.
    errors = [fault(each) for each in error.errors()[:20]]
    detail = f"{errors[0]['field']} {errors[0]['problem']}."
    return problem(400, "invalid_request", detail, errors=errors)


async def tokenlib_error(request: Request, error: TokenlibError) -> JSONResponse:
    """What tokenlib refused, in the form of the endpoint."""
    if isinstance(error, DatabaseUnavailable | LoginRefused | NotMigrated):
        # The driver's words name hosts, folders and logins: they are for the log.
        log.error("API request %s refused: %s", request_id.get(), error)
        if is_old(request):
            return answer(503, _UNAVAILABLE, _retry(_RETRY_SECONDS))
        outcome = error.outcome if isinstance(error, DatabaseUnavailable) else "not_charged"
        code, again = DatabaseUnavailable.code, _retry(_RETRY_SECONDS)
        return problem(503, code, _UNAVAILABLE, again, outcome=outcome)
    known = _old(error) if is_old(request) else _new(error)
    if known is not None:
        return known
    log.error("API request %s failed: %s", request_id.get(), error, exc_info=error)
    return answer(500, FAILED) if is_old(request) else problem(500, "failed", FAILED)


def _old(error: TokenlibError) -> JSONResponse | None:
    match error:
        case UnknownFeature():
            known = ", ".join(error.known)
            return answer(400, f"featureUsed is not in the catalog. Known features: {known}.")
        case InvalidInput():
            return answer(400, f"{error.message.replace('idempotency_key', 'Idempotency-Key')}.")
        case NotAMember() | UnknownOrganization():
            return answer(403, NOT_YOURS)
        case RateLimited():
            # A request that is too large never passes, so there is no time to try it again.
            again = None if error.retry_after is None else _retry(error.retry_after)
            return answer(429, error.message, again)
        case Refused():
            # 402 is newer than these callers.
            return answer(403, error.message)
        case InProgress() | IdempotencyConflict():
            return answer(error.status, error.message)
    return None


def _new(error: TokenlibError) -> JSONResponse | None:
    match error:
        case InvalidInput():
            field = "Idempotency-Key" if error.field == "idempotency_key" else to_camel(error.field)
            if error.field.startswith("metadata."):
                field = error.field  # a name of the caller's own
            said = error.message.removeprefix(error.field).strip()
            errors = [{"field": field, "problem": said.rstrip(".")}]
            told = {name: value for name, value in error.data.items() if name != "field"}
            return problem(400, error.code, f"{field} {said.rstrip('.')}.", errors=errors, **told)
        case UnknownUsage() | UnknownReservation():
            # Looked for in an organization where the caller may: elsewhere nobody looks.
            return problem(404, error.code, error.message, **_data(error.data))
        case NotFound() | NotYours():
            return problem(404, "not_found", NOTHING)
        case NotAMember():
            return problem(403, error.code, "The user is not a member of this organization.")
        case RateLimited():
            return problem(
                429, error.code, error.message, limit_headers(error), **_data(error.data)
            )
        case InFlight():
            return problem(error.status, error.code, error.message, _retry(1))
        case IdempotencyConflict():
            said = "This Idempotency-Key was used for another request. Use a new one."
            return problem(error.status, error.code, said)
        case PermissionDenied() if error.message.startswith("The database refused"):
            return None
    if error.status < 500:
        return problem(error.status, error.code, error.message, **_data(error.data))
    return None


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the error tells, without what would tell of others."""
    return {name: value for name, value in data.items() if name not in ("organization_id", "id")}


def limit_headers(error: RateLimited) -> dict[str, str] | None:
    """When to try again; None when that would not help."""
    if error.retry_after is None:
        return None
    seconds = max(1, math.ceil(error.retry_after))
    who = error.limit.split("_", 1)[0]
    who = who if who in ("key", "organization") else "user"
    return _retry(error.retry_after) | {"RateLimit": f'"{who}";r=0;t={seconds}'}


def _retry(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
