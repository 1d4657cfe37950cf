"""One commit for charges that callers of this process ask for at the same moment.

Who comes while nobody is at work asks alone and at once, so a lone caller pays nothing. Who comes
meanwhile waits in line; one of them then asks for all, in one transaction with an answer for each:
when whoever is at work has ended, or while they are at it once half of the callers wait. What that
does not charge, because it is anything but plain, its caller asks for alone.

A wallet that somebody else has in hand gets a line of its own: whoever wants it waits there, and
holds nobody else up.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from tokenlib import batches
from tokenlib.db import Database, Kind, Row, statements
from tokenlib.errors import DatabaseUnavailable, TokenlibError
from tokenlib.retry import LEAST_PATIENCE_SECONDS

_MOST = 64
# While the server is at work for one half of the callers, the other half is on its way back and
# asks anew: two halves in turns keep both sides busy.
AT_ONCE = 2
# Whoever is at work for longer is behind a lock or a slow disk: the line goes on without them.
STUCK_SECONDS = 0.05
_GRACE_SECONDS = 10.0

_LOST = (
    "The reply to a shared commit was lost. It is unknown whether this was charged. Retry with the"
    " same idempotency key; a call without one cannot be repeated safely, so look into the usage"
    " log first."
)


class Caller:
    """One who asks for a charge. Waits for an answer, an error, or to be told to lead."""

    passes_on = True  # what they are told, to the next; False: they have no thread to do it

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self.asked = asked
        self.line: _Line | None = None  # in which they stand
        self.crew: list[Caller] = []  # for whom they are to ask
        self.begun = 0.0  # since when they are at work
        self.id: UUID  # of the charge, if it is made with others
        self.row: tuple[Any, ...] | None = None
        self.error: DatabaseUnavailable | None = None
        self.told = False  # that nothing more comes
        self.others: deque[Caller] = deque()  # who were told with them, and are not awake yet
        self.gone = False  # and wakes nobody
        self.woken = threading.Lock()
        self.woken.acquire()

    def wake(self) -> None:
        """Something has come."""
        self.woken.release()

    def wake_next(self) -> None:
        """Pass on that something has come: all at once they would crowd before Python's lock."""
        others, self.others = self.others, deque()
        # Who looked up by themselves pass it on, too: the last one may be taken meanwhile.
        with suppress(IndexError):
            while (other := others.popleft()).gone:
                pass
            other.wake()


class _Line:
    """Who waits, in the order of arrival, and since when somebody is at work for them."""

    def __init__(self, organization: UUID | None = None) -> None:
        self.organization = organization  # whose wallets somebody else has in hand
        self.waiting: deque[Caller] = deque()
        self.begun: list[float] = []
        self.hands = 0  # how many those at work ask for
        # How many were here at once, waiting or asked for, since a batch has ended and before that.
        self.most = self.most_before = 0

    def free(self, now: float) -> bool:
        if not self.begun:
            return True
        stuck = STUCK_SECONDS if self.organization is None else float("inf")
        return all(now - begun > stuck for begun in self.begun)

    def enough(self) -> bool:
        """Whether those who wait are worth a batch of their own beside the one at work."""
        return 2 * len(self.waiting) >= max(self.most, self.most_before)

    def queue(self, caller: Caller) -> None:
        caller.line = self
        self.waiting.append(caller)
        self.most = max(self.most, len(self.waiting) + self.hands)

    def send(self, crew: list[Caller], leader: Caller, now: float) -> Caller:
        """Let these go to work. Returns who leads, and has to be woken."""
        leader.crew, leader.line, leader.begun = crew, self, now
        self.begun.append(now)
        self.hands += len(crew)
        return leader

    def end(self, begun: float, crew: int) -> None:
        """Those who began then, and are so many, are no longer at work."""
        self.most_before, self.most = self.most, len(self.waiting) + self.hands
        self.begun.remove(begun)
        self.hands -= crew

    def join(self, crew: list[Caller]) -> None:
        """Let those who wait join the crew, as far as it has room."""
        while self.waiting and len(crew) < _MOST:
            caller = self.waiting.popleft()
            caller.line = None
            crew.append(caller)

    def next(self, now: float, awake: Caller | None = None) -> Caller | None:
        """Whoever leads those who wait, if it is their turn: one who is awake, else the first."""
        if not self.waiting:
            return None
        if not self.free(now) and (len(self.begun) >= AT_ONCE or not self.enough()):
            return None
        crew: list[Caller] = []
        self.join(crew)
        return self.send(crew, awake if awake in crew else crew[0], now)


