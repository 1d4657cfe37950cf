"""The HTTP API, an ASGI app that `app.py` mounts at /api.

from tokenlib.api import create_app
app = create_app(lambda: tokens, Settings.from_env())

A request passes guard.py (an id, bounds, one log line), door.py (who calls, the scope, the query,
the body) and one function in routes/, which asks or does through the door; the database decides
what the caller may. errors.py makes an answer of whatever goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI

from tokenlib.api import errors, openapi
from tokenlib.api.auth import Authentication
from tokenlib.api.counts import Requests
from tokenlib.api.guard import Guard
from tokenlib.api.quick import Quick
from tokenlib.api.routes import keys, operating, reading, spending, staff, tokens
from tokenlib.config import Settings
from tokenlib.tokens import Tokens

__all__ = ["create_app"]

ROUTERS = (spending, reading, staff, keys, operating, tokens)


def create_app(get_tokens: Callable[[], Tokens], settings: Settings) -> FastAPI:
    """The API on the gate that `get_tokens` gives, asked anew for every request.

    Callers show a JWT of the configured issuer, or an API key. Raises ConfigurationError for
    settings that cannot be meant.
    """
    # Its own description and page: FastAPI's load a viewer from elsewhere.
    api = FastAPI(
        title="tokenlib",
        version=version("tokenlib-ai"),
        openapi_url=None,
        redirect_slashes=False,
    )
    api.state.get_tokens = get_tokens
    api.state.authentication = Authentication(settings, get_tokens)
    for each in ROUTERS:
        # Routes know their prefix, so one list will do: a router in a router is searched twice.
        api.router.routes.extend(each.router.routes)
    api.openapi = partial(openapi.build, api)  # type: ignore[method-assign]  # as FastAPI's manual says
    errors.register(api)
    api.add_middleware(
        Quick,
        get_tokens=get_tokens,
        authentication=api.state.authentication,
        routes=api.routes,
    )
    api.state.readiness = operating.Readiness(get_tokens)
    api.state.requests = Requests()
    api.add_middleware(Guard, places=settings.api_places, requests=api.state.requests)
    return api
