"""Charges that arrive at the same moment, asked for in one round trip and made in one commit."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from tokenlib import batches
from tokenlib.db import Row, statements
from tokenlib.errors import DatabaseUnavailable, TokenlibError
from tokenlib.sharing import AT_ONCE
from tokenlib.tokens import Tokens

_MOST = 64
# Who wait while others are at work are so many before they are sent beside them.
_FEW = 16
# Whoever is at work for longer is stuck, behind a slow disk: the others go on without it.
_STUCK_SECONDS = 0.02
# For a wallet that somebody else has in hand. After it each caller waits for itself.
_PATIENCE_SECONDS = 2.0


@dataclass(slots=True)
class Asked:
    """One who waits."""

    request: dict[str, Any]
    answer: asyncio.Future[Row | None]


@dataclass(slots=True)
class Line:
    """Who waits, in the order of arrival, and since when somebody is at work for them."""

    organization: UUID | None = None  # whose wallet is waited for; None: nobody's
    waiting: deque[Asked] = field(default_factory=deque)
    working: int = 0
    since: float = 0.0
    in_hand: Counter[UUID] = field(default_factory=Counter)  # whose charges are under way

    def ready(self) -> list[Asked]:
        """Who can be sent: whose wallets are in our own hand would find them locked."""
        if self.organization is not None or not self.in_hand:
            return list(self.waiting)
        return [one for one in self.waiting if one.request["organization_id"] not in self.in_hand]

    def take(self, crew: list[Asked]) -> None:
        """Let these go from those who wait, and have theirs in hand."""
        gone = set(map(id, crew))
        self.waiting = deque(one for one in self.waiting if id(one) not in gone)
        self.in_hand.update(one.request["organization_id"] for one in crew)

    def give_back(self, crew: list[Asked]) -> None:
        """These have come home."""
        self.in_hand -= Counter(one.request["organization_id"] for one in crew)


class Charges:
    """One round trip is under way at a time, or two where many ask, unless they are stuck.

    A wallet that somebody else has in hand gets a line of its own: who wants it waits there, and
    holds nobody else. Of one event loop.
    """

    def __init__(self, get_tokens: Callable[[], Tokens]) -> None:
        self._get_tokens = get_tokens
        self._main = Line()
        self._lines: dict[UUID, Line] = {}
        self._main_threads = ThreadPoolExecutor(4, "tokenlib-charges")
        self._line_threads = ThreadPoolExecutor(8, "tokenlib-busy-charges")

    async def ask(self, request: dict[str, Any]) -> Row | None:
        """The charge as `tokenlib.api_charges` made it; None: it was not made, or nobody knows."""
        loop = asyncio.get_running_loop()
        asked = Asked(request, loop.create_future())
        line = self._lines.get(request["organization_id"], self._main)
        line.waiting.append(asked)
        self._begin(line, loop)
        return await asked.answer

    def _begin(self, line: Line, loop: asyncio.AbstractEventLoop) -> None:
        """Send those who wait, unless somebody is at work who will do it next."""
        now = loop.time()
        crew = line.ready()[:_MOST]
        if not crew:
            return
        enough = line.working < AT_ONCE and len(crew) >= _FEW
        if line.working and not enough and not self._stuck(line, now):
            return
        line.take(crew)
        line.working, line.since = line.working + 1, now
        threads = self._main_threads if line is self._main else self._line_threads
        asked = loop.run_in_executor(threads, self._send, crew, line is not self._main)
        asked.add_done_callback(lambda done: self._done(loop, line, crew, done))
        if line is self._main:
            # Whoever comes meanwhile is sent by this one's end, or else by now.
            loop.call_later(_STUCK_SECONDS, self._begin, line, loop)

    def _stuck(self, line: Line, now: float) -> bool:
        return line is self._main and line.working < 4 and now - line.since > _STUCK_SECONDS

    def _send(self, crew: list[Asked], wait: bool) -> list[Row]:
        requests = [asked.request for asked in crew]
        ids = batches.new_ids(len(crew))
        for request, drawn in zip(requests, ids, strict=True):
            request["id"] = drawn
        params = batches.lists(requests, ids, wait=wait)
        params["digests"] = batches.texts([request["digest"] for request in requests])
        database = self._get_tokens().database
        return database.once(statements("api")["charges"], params, "repeatable", _PATIENCE_SECONDS)

    def _done(
        self,
        loop: asyncio.AbstractEventLoop,
        line: Line,
        crew: list[Asked],
        done: asyncio.Future[list[Row]],
    ) -> None:
        line.working -= 1
        line.give_back(crew)
        self._begin(line, loop)
        if line.organization is not None and not line.working:
            del self._lines[line.organization]
        failed = done.exception()
        rows = {} if failed is not None else {row["place"]: row for row in done.result()}
        for place, asked in enumerate(crew, 1):
            row = rows.get(place)
            if asked.answer.done():
                continue  # cancelled meanwhile
            if failed is not None and not _may_ask_again(failed, asked):
                asked.answer.set_exception(failed)
            elif row is None or not row["locked"]:
                asked.answer.set_result(row)
            elif line is self._main:
                self._wait_for(asked, loop)
            else:
                asked.answer.set_result(None)

    def _wait_for(self, asked: Asked, loop: asyncio.AbstractEventLoop) -> None:
        """Into the line of its organization."""
        name = asked.request["organization_id"]
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = Line(name)
            loop.call_soon(self._begin, line, loop)
        line.waiting.append(asked)


def _may_ask_again(failed: BaseException, asked: Asked) -> bool:
    """Whether asking alone is safe: it says then what came of the first, or nothing did."""
    if not isinstance(failed, TokenlibError):
        return False
    lost = isinstance(failed, DatabaseUnavailable) and failed.outcome == "unknown"
    return asked.request["key"] is not None or not lost
