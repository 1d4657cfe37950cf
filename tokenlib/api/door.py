"""The way through every route but the two old ones: credentials, scope, query, body, database.

A route says in `door(…)` what it needs; one that says nothing does not start. Credentials come
before the body is read. `Reading` and `Writing` are all that a route has of the database, and both
say first who calls.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Depends, Header, HTTPException, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from psycopg.types.json import Jsonb
from starlette.concurrency import run_in_threadpool

from tokenlib import answers
from tokenlib.api.auth import Authentication, Caller
from tokenlib.api.errors import (
    OLD_PATHS,
    InFlight,
    MissingScope,
    NameTaken,
    NotYours,
    NotYourself,
    problem,
)
from tokenlib.api.strict import StrictRequest, check, credentials_once
from tokenlib.db import Row, statements
from tokenlib.domain import Balance, Scope, plain
from tokenlib.errors import InvalidInput, TokenlibError, UnknownFeature, UnknownOrganization
from tokenlib.reports import Reports, Viewer
from tokenlib.tokens import Tokens

# Whoever calls with credentials that are good; nobody in particular.
Needs = Scope | Literal["anybody", "nobody"]

# What counts as a failed attempt of the person who sent it.
_WRONG = (RequestValidationError, HTTPException, InvalidInput, NotYours, NotYourself)

OrganizationId = Annotated[UUID, Path(alias="organizationId", description="The organization.")]


def door(needs: Needs) -> dict[str, Any]:
    """What a route asks of its caller, for `openapi_extra`."""
    return {"x-needs": needs}


def needs(route: APIRoute) -> Needs:
    """What a route asks of its caller; a route that does not say is a mistake."""
    said: Needs = (route.openapi_extra or {})["x-needs"]
    return said


def named(route: APIRoute) -> str:
    """The operation's id in the description."""
    return f"old_{route.name}" if route.path in OLD_PATHS else route.name


class Door(APIRoute):
    """A route behind its credentials."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI's, after who calls is settled and the query is known."""
        handle = super().get_route_handler()
        scope = needs(self)
        params = self.dependant.query_params
        known = {param.alias for param in params}
        has_body = self.body_field is not None

        async def behind(request: Request) -> Response:
            request = StrictRequest(request.scope, request.receive)
            if scope != "nobody":
                credentials_once(request)
                request.state.caller = await _admit(request, scope)
            unknown = sorted(set(request.query_params) - known)
            if unknown:
                said = "is not known: leave it out"
                errors = [{"field": name[:100], "problem": said} for name in unknown[:20]]
                detail = f"{errors[0]['field']} {said}."
                return problem(400, "invalid_request", detail, errors=errors)
            try:
                check(request, has_body)
                return await handle(request)
            except _WRONG as error:
                # An unknown feature the database has counted; only calls that charge are limited.
                large = isinstance(error, HTTPException) and error.status_code not in (400, 415)
                if scope == "spend" and not large and not isinstance(error, UnknownFeature):
                    await count_failure(request, error)
                raise

        return behind


async def count_failure(request: Request, error: Exception) -> None:
    """Put on record that a person sent what no rule could accept, or asked in another's name.

    Too much of it blocks them for a while. What a key sends is laid at nobody's door.
    """
    caller: Caller = request.state.caller
    if caller.kind != "person":
        return
    said = "malformed call"
    if isinstance(error, NotYours | NotYourself):
        said = "another organization" if isinstance(error, NotYours) else "another user"
    get_tokens: Callable[[], Tokens] = request.app.state.get_tokens
    with suppress(TokenlibError):  # a database that does not answer has said no already
        await run_in_threadpool(lambda: get_tokens().failed_attempt(caller.id, said))


async def _admit(request: Request, scope: Needs) -> Caller:
    authentication: Authentication = request.app.state.authentication
    caller = await run_in_threadpool(authentication.caller, request.headers)
    if caller.kind == "key" and scope != "anybody" and scope not in caller.scopes:
        # The database asks again; this one says which scope.
        request.state.caller = caller
        raise MissingScope(scope)
    return caller


