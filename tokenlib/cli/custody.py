"""The commands on what the books hold and keep: adopt, settle, anchor, archive, erase."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from uuid import UUID

import click

from tokenlib.cli.data import owner_url
from tokenlib.cli.output import (
    EXIT_CODES,
    gate,
    json_option,
    plural,
    progress,
    show_json,
    show_table,
)
from tokenlib.config import Settings, sqlalchemy_url
from tokenlib.domain import plain

if TYPE_CHECKING:
    from tokenlib.adoption import Adoption


@click.command(epilog=EXIT_CODES)
@click.option("--dry-run", is_flag=True, help="Say what would be done and found; change nothing.")
@click.option("--url", help="The database to take in, as its owner.")
@json_option
def adopt(dry_run: bool, url: str | None, as_json: bool) -> None:
    """Take the database of the old token system in, in place.

    Works on the database of --url, of TOKENLIB_MIGRATION_URL or of TOKENLIB_DATABASE_URL, as the
    role tokenlib_owner, in one transaction. Every balance that can be spent and every log row stay
    as they are; what was wrong with the figures is listed, and kept until somebody settles it.
    Safe to run twice. A database that is not the old system's is refused, with what differs.
    """
    from tokenlib import adoption

    settings = Settings.from_env()
    owner = sqlalchemy_url(url, "--url") if url else settings.sqlalchemy_migration_url
    if owner is None:
        raise click.UsageError("Name the database: --url, or TOKENLIB_MIGRATION_URL.")
    found = adoption.adopt(owner, dry_run=dry_run)
    if as_json:
        show_json({"changed": found.changed, **plain(found)})
    else:
        _show_adoption(found)


def _show_adoption(found: Adoption) -> None:
    if found.before == "tokenlib":
        click.echo("The database is tokenlib's already. Nothing was done.")
        return
    for step in found.steps:
        click.echo(f"{'Would' if found.dry_run else 'Done:'} {step}.")
    if found.findings:
        click.echo(f"{plural(len(found.findings), 'finding')}, kept until each is settled:")
        show_table(
            ("organization", "token type", "finding", "detail"),
            [
                (f.organization_id, f.token_type, f.kind.replace("_", " "), f.detail)
                for f in found.findings
            ],
        )
    what = f"{plural(found.wallets, 'wallet')} and {plural(found.log_rows, 'log row')}"
    if found.dry_run:
        click.echo(f"{what} would be taken in. Nothing was changed.")
    else:
        click.echo(f"{what} taken in, no usable balance changed.")


@click.command(epilog=EXIT_CODES)
@click.argument("finding", required=False, type=click.UUID)
@click.option("--reason", help="How it was settled, for the record. Needed with FINDING.")
@click.option("--actor", default="command line", show_default=True, help="Who, for the record.")
@json_option
def settle(finding: UUID | None, reason: str | None, actor: str, as_json: bool) -> None:
    """List the open findings of an adoption, or settle one by its id.

    Settling writes an entry with who and why; the balance stays as the customer has it. A FINDING
    that is settled already, or is none, is an error.
    """
    from tokenlib.reports import Reports

    if finding is None and reason is not None:
        raise click.UsageError("--reason is for one FINDING. Without it the open ones are listed.")
    with gate() as tokens:
        found = Reports(tokens.database).findings(settled=None if finding else False)
        if finding is not None:
            if reason is None:
                raise click.UsageError("Say how it was settled: --reason.")
            named = [row for row in found if row.id == finding]
            if not named:
                raise click.BadParameter(f"There is no finding {finding}.")
            tokens.settle_finding(named[0].organization_id, finding, actor=actor, reason=reason)
            found = [
                row for row in Reports(tokens.database).findings(settled=True) if row.id == finding
            ]
    if as_json:
        show_json({"findings": plain(found)})
    elif finding is not None:
        click.echo(f"Settled: {found[0].kind.replace('_', ' ')}, {found[0].detail}.")
    elif found:
        show_table(
            ("id", "organization", "token type", "finding", "detail"),
            [
                (f.id, f.organization_id, f.token_type, f.kind.replace("_", " "), f.detail)
                for f in found
            ],
        )
    else:
        click.echo("There are no open findings.")


@click.command(epilog=EXIT_CODES)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="The file to write; it must not exist.  [default: standard output]",
)
def anchor(output: Path | None) -> None:
    """Write where every chain of entries ends, as lines of JSON.

    Keep the file where nobody who can write the database can reach it. `tokenlib verify --anchor`
    holds the books against it, and so finds a history that was rewritten as a whole.
    """
    with gate() as tokens:
        if output is None:
            tokens.anchor(sys.stdout)
            return
        with _complete(output) as file:
            wallets = tokens.anchor(file)
    click.echo(f"{plural(wallets, 'wallet')} anchored in {output}.")


@click.command(epilog=EXIT_CODES)
@click.option(
    "--before",
    type=click.DateTime(["%Y-%m-%d"]),
    required=True,
    help="Archive what is older than this day, UTC; 92 days ago at the latest.",
)
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    required=True,
    help="The folder of the archive; made if it is not there.",
)
@click.option("--actor", default="command line", show_default=True, help="Who, for the record.")
@click.option("--url", help="The database, as its owner.")
@json_option
def archive(before: datetime, folder: Path, actor: str, url: str | None, as_json: bool) -> None:
    """Move old log rows out of the database, into Parquet files.

    An entry of each wallet says what went where, so the books still close, and `tokenlib verify
    --archive` proves the files from them. What was archived cannot be refunded any more, and its
    keys are refused. Works on the database of --url, of TOKENLIB_MIGRATION_URL or of
    TOKENLIB_DATABASE_URL, as the role tokenlib_owner, and else on the bundled PostgreSQL, while
    charges are made. Interrupted, it goes on at the next run.
    """
    from tokenlib import archives

    settings = Settings.from_env()
    with ExitStack() as held:
        owner = sqlalchemy_url(url, "--url") if url else settings.sqlalchemy_migration_url
        if owner is None:
            owner = owner_url(held.enter_context(gate(settings)), settings)
        with progress("Archiving") as move:
            found = archives.archive(
                owner, folder, before.replace(tzinfo=UTC), actor=actor, progress=move
            )
    if as_json:
        show_json(found)
    elif not found.rows:
        click.echo(f"No log row is from before {before:%Y-%m-%d}.")
    else:
        click.echo(
            f"{plural(found.rows, 'log row')} of {plural(found.wallets, 'wallet')} archived in"
            f" {plural(len(found.files), 'file')} in {folder}."
        )


@contextmanager
def _complete(path: Path) -> Iterator[TextIO]:
    """A new file that stands under its name only once it is complete and on disk."""
    if path.exists():
        raise click.BadParameter(f"{path} exists. An anchor is never overwritten.")
    begun = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with begun.open("x", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        begun.rename(path)
    except OSError as error:
        if error.filename == str(begun):  # a name that nobody gave
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        with suppress(OSError):
            begun.unlink(missing_ok=True)


@click.command(epilog=EXIT_CODES)
@click.argument("organization")
@click.argument("user")
@click.option("--reason", required=True, help="Why, for the record.")
@click.option("--actor", default="command line", show_default=True, help="Who, for the record.")
@json_option
def erase(organization: str, user: str, reason: str, actor: str, as_json: bool) -> None:
    """Erase the metadata of one person, for good.

    Of the log rows, reservations and quests of USER in ORGANIZATION (their ids; both may be deleted
    by now). The amounts stay, an entry says who did it and why, and the books still verify. A USER
    who is no member and has no row there is an error.
    """
    with gate() as tokens:
        found = tokens.erase(organization, user, actor=actor, reason=reason)
    if as_json:
        show_json(found)
    else:
        click.echo(
            f"Metadata of {plural(found.log_entries, 'log row')},"
            f" {plural(found.reservations, 'reservation')} and {plural(found.quests, 'quest')}"
            " erased."
        )
