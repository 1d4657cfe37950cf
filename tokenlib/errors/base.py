"""The root, and what concerns no single request: settings, the database, rights, the books."""

from __future__ import annotations

from typing import Any, ClassVar, Literal


class TokenlibError(Exception):
    """Root of every error that tokenlib raises on purpose."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses take other arguments; pickling (process pools) must not call them again.
        return _rebuild, (type(self), self.message, self.data, self.__dict__)


def _rebuild(
    kind: type[TokenlibError], message: str, data: dict[str, Any], state: dict[str, Any]
) -> TokenlibError:
    error = kind.__new__(kind)
    TokenlibError.__init__(error, message, **data)
    error.__dict__.update(state)
    return error


class ConfigurationError(TokenlibError):
    """A setting, a folder or the database is not what tokenlib needs to start."""

    code = "configuration"


class DatabaseUnavailable(TokenlibError):
    """The database did not answer; the answer to any charge is therefore no.

    `outcome` is "not_charged" when nothing was sent or all was rolled back, and "unknown" when the
    reply was lost: the charge may be on the books. `retry_after`: seconds, if known.
    """

    code = "database_unavailable"
    status = 503

    def __init__(
        self,
        message: str,
        outcome: Literal["not_charged", "unknown"] = "not_charged",
        retry_after: float | None = None,
    ) -> None:
        self.outcome, self.retry_after = outcome, retry_after
        super().__init__(message, outcome=outcome)


class NotMigrated(ConfigurationError):
    """The database lacks our tables, or has them in another version."""

    code = "not_migrated"
    status = 503


class LoginRefused(ConfigurationError):
    """The server answers, and refuses this login, its password or the name of the database."""

    code = "login_refused"
    status = 503


class PermissionDenied(TokenlibError):
    """The signed-in person or the login role may not do this."""

    code = "permission_denied"
    status = 403


class BooksBroken(TokenlibError):
    """An invariant of the books did not hold; nothing was written. Run `tokenlib verify`."""

    code = "books_broken"
