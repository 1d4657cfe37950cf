"""Failed attempts: malformed calls, or in another organization's name; never an empty wallet."""

from __future__ import annotations

from contextlib import suppress
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

    def _attempt(self, user: UUID | str, limits: bool) -> _Attempt:
        """Where limits hold, what is malformed is on record; the database has counted the rest."""
        return _Attempt(self, user, limits)


class _Attempt:
    """Around a call. Every charge goes through it, so it is no generator."""

    def __init__(self, verbs: AttemptVerbs, user: UUID | str, limits: bool) -> None:
        self._verbs, self._user, self._limits = verbs, user, limits

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if (
            isinstance(error, InvalidInput)
            and not isinstance(error, UnknownFeature)
            and self._limits is True
        ):
            with suppress(InvalidInput):  # nobody is known
                self._verbs.failed_attempt(self._user, f"malformed {error.field}")
