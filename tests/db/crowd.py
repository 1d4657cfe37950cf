"""Callers who ask at the same moment: their charges share a commit, in the order of their names."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest

from tokenlib import Tokens, sharing
from tokenlib.sharing import Caller, SharedCommit

NOBODY = UUID(int=0)
_LONG = 60.0


class Crowd:
    """While the line is held, whoever asks waits in it; then all of them are one crew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Nobody overtakes whoever holds the line, however slow the machine is.
        monkeypatch.setattr(sharing, "STUCK_SECONDS", _LONG)
        monkeypatch.setattr(sharing, "AT_ONCE", 1)

    @contextmanager
    def holding(self, tokens: Tokens, *, beside: bool = False) -> Iterator[None]:
        """Somebody is at work; or somebody more, beside those who are."""
        blocker = Caller({"organization_id": NOBODY})
        if beside:
            tokens.shared._main.send([blocker], blocker, time.monotonic())
        else:
            assert tokens.shared.enter(blocker)
        try:
            yield
        finally:
            tokens.shared.leave(blocker)

    def start(self, tokens: Tokens, calls: Sequence[Callable[[], Any]]) -> list[Call]:
        """Each call in a thread, all in line in this order, and then to work."""
        made = []
        with self.holding(tokens):
            for call in calls:
                before = waiting(tokens.shared)
                made.append(Call(call))
                in_line(tokens.shared, before + 1)
        return made

    def run(self, tokens: Tokens, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """What each call returned or raised."""
        return [call.end() for call in self.start(tokens, calls)]


class Call:
    """One call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.outcome: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self._call()
        except BaseException as error:  # noqa: BLE001 - an outcome like any other
            self.outcome = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> Any:
        self._thread.join(_LONG)
        assert not self.running, "nobody has answered"
        return self.outcome


def waiting(shared: SharedCommit) -> int:
    """How many stand in line for wallets that nobody else has in hand."""
    return len(shared._main.waiting)


def in_line(shared: SharedCommit, callers: int) -> None:
    """Wait until so many stand in it."""
    until(lambda: waiting(shared) == callers)


def until(true: Callable[[], bool]) -> None:
    """Wait for it. Fails when it does not come."""
    give_up_at = time.monotonic() + _LONG
    while not true():
        assert time.monotonic() < give_up_at
        time.sleep(0.001)
