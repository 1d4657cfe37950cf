"""Closing the past: what the log adds up to is kept, so that questions need not read it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from tokenlib import inputs
from tokenlib.catalog import CatalogVerbs
from tokenlib.db import Row, statements

_AT_ONCE = timedelta(days=1)


class RollupVerbs(CatalogVerbs):
    """Keeping the rollups of the usage log up to date."""

    def close_usage(
        self,
        *,
        anew: bool = False,
        days: int | None = None,
        progress: Callable[[datetime], None] | None = None,
    ) -> datetime | None:
        """Add what was charged to the figures that reports are answered from, as far as nothing can
        change there any more; returns up to when, None when nothing is closed yet.

        A time is closed by a later call than the first that finds it over, once every transaction
        that might still write into it has ended. Nothing depends on it but speed: what is not
        closed is read from the log. `anew` forgets the figures and makes them again from the log,
        but those of archived time, which stand (`archives.roll_up` makes these, from the files); at
        most `days` of the past are closed in one call; `progress` is told how far it is. Safe to
        call from anywhere and to break off. Raises InvalidInput.
        """
        days = inputs.days(days)
        if inputs.truth(anew, "anew"):
            if self.archived_to() is not None:
                self.close_usage()  # what is kept has to be complete
            self._usage("forget")
            self._usage("close", {"most": _AT_ONCE})
        while True:  # a day at a time, so that no transaction is long and nothing done is lost
            row = self._usage("close", {"most": _AT_ONCE})
            closed_to: datetime | None = row["closed_to"]
            if progress is not None and closed_to is not None:
                progress(closed_to)
            days = None if days is None else days - 1
            if not row["behind"] or days == 0:
                return closed_to

    def archived_to(self) -> datetime | None:
        """Up to when log rows may be archived, to the hour; None where none are."""
        until: datetime | None = self._usage("archived_to")["until"]
        return until

    def _usage(self, step: str, params: Mapping[str, Any] | None = None) -> Row:
        # Not `call`, which gives up when a charge would: a day of the past may take longer.
        with self.database.transaction() as connection:
            connection.exec_driver_sql(statements("rollups")["patience"])
            found = connection.exec_driver_sql(statements("rollups")[step], dict(params or {}))
            return dict(found.mappings().one())
