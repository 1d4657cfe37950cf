"""The HTTP API, an ASGI app that `app.py` mounts at /api.

from tokenlib.api import create_app
app = create_app(lambda: tokens, Settings.from_env())
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI

from tokenlib.api import errors, routes
from tokenlib.api.auth import BearerJwt
from tokenlib.api.guard import Guard
from tokenlib.config import Settings
from tokenlib.tokens import Tokens

__all__ = ["create_app"]


def create_app(get_tokens: Callable[[], Tokens], settings: Settings) -> FastAPI:
    """The API on the gate that `get_tokens` gives, asked anew for every request.

    Callers show a JWT that `settings.jwt_secret` signed; without a secret every call is refused.
    Raises ConfigurationError for a secret that is too short.
    """
    # No generated pages: the two endpoints keep the old form, which docs/guide.md describes.
    api = FastAPI(title="tokenlib", openapi_url=None, redirect_slashes=False)
    api.state.get_tokens = get_tokens
    api.state.bearer = BearerJwt(settings)
    api.include_router(routes.router)
    errors.register(api)
    api.add_middleware(Guard)
    return api
