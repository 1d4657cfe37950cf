"""The commands on API keys: key create, list, rotate, revoke."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

import click

from tokenlib.cli.output import (
    EXIT_CODES,
    Failure,
    NotReady,
    Whole,
    gate,
    json_option,
    show_json,
    show_table,
)
from tokenlib.domain import Scope, plain

if TYPE_CHECKING:
    from tokenlib.reports.settings import KeyRow
    from tokenlib.tokens import Tokens


@click.group(epilog=EXIT_CODES)
def key() -> None:
    """Make, list, rotate and end API keys.

    A server of your product calls the HTTP API with one. Keys are kept by TOKENLIB_KEY_PEPPER: the
    same must be set here and where the API runs. A secret is shown once, alone on standard output.
    """


def _on_record(command: Callable[..., None]) -> Callable[..., None]:
    """What every change of a key says besides."""
    reason = click.option("--reason", required=True, help="Why, for the record.")
    actor = click.option(
        "--actor",
        help="The admin who does it: e-mail address or id.  [default: the only one there is]",
    )
    return reason(actor(json_option(command)))


@key.command(epilog=EXIT_CODES)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(get_args(Scope)),
    multiple=True,
    required=True,
    help="What it may; give it again for each.",
)
@click.option("--organization", help="Its id: the key is for it alone.  [default: for all]")
@click.option("--days", type=Whole(1, 36_500), help="Ends after so many.  [default: never]")
@click.option(
    "--requests-per-minute", type=Whole(1, 1_000_000_000), help="Charges and holds a minute."
)
@click.option(
    "--seconds-between-requests",
    type=click.FloatRange(min=0, min_open=True),
    help="Between one charge or hold and the next.",
)
@click.option("--tokens-per-request", type=Whole(1, 1_000_000_000), help="Tokens a request.")
@click.option(
    "--output-units-per-request",
    type=Whole(1, 1_000_000_000),
    help="Output units a request, where its metadata say output_units.",
)
@click.option("--limit-users", is_flag=True, help="Hold the limits of users, too.")
@_on_record
def create(
    name: str,
    scopes: tuple[Scope, ...],
    organization: str | None,
    days: int | None,
    actor: str | None,
    reason: str,
    as_json: bool,
    **limits: Any,
) -> None:
    """Make a key, and print its secret: this once.

    NAME says who will use it. It may what each --scope says: check, spend, read, admin (acts as the
    admin who made it), metrics. Limits are its own; without one there is none.
    """
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    with gate() as tokens:
        made = tokens.staff_create_key(
            _admin(tokens, actor),
            name,
            scopes,
            organization,
            expires_at=expires_at,
            **limits,
            reason=reason,
        )
    if as_json:
        show_json({**plain(made), "expires_at": plain(expires_at)})
    else:
        _show_secret(made.id, made.secret)


@key.command("list", epilog=EXIT_CODES)
@json_option
def list_keys(as_json: bool) -> None:
    """List every key, those that work first; never a secret."""
    from tokenlib.reports import Reports

    with gate() as tokens:
        rows = Reports(tokens.database).api_keys()
    if as_json:
        show_json({"keys": rows})
    elif rows:
        header = ("id", "name", "begins with", "state", "may", "organization", "limits")
        times = ("ends (UTC)", "last use (UTC)")
        show_table((*header, *times), [_row(row) for row in rows])
    else:
        click.echo("There are no API keys.")


def _row(row: KeyRow) -> tuple[object, ...]:
    limits = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in row.limits.items())
    return (
        row.id,
        row.name,
        row.start,
        row.state,
        ", ".join(row.scopes),
        row.organization or row.organization_id or "all",
        ", ".join(filter(None, (limits, "those of users" if row.limit_users else ""))) or "none",
        *(
            "never" if at is None else f"{at:%Y-%m-%d %H:%M}"
            for at in (row.expires_at, row.last_used_at)
        ),
    )


@key.command(epilog=EXIT_CODES)
@click.argument("key_id", metavar="KEY", type=click.UUID)
@click.option(
    "--overlap",
    type=Whole(0, 720),
    default=24,
    show_default=True,
    help="Hours for which the secret of today works on.",
)
@_on_record
def rotate(key_id: UUID, overlap: int, actor: str | None, reason: str, as_json: bool) -> None:
    """Give a key a new secret, and print it: this once.

    KEY is its id. Name, scopes and limits stay.
    """
    with gate() as tokens:
        secret = tokens.staff_rotate_key(
            _admin(tokens, actor), key_id, overlap=timedelta(hours=overlap), reason=reason
        )
    if as_json:
        show_json({"id": key_id, "secret": secret})
    else:
        _show_secret(key_id, secret)


@key.command(epilog=EXIT_CODES)
@click.argument("key_id", metavar="KEY", type=click.UUID)
@_on_record
def revoke(key_id: UUID, actor: str | None, reason: str, as_json: bool) -> None:
    """End a key at once.

    KEY is its id. The next call with it is refused; there is no way back.
    """
    with gate() as tokens:
        tokens.staff_revoke_key(_admin(tokens, actor), key_id, reason=reason)
    if as_json:
        show_json({"id": key_id, "revoked": True})
    else:
        click.echo(f"Key {key_id} is revoked.")


def _show_secret(key_id: UUID, secret: str | None) -> None:
    """Alone on stdout, so that a variable of the shell can take it."""
    click.echo(secret)
    click.echo(f"Key {key_id}. The secret is shown this once; keep it.", err=True)


def _admin(tokens: Tokens, named: str | None) -> UUID:
    """The admin on record: who is named, or the only one there is."""
    from tokenlib.reports import Reports

    admins = [row for row in Reports(tokens.database).staff() if row.role == "admin"]
    if named is not None:
        wanted = named.strip().casefold()
        found = [row for row in admins if wanted in (row.email.casefold(), str(row.user_id))]
        if len(found) != 1:
            raise Failure(f"{named} is {'no admin' if not found else 'more than one admin'}.")
        return found[0].user_id
    if not admins:
        raise NotReady(
            "There is no admin yet. The owner of the database makes the first: insert into"
            " public.tokenlib_staff (user_id, email, full_name, role) values (gen_random_uuid(),"
            " 'ada@example.org', 'Ada', 'admin')."
        )
    if len(admins) > 1:
        raise click.UsageError(f"Say which of {len(admins)} admins does it: --actor.")
    return admins[0].user_id