class SharedCommit:
    """The charges of one gate. Thread-safe, and without a thread of its own."""

    def __init__(self, database: Database) -> None:
        self.enabled = True
        self._database = database
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """Begin anew: in a forked process, where nobody has come yet."""
        self._mutex = threading.Lock()
        self._main = _Line()
        self._lines: dict[UUID, _Line] = {}

    def enter(self, caller: Caller) -> bool:
        """Join a line. True: it is their turn at once, so the caller is woken already."""
        now = time.monotonic()
        with self._mutex:
            line = self._lines.get(caller.asked["organization_id"], self._main)
            if line.free(now):
                leader: Caller | None = line.send([caller], caller, now)
            else:
                line.queue(caller)
                leader = line.next(now, caller)
        if leader is not None:
            leader.wake()
        return leader is caller

    def leave(self, caller: Caller) -> None:
        """Go away, whatever has come; nobody is stranded by it."""
        with self._mutex:
            line, caller.line = caller.line, None
            if line is None:
                return
            if not caller.crew:
                line.waiting.remove(caller)
                return
            crew, caller.crew = caller.crew, []
            for other in reversed(crew):
                if other is not caller:
                    other.line = line
                    line.waiting.appendleft(other)
        self._end(line, caller.begun, len(crew))

    def look(self, caller: Caller) -> None:
        """Whether it is somebody's turn because those at work are stuck."""
        with self._mutex:
            leader = caller.line.next(time.monotonic()) if caller.line else None
        if leader is not None:
            leader.wake()

    def give_up(self, caller: Caller, at: float) -> None:
        """Raise DatabaseUnavailable once `at` is over, and go away."""
        now = time.monotonic()
        if now > at and self.withdraw(caller):
            raise DatabaseUnavailable("The wallet is busy. Nothing was charged; try again.")
        # Whoever asks for them waits no longer than this, unless they were killed on the way.
        if now > at + _GRACE_SECONDS and caller.line is None:
            raise DatabaseUnavailable(_LOST, "unknown")

    def deduct(self, asked: Mapping[str, Any], kind: Kind, caller: Caller | None = None) -> Row:
        """As the statement `deduct`, asked again as far as `kind` allows.

        `caller` is one who has entered and was woken. Raises what `Database.call` raises.
        """
        statement = statements("gate")["deduct"]
        if not self.enabled or asked["mode"] is not None:
            return self._database.call(statement, asked, kind)
        first = True

        def attempt(patience: float) -> Row:
            nonlocal first
            now = time.monotonic()
            give_up_at = now + patience

            def alone() -> Row:
                left = max(give_up_at - time.monotonic(), LEAST_PATIENCE_SECONDS)
                [row] = self._database.once(statement, asked, kind, left)
                return row

            if not first:
                return alone()
            first = False
            if caller is not None:
                return self._answer(caller, give_up_at, alone)
            if (line := self._seized(asked["organization_id"], now)) is not None:
                try:
                    return alone()
                finally:
                    self._end(line, now, 1)
            here = Caller(asked)
            self.enter(here)
            return self._answer(here, give_up_at, alone)

        return self._database.retry.run(attempt, repeatable=kind != "once")

    def _seized(self, organization: UUID, now: float) -> _Line | None:
        """The line, if nobody is at work for it: then the caller is, from now on."""
        with self._mutex:
            line = self._lines.get(organization, self._main)
            if not line.free(now):
                return None
            line.begun.append(now)
            line.hands += 1
            return line

    def _answer(self, caller: Caller, give_up_at: float, alone: Callable[[], Row]) -> Row:
        try:
            self._wait(caller, give_up_at)
            if caller.line is not None:  # alone at work
                return alone()
        finally:
            if caller.line is not None:
                self.leave(caller)
            caller.gone = True
            caller.wake_next()
        if caller.error is not None:
            raise caller.error
        return alone() if caller.row is None else charged(caller)

    def _wait(self, caller: Caller, give_up_at: float) -> None:
        """Until there is an answer, or it is their turn; leads on the way, when told to."""
        while not caller.told:
            if not caller.woken.acquire(timeout=STUCK_SECONDS):
                self.look(caller)
                self.give_up(caller, give_up_at)
            elif caller.line is not None:
                if not self._gathered(caller, caller.line):
                    return
                self._lead(caller, caller.line, give_up_at)

    def _gathered(self, leader: Caller, line: _Line) -> bool:
        """Whether others are to be asked for: also those who came since the leader was woken."""
        with self._mutex:
            before = len(leader.crew)
            line.join(leader.crew)
            line.hands += len(leader.crew) - before
            return len(leader.crew) > 1

    def withdraw(self, caller: Caller) -> bool:
        """Go away if nothing has come yet; whether that was so."""
        with self._mutex:
            if caller.line is None or caller.crew:
                return False
            caller.line.waiting.remove(caller)
            caller.line = None
            return True

    def _lead(self, leader: Caller, line: _Line, give_up_at: float) -> None:
        crew, begun = leader.crew, leader.begun
        rows: list[tuple[Any, ...]] = []
        lost = True
        try:
            ids = batches.new_ids(len(crew))
            for caller, drawn in zip(crew, ids, strict=True):
                caller.id = drawn
            rows = self._database.tuples(
                statements("gate")["deduct_many"],
                batches.lists(
                    [caller.asked for caller in crew], ids, wait=line.organization is not None
                ),
                max(give_up_at - time.monotonic(), LEAST_PATIENCE_SECONDS),
            )
            lost = False
        except TokenlibError as error:
            # Otherwise it was rolled back for all, whoever it was about.
            lost = isinstance(error, DatabaseUnavailable) and error.outcome == "unknown"
        finally:
            with self._mutex:
                leader.line, leader.crew = None, []
            # The next ones go to work before these go home.
            self._end(line, begun, len(crew))
            self._tell(leader, crew, rows, lost)

    def _tell(
        self, leader: Caller, crew: list[Caller], rows: list[tuple[Any, ...]], lost: bool
    ) -> None:
        """Each their own answer; none: they ask alone."""
        locked = []
        told: deque[Caller] = deque()
        for row in rows:
            place, is_locked = row[:2]
            caller = crew[place - 1]
            if is_locked:
                locked.append(caller)
            else:
                caller.row = row
        for caller in crew:
            if locked and caller in locked:
                continue
            if lost:
                caller.error = DatabaseUnavailable(_LOST, "unknown")
            caller.told = True
            if caller is leader:  # who is awake
                continue
            if caller.passes_on:
                caller.others = told
                told.append(caller)
            else:
                caller.wake()
        leader.others = told
        leader.wake_next()
        if locked:
            self._move(locked)

    def _move(self, locked: list[Caller]) -> None:
        """Each into the line of the organization whose wallet somebody else has in hand."""
        now = time.monotonic()
        with self._mutex:
            for caller in locked:
                organization = caller.asked["organization_id"]
                self._lines.setdefault(organization, _Line(organization)).queue(caller)
            lines = {caller.asked["organization_id"] for caller in locked}
            leaders = [self._lines[organization].next(now) for organization in lines]
        for leader in leaders:
            if leader is not None:
                leader.wake()

    def _end(self, line: _Line, begun: float, crew: int) -> None:
        """One at work has ended: the next go on."""
        with self._mutex:
            line.end(begun, crew)
            leader = line.next(time.monotonic())
            if line.organization is not None and not line.begun and not line.waiting:
                self._lines.pop(line.organization, None)
        if leader is not None:
            leader.wake()


def charged(caller: Caller) -> Row:
    """The answer to a caller who was charged with others, as `deduct` gives it."""
    assert caller.row is not None  # noqa: S101 - asked of such callers only
    _, _, token_type, tokens, balance, created_at = caller.row
    return {
        "status": "ok",
        "id": caller.id,
        "organization_id": caller.asked["organization_id"],
        "user_id": caller.asked["user_id"],
        "feature": caller.asked["feature"],
        "token_type": token_type,
        "tokens": tokens,
        "waived": 0,
        "balance": balance,
        "created_at": created_at,
        "replayed": False,
    }


_all: weakref.WeakSet[SharedCommit] = weakref.WeakSet()


def _after_fork() -> None:
    for shared in _all:
        shared.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
