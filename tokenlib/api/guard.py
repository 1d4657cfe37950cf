"""Around every request: an id, a line in the log, bounds, private answers, no error that gets out.

Plain ASGI, so that answers are not buffered. The line has who, which route, what came of it and how
long it took; never a path with ids in it, a query, a body or a credential.
"""

from __future__ import annotations

import json
import logging
import re
import time
from uuid import uuid4

import anyio
from fastapi import HTTPException
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenlib.api.errors import BUSY, failed, problem, request_id
from tokenlib.latency import pace

MAX_BODY_BYTES = 65_536
BODY_SECONDS = 10.0
_RETRY_SECONDS = 1

# Answers while every place is taken: whether the process lives is no question of load.
_ALWAYS = "/v1/health"
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """At most `places` requests at a time, running or waiting for a thread; one more is a 503."""

    log = logging.getLogger("tokenlib.api")

    def __init__(self, app: ASGIApp, places: int, body_seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._places = places
        self._body_seconds = body_seconds
        self._taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        name = _named(scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        reset = request_id.set(name)

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = name
                for header, value in _HEADERS.items():
                    headers.setdefault(header, value)
            await send(message)

        self._taken += 1
        try:
            if self._taken > self._places and path != _ALWAYS:
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
            self._taken -= 1
            self._say(scope, name, status, time.perf_counter() - began)
            request_id.reset(reset)

    def _bounded(self, receive: Receive) -> Receive:
        """The body as far as it is allowed: in size, and in how long it may take to arrive."""
        size, give_up_at = 0, 0.0

        async def receive_bounded() -> Message:
            nonlocal size, give_up_at
            give_up_at = give_up_at or anyio.current_time() + self._body_seconds
            left = give_up_at - anyio.current_time()
            message: Message | None = None
            with anyio.move_on_after(max(left, 0)):
                message = await receive()
            if message is None:
                raise HTTPException(408, "The body took too long to arrive.")
            size += len(message.get("body", b""))
            if size > MAX_BODY_BYTES:
                raise HTTPException(413, f"The body must be at most {MAX_BODY_BYTES} bytes.")
            if not message.get("more_body", False):
                # All of it is here: from now on only a disconnect may come, at any time.
                give_up_at = float("inf")
            return message

        return receive_bounded

    def _say(self, scope: Scope, name: str, status: int, seconds: float) -> None:
        caller = scope.get("state", {}).get("caller")
        line = {
            "event": "request",
            "requestId": name,
            "method": scope["method"] if scope["method"] in _METHODS else "other",
            "route": getattr(scope.get("route"), "path", None),
            "status": status or 499,
            "milliseconds": round(seconds * 1000, 1),
            "caller": caller and f"{caller.kind} {caller.id}",
        }
        self.log.info("%s", json.dumps(line))
        if caller and 200 <= status < 500:  # not who only asks whether it lives
            pace.add("api", seconds * 1000)


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def _named(scope: Scope) -> str:
    """The caller's own id for the request, if it can stand in a log; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(given := value.decode("latin-1")):
            return str(given)
    return uuid4().hex
