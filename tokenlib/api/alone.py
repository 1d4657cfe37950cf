"""The API without the console: what each process of `tokenlib serve --api-only` runs.

Its log is JSON, one object a line, each with the id of the request that it is about.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

from tokenlib.api import create_app
from tokenlib.api.connection import Patient
from tokenlib.api.errors import FAILED, NO_PATH, problem, request_id
from tokenlib.api.guard import named
from tokenlib.api.lines import handler
from tokenlib.config import Settings
from tokenlib.errors import TokenlibError
from tokenlib.latency import pace
from tokenlib.tokens import Tokens, connect

log = logging.getLogger("tokenlib")

REFRESH_SECONDS = 60.0
PARENT_SECONDS = 1.0
HEAD_BYTES = 16_384
STOP_SECONDS = 20
START_SECONDS = 15  # a process that says nothing for so long is replaced


class Gate:
    """The gate of this process, opened at the start, or at a later call if that failed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._tokens: Tokens | None = None

    def tokens(self) -> Tokens:
        """The gate. Raises what `tokenlib.connect` raises."""
        with self._lock:
            if self._tokens is None:
                self._tokens = connect(settings=self._settings)
            return self._tokens

    def tend(self) -> None:
        """End every period that is due, and keep how fast answers were. A failure is logged."""
        try:
            self.tokens().refresh_tokens()
            self.tokens().close_usage(days=10)
            pace.keep(self.tokens())
        except TokenlibError as error:
            log.warning("Periods could not be refreshed, or usage not rolled up: %s", error)

    def close(self) -> None:
        """Close it, if it was opened."""
        with self._lock:
            if self._tokens is not None:
                self._tokens.close()
            self._tokens = None


def create() -> Starlette:
    """The app of one process, from the environment."""
    logging.basicConfig(level=logging.INFO, handlers=[handler()], force=True)
    settings = Settings.from_env()
    gate = Gate(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(gate.tend)
        gc.collect()
        gc.freeze()  # what is there by now stays: no collection need look at it again
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_tend_every_minute, gate)
                tasks.start_soon(_end_with_parent)
                yield
                tasks.cancel_scope.cancel()
        finally:
            gate.close()

    api = create_app(gate.tokens, settings)
    app = Starlette(
        routes=[Mount("/api", app=api)],
        lifespan=lifespan,
        exception_handlers={HTTPException: _nothing},
    )
    app.router.redirect_slashes = False
    return app


def serve(host: str, port: int, workers: int) -> None:
    """Serve until a signal says stop; what runs by then is answered first."""
    uvicorn.run(
        f"{__name__}:create",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        http=Patient,
        ws="none",
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=STOP_SECONDS,
        timeout_worker_healthcheck=START_SECONDS,
        log_config=None,
        access_log=False,
        server_header=False,
    )


async def _tend_every_minute(gate: Gate) -> None:
    while True:
        await anyio.sleep(REFRESH_SECONDS)
        await anyio.to_thread.run_sync(gate.tend)


async def _end_with_parent() -> None:
    """A process whose parent was killed would serve on, and nobody would know of it."""
    parent = multiprocessing.parent_process()
    while parent is not None:
        await anyio.sleep(PARENT_SECONDS)
        if not parent.is_alive():
            log.warning("The parent process is gone: stopping.")
            signal.raise_signal(signal.SIGTERM)
            return


async def _nothing(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    # Outside the API nobody has given the request an id.
    name = named(request.scope)
    reset = request_id.set(name)
    try:
        said = ("no_such_path", NO_PATH) if status == 404 else ("failed", FAILED)
        answer = problem(status, *said)
    finally:
        request_id.reset(reset)
    answer.headers["X-Request-Id"] = name
    return answer
