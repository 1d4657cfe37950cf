"""The one gate of this process, which pages and API share, and what runs beside them.

It opens when the server starts, or at the first question if that failed, and closes with the
server. Meanwhile it refreshes every period that ends, and rolls up usage.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from tokenlib import demo
from tokenlib.config import Settings, own_machine
from tokenlib.errors import ConfigurationError, TokenlibError
from tokenlib.latency import pace
from tokenlib.tokens import Tokens, connect

log = logging.getLogger("tokenlib")

FRAME = Path(__file__).with_name("frame.py")
REFRESH_SECONDS = 60.0
KEPT_EVERY = 60
"""Refreshes between two rows of the history of how fast API and console answer: one an hour."""


def pages_folder() -> Path:
    """Where the pages lie: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_app" / "pages"
    return installed if installed.is_dir() else package.parent / "pages"


class Gate:
    """A `Tokens` that opens at the first call and is the same for every caller after it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settings: Settings | None = None
        self._tokens: Tokens | None = None

    def use(self, tokens: Tokens, settings: Settings) -> None:
        """Serve with this gate; who made it closes it, and then calls `forget`."""
        with self._lock:
            self._tokens, self._settings = tokens, settings

    def forget(self) -> None:
        """Let the next call open a gate of its own."""
        with self._lock:
            self._tokens = self._settings = None

    def settings(self) -> Settings:
        """The environment, read at the first call. Raises ConfigurationError."""
        with self._lock:
            return self._read()

    def tokens(self) -> Tokens:
        """The gate. Raises what `tokenlib.connect` raises, and tries again at the next call."""
        with self._lock:
            if self._tokens is None:
                self._tokens = connect(settings=self._read())
            return self._tokens

    def open(self) -> None:
        """Open the gate, with demo data when it stands on the bundled PostgreSQL.

        What is wrong is logged and not raised: the console then says it, and tries again.
        """
        try:
            tokens = self.tokens()
            if self.settings().embedded and not demo.loaded(tokens):
                log.warning("Loading the demo data, once. This takes some seconds.")
                demo.load(owner_url(tokens), tokens)
        except TokenlibError as error:
            log.error("%s", error)

    def refresh(self) -> None:
        """End every period that is due. A failure is logged: the next minute tries again."""
        try:
            ended = self.tokens().refresh_tokens()
        except TokenlibError as error:
            log.warning("Periods could not be refreshed: %s", error)
        else:
            if ended:
                log.info("Refreshed %s wallets", ended)

    def close_usage(self) -> None:
        """Roll up what cannot change any more. A failure is logged: the next minute tries again."""
        try:
            self.tokens().close_usage(days=10)
        except TokenlibError as error:
            log.warning("Usage could not be rolled up: %s", error)

    def keep_pace(self) -> None:
        """Write down how fast API and console answered. A failure is logged."""
        try:
            pace.keep(self.tokens())
        except TokenlibError as error:
            log.warning("The speed of answers could not be kept: %s", error)

    def close(self) -> None:
        """Close the gate, if it was opened."""
        with self._lock:
            if self._tokens is not None:
                self._tokens.close()
            self._tokens = None

    def _read(self) -> Settings:
        if self._settings is None:
            self._settings = Settings.from_env()
        return self._settings


gate = Gate()


def owner_url(tokens: Tokens) -> str:
    """The URL by which the owner reaches the bundled database, for the demo data."""
    return tokens.database.url.set(username="tokenlib_owner").render_as_string(hide_password=False)


def settings_or_exit() -> Settings:
    """The environment; what cannot be meant ends the process, with the reason."""
    try:
        return gate.settings()
    except ConfigurationError as error:
        raise SystemExit(f"tokenlib: {error}") from None


def secrets(settings: Settings) -> dict[str, Any]:
    """What Streamlit's sign-in needs, from our own settings: no file with secrets lies about."""
    found = settings.sign_in
    if found is None:
        return {}
    return {
        "auth": {
            "client_id": found.client_id,
            "client_secret": found.client_secret,
            "server_metadata_url": found.issuer.rstrip("/") + "/.well-known/openid-configuration",
            "redirect_uri": found.redirect_uri,
            "cookie_secret": found.cookie_secret,
        }
    }


def require_safe(settings: Settings, address: str | None, trusted_headers: object) -> None:
    """End the process where Streamlit's own options would let anybody be anybody.

    An address that names no host is left to `Door`, which looks at each request.
    """
    if settings.demo_people and not settings.open_demo and address and not own_machine(address):
        raise SystemExit(
            f"tokenlib: The demo's people need no password, so {address} would let the whole"
            " network be admin. Listen on 127.0.0.1, set up sign-in, or set TOKENLIB_OPEN_DEMO."
        )
    if settings.sign_in is not None and trusted_headers:
        raise SystemExit(
            "tokenlib: server.trustedUserHeaders lets a request say whose it is. Unset it: people"
            " sign in with the provider of TOKENLIB_OIDC_ISSUER."
        )


@asynccontextmanager
async def lifespan(_app: object) -> AsyncIterator[None]:
    """Open the gate, refresh it every minute, close it when the server stops."""
    await anyio.to_thread.run_sync(gate.open)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_refresh_every_minute)
            yield
            tasks.cancel_scope.cancel()
    finally:
        gate.close()


async def _refresh_every_minute() -> None:
    for minute in itertools.count(1):
        await anyio.sleep(REFRESH_SECONDS)
        # Not abandoned when the server stops: the gate closes after the last refresh.
        await anyio.to_thread.run_sync(gate.refresh)
        await anyio.to_thread.run_sync(gate.close_usage)
        if minute % KEPT_EVERY == 0:
            await anyio.to_thread.run_sync(gate.keep_pace)
