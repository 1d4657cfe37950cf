"""Every verb of the facade, awaitable: one mechanism, written once.

A verb runs in a thread of its own pool, as wide as a database needs; the event loop stays free.
A cancelled caller never leaves a hold behind: what was reserved meanwhile is given back.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tokenlib.domain import Reservation
from tokenlib.errors import ReservationOver

if TYPE_CHECKING:
    from tokenlib.client import Client
    from tokenlib.tokens import Tokens

_THREADS = 16


class AsyncTokens:
    """Awaitable twins: `await tokens.aio.deduct_tokens(…)`, `async with tokens.aio.spend(…)`."""

    def __init__(self, tokens: Tokens | Client) -> None:
        self._tokens = tokens
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenlib")

    def __getattr__(self, verb: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self._tokens, verb)
        if verb.startswith("_") or not callable(method):
            raise AttributeError(verb)

        @functools.wraps(method)
        async def twin(*args: Any, **kwargs: Any) -> Any:
            return await self._run(method, *args, **kwargs)

        return twin

    async def reserve(self, *args: Any, **kwargs: Any) -> Reservation:
        """As `Tokens.reserve`."""
        reserving = self._threads.submit(self._tokens.reserve, *args, **kwargs)
        try:
            return await asyncio.shield(asyncio.wrap_future(reserving))
        except asyncio.CancelledError:
            # The thread cannot be stopped, nor its retries: its hold is given back when it has one,
            # also when the event loop is closed by then.
            reserving.add_done_callback(self._release_abandoned)
            raise

    @asynccontextmanager
    async def spend(self, *args: Any, **kwargs: Any) -> AsyncIterator[Reservation]:
        """As `Tokens.spend`, around an awaited AI call."""
        held = await self.reserve(*args, **kwargs)
        try:
            yield held
        except BaseException as error:
            await asyncio.shield(
                self._run(self._tokens.release_quietly, held, type(error).__name__)
            )
            raise
        try:
            await asyncio.shield(self._run(self._tokens.deduct, held))
        except ReservationOver as over:
            if over.state != "released":
                raise

    def close(self) -> None:
        """Wait for running verbs and end the threads."""
        self._threads.shutdown()

    async def _run(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(method, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _release_abandoned(self, reserving: Future[Reservation]) -> None:
        if reserving.cancelled() or reserving.exception() is not None:
            return
        held = reserving.result()
        try:
            self._threads.submit(self._tokens.release_quietly, held, "cancelled")
        except RuntimeError:  # closing: no new work, and this thread may wait
            self._tokens.release_quietly(held, "cancelled")
