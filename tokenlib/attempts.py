"""Failed attempts: malformed calls, or in another organization's name; never an empty wallet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from tokenlib import inputs
from tokenlib.catalog import CatalogVerbs
from tokenlib.db import as_uuid, statements
from tokenlib.errors import InvalidInput, UnknownFeature


class AttemptVerbs(CatalogVerbs):
    """Counts what a person got wrong; too much of it blocks their calls with limits for a while."""

    def failed_attempt(self, user: UUID | str, problem: str) -> None:
        """Put on record that a person sent a malformed call, or one for another organization.

        For what the caller itself turned away; calls with `limits` do it by themselves. After five
        in 10 minutes, or as the limits say, calls of this person with `limits` are RateLimited.
        """
        user_id = as_uuid(user, "user")
        said = inputs.said(problem, "problem")
        params = {"user_id": user_id, "problem": said}
        self.database.call(statements("gate")["failed_attempt"], params, "repeatable")

    @contextmanager
    def _attempt(self, user: UUID | str, limits: bool) -> Iterator[None]:
        """Where limits hold, what is malformed is on record; the database has counted the rest."""
        try:
            yield
        except UnknownFeature:
            raise
        except InvalidInput as error:
            if limits is True:
                with suppress(InvalidInput):  # nobody is known
                    self.failed_attempt(user, f"malformed {error.field}")
            raise
