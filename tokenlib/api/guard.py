"""Around every request: an id, a line in the log, bounds, private answers, no error that gets out.

Plain ASGI, so that answers are not buffered. The line has who, which route, what came of it and how
long it took; never a path with ids in it, a query, a body or a credential.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from typing import Any
from uuid import uuid4

from fastapi import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenlib.api.arrival import MAX_BODY_BYTES, arrived
from tokenlib.api.counts import Requests
from tokenlib.api.errors import BUSY, failed, problem, request_id
from tokenlib.latency import pace

BODY_SECONDS = 10.0
_RETRY_SECONDS = 1

# They need no place and take none: whether the process lives and can serve is no question of load.
_ALWAYS = ("/v1/health", "/v1/ready")
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Line:
    """What there is to say of a request; JSON once somebody reads it."""

    __slots__ = ("said",)

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said

    def __str__(self) -> str:
        return json.dumps(self.said)


class Guard:
    """At most `places` requests at a time, running or waiting for a thread; one more is a 503."""

    log = logging.getLogger("tokenlib.api")

    def __init__(
        self, app: ASGIApp, places: int, requests: Requests, body_seconds: float = BODY_SECONDS
    ) -> None:
        self._app = app
        self._requests = requests
        self._places = places
        self._body_seconds = body_seconds
        self._taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        name = named(scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        reset = request_id.set(name)

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message["headers"])
                said = {header for header, _ in headers}
                headers += [each for each in _HEADERS if each[0] not in said]
                headers.append((b"x-request-id", name.encode()))
                message["headers"] = headers
            await send(message)

        receive = await arrived(scope, receive)
        place = path not in _ALWAYS
        self._taken += place
        try:
            if place and self._taken > self._places:
                busy = problem(
                    503, "busy", BUSY, {"Retry-After": str(_RETRY_SECONDS)}, outcome="not_charged"
                )
                await busy(scope, receive, send_guarded)
            else:
                await self._app(scope, self._bounded(receive), send_guarded)
        except ClientDisconnect:
            return  # nobody is there to answer
        except Exception as error:
            if status:
                raise
            self.log.error("API request %s failed: %s", name, error, exc_info=error)
            await failed(path)(scope, receive, send_guarded)
        finally:
            self._taken -= place
            self._say(scope, name, status, time.perf_counter() - began)
            request_id.reset(reset)

    def _bounded(self, receive: Receive) -> Receive:
        """The body as far as it is allowed: in size, and in how long it may take to arrive."""
        size, give_up_at, whole = 0, 0.0, False
        now = asyncio.get_running_loop().time

        async def receive_bounded() -> Message:
            nonlocal size, give_up_at, whole
            if whole:
                # From now on only a disconnect may come, at any time.
                return await receive()
            give_up_at = give_up_at or now() + self._body_seconds
            try:
                async with asyncio.timeout_at(give_up_at):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "The body took too long to arrive.") from None
            size += len(message.get("body", b""))
            if size > MAX_BODY_BYTES:
                raise HTTPException(413, f"The body must be at most {MAX_BODY_BYTES} bytes.")
            whole = not message.get("more_body", False)
            return message

        return receive_bounded

    def _say(self, scope: Scope, name: str, status: int, seconds: float) -> None:
        caller = scope.get("state", {}).get("caller")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", None)
        self._requests.add(method, route, status or 499, seconds)
        line = {
            "event": "request",
            "requestId": name,
            "method": method,
            "route": route,
            "status": status or 499,
            "milliseconds": round(seconds * 1000, 1),
            "caller": caller and f"{caller.kind} {caller.id}",
        }
        self.log.info("%s", Line(line))
        if caller and 200 <= status < 500:  # not who only asks whether it lives
            pace.add("api", seconds * 1000)


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def named(scope: Scope) -> str:
    """The caller's own id for the request, if it can stand in a log; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(given := value.decode("latin-1")):
            return str(given)
    return uuid4().hex
