"""Ask again what is safe to ask again, until a deadline.

What failed before anything was sent, or was rolled back for certain, is always asked again. After a
reply that was lost nobody knows whether the call was carried out: then only a call is repeated that
has the same effect once as twice, such as one with an idempotency key.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tokenlib.errors import DatabaseUnavailable, TokenlibError

DEADLINE_SECONDS = 5.0

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 0.8
# Of an attempt that begins shortly before the end: less would cut off what is about to be answered.
LEAST_PATIENCE_SECONDS = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """How long a call may take with all its attempts, in seconds; time and chance can be given."""

    deadline: float = DEADLINE_SECONDS
    again: bool = True
    # What passes by waiting; with a `retry_after` no sooner than that.
    passing: tuple[type[TokenlibError], ...] = (DatabaseUnavailable,)
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random

    def run(self, attempt: Callable[[float], T], *, repeatable: bool) -> T:
        """The first answer of `attempt`, which is told how many seconds it may wait for its reply.

        Raises what the attempt raised. Once a reply was lost, every failure after it is a
        DatabaseUnavailable with the outcome "unknown": a later attempt says nothing of the first.
        """
        give_up_at = self.now() + self.deadline
        longest = _FIRST_PAUSE_SECONDS
        unclear: DatabaseUnavailable | None = None
        while True:
            try:
                return attempt(max(give_up_at - self.now(), LEAST_PATIENCE_SECONDS))
            except TokenlibError as error:
                if isinstance(error, DatabaseUnavailable) and error.outcome == "unknown":
                    unclear = error
                after: float | None = getattr(error, "retry_after", None)
                pause = self.chance() * longest + (after or 0)
                if (
                    not self.again
                    or not isinstance(error, self.passing)
                    or (after is None and not isinstance(error, DatabaseUnavailable))
                    or (unclear is not None and not repeatable)
                    or self.now() + pause >= give_up_at
                ):
                    if unclear is None or unclear is error:
                        raise
                    raise unclear from error
            self.sleep(pause)
            longest = min(2 * longest, _LONGEST_PAUSE_SECONDS)


# One attempt, which still waits no longer than the deadline.
ONCE = Retry(again=False)
