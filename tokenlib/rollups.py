"""Closing the past: what the log adds up to is kept, so that questions need not read it again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from tokenlib.catalog import CatalogVerbs
from tokenlib.db import statements

_AT_ONCE = timedelta(days=1)


class RollupVerbs(CatalogVerbs):
    """Keeping the rollups of the usage log up to date."""

    def close_usage(
        self, *, anew: bool = False, progress: Callable[[datetime], None] | None = None
    ) -> datetime | None:
        """Add what was charged to the figures that reports are answered from, as far as nothing can
        change there any more; returns up to when, None when nothing is closed yet.

        A time is closed by a later call than the first that finds it over, once every transaction
        that might still write into it has ended. Nothing depends on it but speed: what is not
        closed is read from the log. `anew` forgets the figures and makes them again from the log.
        `progress` is told how far it is. Safe to call from anywhere and to break off.
        """
        named = statements("rollups")
        if anew:
            self.database.call(named["forget"], {}, "repeatable")
            self.database.call(named["close"], {"most": _AT_ONCE}, "repeatable")
        while True:  # a day at a time, so that no transaction is long and nothing done is lost
            row = self.database.call(named["close"], {"most": _AT_ONCE}, "repeatable")
            closed_to: datetime | None = row["closed_to"]
            if progress is not None and closed_to is not None:
                progress(closed_to)
            if not row["behind"]:
                return closed_to
