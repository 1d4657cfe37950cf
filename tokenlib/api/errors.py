"""Every error in the old form, `{"error": "…"}`, with the status that old callers know."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from tokenlib.errors import (
    DatabaseUnavailable,
    IdempotencyConflict,
    InProgress,
    InvalidInput,
    LoginRefused,
    NotAMember,
    NotMigrated,
    RateLimited,
    Refused,
    TokenlibError,
    UnknownFeature,
    UnknownOrganization,
)

log = logging.getLogger("tokenlib")

# The same for a stranger, for another organization and for one that does not exist.
NOT_YOURS = "You are not a member of this organization."
FAILED = "The server failed. What was asked was not done or not confirmed; try again later."
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


def answer(status: int, problem: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error response in the old form."""
    return JSONResponse({"error": problem}, status, headers)


def problem(error: ValidationError) -> str:
    """What is wrong with the question, by the name that the caller used."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        return f"{field} is missing."
    return _FIELDS.get(field, _BODY)


def register(api: FastAPI) -> None:
    """Answer HTTP errors and tokenlib's errors in the old form."""
    api.exception_handler(HTTPException)(_http)
    api.exception_handler(TokenlibError)(_tokenlib)


async def _http(_: Request, error: HTTPException) -> JSONResponse:
    words = {404: "There is nothing here.", 405: "This method is not allowed here."}
    return answer(error.status_code, words.get(error.status_code, str(error.detail)), error.headers)


async def _tokenlib(_: Request, error: TokenlibError) -> JSONResponse:
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
        case DatabaseUnavailable() | LoginRefused() | NotMigrated():
            # The driver's words name hosts, folders and logins: they are for the log.
            log.error("API request refused: %s", error)
            return answer(503, _UNAVAILABLE, _retry(_RETRY_SECONDS))
    log.error("API request failed: %s", error, exc_info=error)
    return answer(500, FAILED)


def _retry(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
