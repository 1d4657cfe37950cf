"""Every verb of the facade, awaitable: one mechanism, written once.

A verb runs in a thread of its own pool, as wide as a database needs; the event loop stays free.
Charges that share a commit need one thread for all of them. A cancelled caller never leaves a hold
behind: what was reserved meanwhile is given back.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from tokenlib import answers
from tokenlib.domain import Reservation, Usage
from tokenlib.errors import DatabaseUnavailable, InvalidInput, ReservationOver
from tokenlib.gate import GateVerbs
from tokenlib.sharing import STUCK_SECONDS, Caller, charged

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

    async def deduct_tokens(self, *args: Any, **kwargs: Any) -> Usage:
        """As `Tokens.deduct_tokens`."""
        tokens = self._tokens
        if isinstance(tokens, GateVerbs) and tokens.shared.enabled and not tokens.override:
            with suppress(InvalidInput):  # which the verb puts on record
                asked = tokens.charge_request(*args, **kwargs)
                return await _Awaited(asked, tokens, self._threads).answer()
        usage: Usage = await self._run(tokens.deduct_tokens, *args, **kwargs)
        return usage

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


class _Awaited(Caller):
    """One who waits without a thread, and gets one when there is something to do."""

    passes_on = False

    def __init__(
        self, asked: Mapping[str, Any], tokens: GateVerbs, threads: ThreadPoolExecutor
    ) -> None:
        super().__init__(asked)
        self._tokens, self._threads = tokens, threads
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[Usage] = self._loop.create_future()
        self._awake = False
        self._give_up_at = time.monotonic() + tokens.database.retry.deadline

    async def answer(self) -> Usage:
        """The charge. Raises what the verb raises."""
        self._tokens.shared.enter(self)
        self._look_later()
        try:
            return await self._answer
        except asyncio.CancelledError:
            self._tokens.shared.withdraw(self)  # what is under way cannot be stopped
            raise
        finally:
            self._timer.cancel()

    def wake(self) -> None:
        """From whatever thread has something for them."""
        at_work, self._awake = self._awake, True
        super().wake()
        if at_work:  # their thread hears it: a second one would wait for nothing
            return
        if self.row is not None:
            self._say(lambda: answers.usage(charged(self)))
            return
        try:
            work = self._threads.submit(self._tokens.carry_out, self.asked, self)
        except RuntimeError:  # closing
            self._tokens.shared.leave(self)
            self._say(self._closed)
        else:
            work.add_done_callback(lambda done: self._say(done.result))

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(STUCK_SECONDS, self._look)

    def _look(self) -> None:
        if self._awake:
            return
        self._tokens.shared.look(self)
        try:
            self._tokens.shared.give_up(self, self._give_up_at)
        except DatabaseUnavailable as error:
            self._fail(error)
        else:
            self._look_later()

    def _fail(self, error: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)

    def _say(self, answer: Callable[[], Usage]) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(self._settle, answer)

    def _closed(self) -> Usage:
        raise self.error or DatabaseUnavailable("The gate is closed. Nothing was charged.")

    def _settle(self, answer: Callable[[], Usage]) -> None:
        if self._answer.done():
            return
        try:
            self._answer.set_result(answer())
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            self._fail(error)