class Reading:
    """What a route may ask, as its caller."""

    def __init__(self, request: Request, response: Response) -> None:
        self.caller: Caller = request.state.caller
        self._get_tokens: Callable[[], Tokens] = request.app.state.get_tokens
        self._response = response

    @property
    def tokens(self) -> Tokens:
        """The gate."""
        return self._get_tokens()

    def ask(self, question: str, **params: Any) -> list[Row]:
        """One of the door's own questions, which name the caller."""
        named = {"caller": self.caller.id, "secret": self.caller.secret, **params}
        return self.tokens.database.call_all(statements("api")[question], named, "question")

    def balances(self, organization_id: UUID, token_type: str | None = None) -> list[Balance]:
        """Wallets of an organization that the caller may read; NotYours for any other."""
        params = {"organization_id": organization_id, "token_type": token_type}
        try:
            rows = self.ask("balances", **params)
        except UnknownOrganization:
            raise NotYours from None
        return [answers.balance(row) for row in rows]

    def reports(self, organization_id: UUID) -> Reports:
        """Questions about an organization as its caller; NotYours when it may not read there.

        A member, and a key of one organization, ask under row-level security: what a route gets
        wrong has no rows.
        """
        viewer = self._viewer()
        database = self.tokens.database
        reader = viewer.reader if viewer else "tokenlib_service"
        if reader in ("authenticated", "key"):
            question, column = statements("members")["belongs"], "belongs"
        else:
            question, column = statements("catalog")["organization"], "id"
        rows = database.rows(
            question,
            {"organization_id": organization_id},
            reader=reader,
            user_id=viewer.user_id if viewer else None,
        )
        if not rows or not rows[0][column]:
            raise NotYours
        return Reports(database, viewer)

    def _viewer(self) -> Viewer | None:
        if self.caller.kind == "key":
            if self.caller.organization_id is None:
                return None  # it may read everything
            return Viewer(self.caller.id, "key")
        me = self.tokens.database.rows(
            statements("system")["whoami"], reader="authenticated", user_id=self.caller.id
        )
        staff = bool(me) and me[0]["staff_role"] is not None
        return Viewer(self.caller.id, "tokenlib_reader" if staff else "authenticated")


class Writing(Reading):
    """What a route may do, as its caller and once under its Idempotency-Key."""

    def __init__(self, request: Request, response: Response, key: str) -> None:
        super().__init__(request, response)
        self._key = key

    def write(
        self,
        verb: str,
        organization_id: UUID | None,
        *,
        user: UUID | None = None,
        unique: dict[str, Any] | None = None,
        **args: Any,
    ) -> Row:
        """Do it, or give the first answer again. `unique` is new in each attempt: no replay has it.

        Raises NotYours, NotYourself, InFlight, NameTaken, and what the verb raises.
        """
        asked = plain({"verb": verb, "organization": organization_id, "user": user, **args})
        canonical = json.dumps(asked, sort_keys=True, ensure_ascii=True)
        row = self.tokens.database.call(
            statements("api")["write" if organization_id else "write_for_everyone"],
            {
                "caller": self.caller.id,
                "secret": self.caller.secret,
                "verb": verb,
                "organization_id": organization_id,
                "user_id": user,
                "key": self._key,
                "hash": hashlib.sha256(canonical.encode()).digest(),
                "args": Jsonb(plain({**args, **(unique or {})})),
                "mode": self.tokens.override,
            },
            "repeatable",
        )
        match row["status"]:
            case "ok":
                pass
            case "not_yours":
                raise NotYours
            case "not_yourself":
                raise NotYourself
            case "in_flight":
                raise InFlight
            case "conflict" if row["text"] == "id":
                raise NameTaken
            case _:
                raise self._refusal({**args, **_said(row)})
        if row["replayed"]:
            self._response.headers["Idempotency-Replayed"] = "true"
        self._tell_window(row)
        return row

    def _refusal(self, row: Row) -> Exception:
        known: Any = ()
        match row["status"]:
            case "unknown_feature":
                known = self.tokens.catalog().features
            case "unknown_token_type":
                known, row["text"] = self.tokens.catalog().token_types, row["token_type"]
            case "unknown_plan":
                known = self.tokens.catalog().plans
        return answers.refusal(row, known=known)

    def _tell_window(self, row: Row) -> None:
        if row["window_name"] is None:
            return
        who = row["window_name"].split("_", 1)[0]
        left, ends = row["window_left"], max(1, math.ceil(row["window_ends_after"]))
        self._response.headers["RateLimit-Policy"] = f'"{who}";q={row["window_allowed"]};w=60'
        self._response.headers["RateLimit"] = f'"{who}";r={left};t={ends}'


def _said(row: Row) -> Row:
    """An answer: where it is silent and the request speaks, the request stands."""
    silent = ("token_type", "plan", "feature", "id")
    return {name: value for name, value in row.items() if value is not None or name not in silent}


async def _reading(request: Request, response: Response) -> Reading:
    return Reading(request, response)


async def _writing(
    request: Request,
    response: Response,
    key: Annotated[
        str,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            description="Of your own, new for each request and the same for its repetitions.",
            examples=["quest-1"],
        ),
    ],
) -> Writing:
    return Writing(request, response, key)


Read = Annotated[Reading, Depends(_reading)]
Write = Annotated[Writing, Depends(_writing)]
