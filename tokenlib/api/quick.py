"""The short way of a plain charge: one round trip, and one commit with whoever comes along.

Plain ASGI, before FastAPI's routes. The database decides key, scope, organization, limits and
charge in one function. Whatever it does not charge (a key with limits of its own, a repetition, a
refusal, a mistake) goes on to the route, which decides it anew and says what is wrong. So does a
body that did not come with its head: the route knows who calls before it waits for one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fastapi import Request
from pydantic import ValidationError
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenlib.api.arrival import whole_body
from tokenlib.api.auth import Authentication, Caller
from tokenlib.api.charges import Charges
from tokenlib.api.errors import OLD_PATHS, tokenlib_error
from tokenlib.api.old_schemas import CheckBalance
from tokenlib.api.schemas import ChargeQuestion
from tokenlib.api.strict import Malformed, document
from tokenlib.db import Row
from tokenlib.errors import InvalidInput, TokenlibError
from tokenlib.inputs import metadata, text
from tokenlib.keys import PREFIX, digest, well_formed
from tokenlib.tokens import Tokens

_CHARGES = re.compile(r"/v1/organizations/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/charges")
_CHECK_BALANCE = OLD_PATHS[0]
_AUTHORIZATION, _KEY, _TYPE = b"authorization", b"idempotency-key", b"content-type"
_ENCODING = b"content-encoding"
_JSON = b"application/json"
_LONGEST_KEY = 255
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Plain:
    """A charge to ask for, and how it is answered."""

    request: dict[str, Any]
    status: int
    answer: Callable[[dict[str, Any], Row], dict[str, Any]]


class Quick:
    """Makes plain charges; passes on the rest."""

    def __init__(
        self,
        app: ASGIApp,
        get_tokens: Callable[[], Tokens],
        authentication: Authentication,
        routes: list[BaseRoute],
    ) -> None:
        self._app = app
        self._get_tokens = get_tokens
        self._authentication = authentication
        self._routes = {getattr(route, "name", ""): route for route in routes}
        self._charges = Charges(get_tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
            return await self._app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == _CHECK_BALANCE:
            await self._shortly(self._check_balance, "check_balance", "", scope, receive, send)
        elif found := _CHARGES.fullmatch(path):
            await self._shortly(self._charge, "charge", found[1], scope, receive, send)
        else:
            await self._app(scope, receive, send)
        return None

    async def _shortly(
        self,
        read: Callable[[Scope, str], Callable[[bytes, Tokens], Plain | None] | None],
        name: str,
        organization: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        content = whole_body(scope)
        reading = None if content is None else read(scope, organization)
        if content is None or reading is None:
            await self._app(scope, receive, send)
            return
        plain = self._plain(reading, content)
        try:
            row = None if plain is None else await self._charges.ask(plain.request)
        except TokenlibError as error:
            await (await tokenlib_error(Request(scope), error))(scope, receive, send)
            return
        if plain is None or row is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = self._routes[name]
        caller = Caller(row["caller_id"], "person" if plain.request["digest"] is None else "key")
        scope.setdefault("state", {})["caller"] = caller
        answer = _encode(plain.answer(plain.request, row)).encode()
        headers = [(b"content-type", _JSON), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": plain.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _plain(
        self, reading: Callable[[bytes, Tokens], Plain | None], content: bytes
    ) -> Plain | None:
        try:
            tokens = self._get_tokens()
            shared = tokens.override is None and tokens.shared.enabled
            return reading(content, tokens) if shared else None
        except (ValidationError, Malformed, InvalidInput, TokenlibError):
            return None

    def _charge(
        self, scope: Scope, organization: str
    ) -> Callable[[bytes, Tokens], Plain | None] | None:
        """A charge with an API key, if the head is as it should be."""
        head = _head(scope)
        secret, key = _bearer(head), head.get(_KEY, b"").decode("latin-1")
        if head.get(_TYPE) != _JSON or _ENCODING in head or not 0 < len(key) <= _LONGEST_KEY:
            return None
        if not secret.startswith(PREFIX) or not well_formed(secret):
            return None

        def reading(content: bytes, tokens: Tokens) -> Plain | None:
            asked = ChargeQuestion.model_validate_json(content)
            document(content)
            if asked.user_id is None or tokens.pepper is None:
                return None
            request = {
                "digest": digest(secret, tokens.pepper).hex(),
                "organization_id": UUID(organization),
                "user_id": asked.user_id,
                "feature": text(asked.feature, "feature"),
                "units": asked.units,
                "metadata": metadata(asked.metadata),
                "key": key,
                "limits": False,
            }
            return Plain(request, 201, _charged)

        return reading

    def _check_balance(
        self, scope: Scope, _organization: str
    ) -> Callable[[bytes, Tokens], Plain | None] | None:
        """A charge by a person, through the endpoint that old callers know."""
        head = _head(scope)
        key = head[_KEY].decode("latin-1") if _KEY in head else None
        if key is not None and not 0 < len(key) <= _LONGEST_KEY:
            return None
        user = self._authentication.known_user(_bearer(head))
        if user is None:
            return None

        def reading(content: bytes, _tokens: Tokens) -> Plain | None:
            asked = CheckBalance.model_validate_json(content)
            if asked.action != "deduct":
                return None
            request = {
                "digest": None,
                "organization_id": asked.organization_id,
                "user_id": user,
                "feature": text(asked.feature_used, "feature"),
                "units": 1,
                "metadata": None,
                "key": key,
                "limits": True,
            }
            return Plain(request, 200, _deducted)

        return reading


def _head(scope: Scope) -> dict[bytes, bytes]:
    """What matters of the head; nothing when one of it stands there twice."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in (_AUTHORIZATION, _KEY, _TYPE, _ENCODING):
            if name in found:
                return {}
            found[name] = value
    return found


def _bearer(head: dict[bytes, bytes]) -> str:
    scheme, _, shown = head.get(_AUTHORIZATION, b"").decode("latin-1").partition(" ")
    return shown if scheme.lower() == "bearer" else ""


def _charged(request: dict[str, Any], row: Row) -> dict[str, Any]:
    """As the route's, with less ado."""
    return {
        "id": str(request["id"]),
        "organizationId": str(request["organization_id"]),
        "userId": str(request["user_id"]),
        "feature": request["feature"],
        "tokenType": row["token_type"],
        "tokensDeducted": row["tokens"],
        "tokensWaived": 0,
        "remainingBalance": row["balance"],
        "createdAt": row["created_at"].isoformat().replace("+00:00", "Z"),
    }


def _deducted(request: dict[str, Any], row: Row) -> dict[str, Any]:
    return {
        "success": True,
        "remainingBalance": row["balance"],
        "message": f"Used {row['tokens']} tokens for {request['feature']}",
    }
