"""What every command shares: errors and exit codes, JSON, tables, progress, the gate."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from tokenlib.config import Settings
from tokenlib.domain import plain
from tokenlib.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    InvalidInput,
    PermissionDenied,
    TokenlibError,
)

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from tokenlib.tokens import Tokens

EXIT_CODES = (
    "Exit codes: 0 done; 1 refused, failed, or problems found; 2 the command, a value or a file in"
    " it cannot be understood; 3 the configuration is wrong, or the database is not reachable or"
    " not migrated; 130 interrupted."
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


_MAX = 2**63 - 1


class Failure(click.ClickException):
    """An error as the shell sees it: one line on stderr, and an exit code."""


class BadInput(Failure):
    """A value or a file that no command could use."""

    exit_code = 2


class NotReady(Failure):
    """The configuration or the database is not as a command needs it."""

    exit_code = 3


class Whole(click.IntRange):
    """A whole number within bounds; what is none is told the bounds as well."""

    name = "number"

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> int:
        """The number; a usage error otherwise."""
        try:
            number = int(str(value))
        except ValueError:
            number = None
        if number is None or number not in range(self.min or 0, (self.max or _MAX) + 1):
            highest = f" to {self.max}" if self.max is not None else " on"
            self.fail(f"must be a whole number from {self.min}{highest}, not {value!r}")
        return number


@contextmanager
def failures(*, debug: bool) -> Iterator[None]:
    """Turn what a command raises into a Failure; with `debug`, let it pass."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        raise click.exceptions.Exit(130) from None
    except Exception as error:
        if debug:
            raise
        raise _failure(error) from None


def _failure(error: Exception) -> Failure:
    match error:
        case InvalidInput():
            return BadInput(error.message)
        case ConfigurationError() | DatabaseUnavailable() | PermissionDenied():
            return NotReady(error.message)
        case TokenlibError():
            return Failure(error.message)
        case OSError(filename=str(name), strerror=str(reason)):
            return Failure(f"{name}: {reason}.")
    return Failure(
        f"Unexpected {type(error).__name__}: {error}. Set TOKENLIB_DEBUG=1 to see where."
    )


@contextmanager
def gate(settings: Settings | None = None) -> Iterator[Tokens]:
    """The gate that the environment names, until the block ends."""
    # SQLAlchemy and Alembic load when a command needs them, and not for `--help`.
    from tokenlib.tokens import connect

    with connect(settings=settings) as tokens:
        yield tokens


def show_json(value: Any) -> None:
    """Print a dataclass or other plain data as JSON."""
    click.echo(json.dumps(plain(value), indent=2))


def show_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their header, numbers to the right."""
    lines = [header, *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [bool(rows) and isinstance(value, int) for value in (rows[0] if rows else header)]
    for line in lines:
        cells = (
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def plural(count: int, noun: str) -> str:
    """`1 wallet`, `1,200 wallets`."""
    ending = "" if count == 1 else "s"
    if noun.endswith("y") and ending:
        return f"{count:,} {noun[:-1]}ies"
    return f"{count:,} {noun}{ending}"


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that a callback (done, total) moves; shown on a terminal only."""
    with ExitStack() as shown:

        @cache
        def bar(total: int) -> ProgressBar[int]:
            hidden = not sys.stderr.isatty()
            return shown.enter_context(
                click.progressbar(length=total, label=label, file=sys.stderr, hidden=hidden)
            )

        def move(done: int, total: int) -> None:
            bar(total).update(done - bar(total).pos)

        yield move
