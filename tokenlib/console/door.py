"""What every request passes first: who may come in at all, and the way through sign-in and out.

Streamlit forgets which page somebody wanted when they sign in, and leaves other tabs signed in
when they sign out. It also listens wherever it is told to, with the demo's people behind it.
"""

from __future__ import annotations

from urllib.parse import parse_qs, quote, unquote, urlsplit

import anyio.to_thread
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenlib.config import CALLBACK, SignIn, is_loopback
from tokenlib.console import signin
from tokenlib.console.process import gate

LOGIN, LOGOUT = "/auth/login", "/auth/logout"
WAY = "tokenlib_way"
"""The cookie with the page that somebody wanted, while they are at their provider."""
_MINUTES = 10
_LONGEST = 2000
REFUSED = (
    "The demo's people need no password, so this console answers its own machine only. Open it"
    " there, set up sign-in, or start it with --open-demo.\n"
)


class Door:
    """ASGI middleware around console and API."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on and see to the way."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        settings, path = gate.settings(), scope["path"]
        if settings.demo_people and not settings.open_demo and _from_elsewhere(scope):
            if scope["type"] == "http":
                await PlainTextResponse(REFUSED, 403)(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        if settings.sign_in is None or scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        if path.endswith(LOGOUT):
            await anyio.to_thread.run_sync(signin.sign_out, request.cookies, settings.sign_in)
        elif path.endswith(LOGIN):
            send = _keep(send, settings.sign_in, request.headers.get("referer", ""))
        elif path.endswith(CALLBACK) and "code" in parse_qs(
            scope["query_string"].decode("latin-1")
        ):
            send = _follow(send, settings.sign_in, request.cookies.get(WAY, ""))
        await self.app(scope, receive, send)


def _from_elsewhere(scope: Scope) -> bool:
    """Whether a request for the console came in at an address that others reach, too."""
    if scope["path"] == "/api" or scope["path"].startswith("/api/"):
        return False  # asks everybody for credentials
    address = (scope.get("server") or ("",))[0]
    try:
        return not is_loopback(address)
    except ValueError:
        return False  # a socket in the file system, not an address


def _keep(send: Send, settings: SignIn, referer: str) -> Send:
    """Remember the page that asked for the sign-in."""
    page, home = urlsplit(referer), urlsplit(settings.redirect_uri)
    way = page._replace(scheme="", netloc="", fragment="").geturl()
    if (page.scheme, page.netloc) != (home.scheme, home.netloc) or not _ours(way):
        way = ""
    return _with_cookie(send, settings, way)


def _follow(send: Send, settings: SignIn, kept: str) -> Send:
    """Go on to the page that was remembered."""
    way = unquote(kept)
    return _with_cookie(send, settings, "", way if _ours(way) else "")


def _ours(way: str) -> bool:
    """Whether this is a page here, and not another site, nor a step of the sign-in."""
    return (
        way.startswith("/")
        and not way.startswith(("//", "/\\"))
        and way.isascii()
        and way.isprintable()
        and " " not in way
        and len(way) <= _LONGEST
        and not urlsplit(way).path.endswith((LOGIN, LOGOUT, CALLBACK))
    )


def _with_cookie(send: Send, settings: SignIn, way: str, location: str = "") -> Send:
    age = _MINUTES * 60 if way else 0
    cookie = f"{WAY}={quote(way, safe='')}; Path=/; Max-Age={age}; HttpOnly; SameSite=lax"
    if settings.redirect_uri.startswith("https://"):
        cookie += "; Secure"

    async def with_cookie(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.append("set-cookie", cookie)
            if location and message["status"] in (302, 303, 307):
                headers["location"] = location
        await send(message)

    return with_cookie
