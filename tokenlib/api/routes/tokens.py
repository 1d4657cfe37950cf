"""The two endpoints that existing callers know; `sub` of the bearer JWT is who calls.

They answer for members of the organization asked and for nobody else: the database decides, and the
function that charges checks the acting user again.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from tokenlib.api.auth import Authentication, Caller
from tokenlib.api.door import count_failure, door, named
from tokenlib.api.errors import NOT_YOURS, old_problem
from tokenlib.api.old_schemas import CheckBalance, Deduction, HasTokens, StatsAnswer, StatsQuery
from tokenlib.db import statements
from tokenlib.errors import InsufficientTokens
from tokenlib.tokens import Tokens

router = APIRouter(
    prefix="/v1/tokens", tags=["The two old endpoints"], generate_unique_id_function=named
)


async def _caller(request: Request) -> UUID:
    authentication: Authentication = request.app.state.authentication
    user_id = await run_in_threadpool(authentication.user_id, request.headers)
    request.state.caller = Caller(user_id, "person")
    return user_id


def _gate(request: Request) -> Tokens:
    tokens: Tokens = request.app.state.get_tokens()
    return tokens


async def _check_balance_body(request: Request) -> CheckBalance:
    # Read here and not by FastAPI: old callers name any content type.
    try:
        return CheckBalance.model_validate_json(await request.body())
    except ValidationError as error:
        await count_failure(request, error)
        raise HTTPException(400, old_problem(error)) from None


async def _stats_query(request: Request) -> StatsQuery:
    try:
        return StatsQuery.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise HTTPException(400, old_problem(error)) from None


# Resolved in the order of a route's arguments: no body is read before it is known whose it is.
UserId = Annotated[UUID, Depends(_caller)]
Gate = Annotated[Tokens, Depends(_gate)]


@router.post(
    "/check-balance",
    openapi_extra=door("nobody")
    | {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": CheckBalance.model_json_schema(),
                    "example": {
                        "organizationId": "1b4e28ba-2fa1-41d2-883f-0016d3cca427",
                        "featureUsed": "generate_goal",
                        "action": "deduct",
                    },
                }
            },
        }
    },
)
def check_balance(
    request: Request,
    user_id: UserId,
    asked: Annotated[CheckBalance, Depends(_check_balance_body)],
    tokens: Gate,
) -> HasTokens | Deduction:
    """Whether the user may run the feature now (`check`), or the charge (`deduct`)."""
    if not _is_member(tokens, user_id, asked.organization_id):
        if asked.action == "deduct":
            tokens.failed_attempt(user_id, "another organization")
        raise HTTPException(403, NOT_YOURS)
    if asked.action == "check":
        return _check(tokens, user_id, asked)
    return _deduct(tokens, user_id, asked, request.headers.get("idempotency-key"))


@router.get(
    "/stats",
    openapi_extra=door("nobody")
    | {
        "parameters": [
            {
                "name": "organizationId",
                "in": "query",
                "required": True,
                "schema": {"type": "string", "format": "uuid"},
            }
        ]
    },
)
def stats(
    user_id: UserId, asked: Annotated[StatsQuery, Depends(_stats_query)], tokens: Gate
) -> StatsAnswer:
    """Totals of the organization and each of its wallets, current."""
    if not _is_member(tokens, user_id, asked.organization_id):
        raise HTTPException(403, NOT_YOURS)
    return StatsAnswer.of(tokens.get_token_stats(asked.organization_id))


def _is_member(tokens: Tokens, user_id: UUID, organization_id: UUID) -> bool:
    [row] = tokens.database.rows(
        statements("members")["belongs"],
        {"organization_id": organization_id},
        reader="authenticated",
        user_id=user_id,
    )
    return bool(row["belongs"])


def _check(tokens: Tokens, user_id: UUID, asked: CheckBalance) -> HasTokens:
    # Limits are for charges: a page asks again right after one.
    verdict = tokens.can_use(asked.organization_id, user_id, asked.feature_used)
    if verdict.allowed or verdict.rule == InsufficientTokens.rule:
        return HasTokens(has_tokens=verdict.allowed)
    raise HTTPException(403, verdict.message)


def _deduct(tokens: Tokens, user_id: UUID, asked: CheckBalance, key: str | None) -> Deduction:
    try:
        usage = tokens.deduct_tokens(
            asked.organization_id, user_id, asked.feature_used, idempotency_key=key, limits=True
        )
    except InsufficientTokens as error:
        return Deduction.refused(error)
    return Deduction.charged(usage)
