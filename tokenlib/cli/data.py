"""The commands on the database as a whole: migrate, demo."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from tokenlib.cli.output import (
    EXIT_CODES,
    Whole,
    gate,
    json_option,
    plural,
    progress,
    show_json,
)
from tokenlib.config import Settings, sqlalchemy_url
from tokenlib.errors import LoginRefused, NotMigrated

if TYPE_CHECKING:
    from tokenlib.demo import DemoSummary
    from tokenlib.tokens import Tokens


@click.command(epilog=EXIT_CODES)
@click.option(
    "--sql", is_flag=True, help="Print the SQL of the schema instead, for an empty database."
)
@click.option("--roles", is_flag=True, help="Print the SQL of the roles instead.")
@click.option(
    "--citus", is_flag=True, help="Print the SQL that spreads the tables over Citus instead."
)
@click.option("--to", "target", help="Go back to this earlier schema version instead.")
@click.option("--url", help="The database to migrate, as its owner.")
@json_option
def migrate(
    sql: bool, roles: bool, citus: bool, target: str | None, url: str | None, as_json: bool
) -> None:
    """Bring the database to this tokenlib's schema.

    Safe to run twice. Works on the database of --url, of TOKENLIB_MIGRATION_URL or of
    TOKENLIB_DATABASE_URL, as the role tokenlib_owner, and else on the bundled PostgreSQL. The roles
    must exist: apply `tokenlib migrate --roles` as a login that may create roles, once. It may run
    while charges are made: where a table is in use it steps back and comes again.
    """
    from tokenlib import embedded, migrations

    if sql or roles or citus:
        text = migrations.roles_sql() if roles else ""
        text += migrations.upgrade_sql() if sql else ""
        text += migrations.citus_sql() if citus else ""
        if as_json:
            show_json({"sql": text})
        else:
            click.echo(text, nl=False)
        return
    from tokenlib.db import SCHEMA_VERSION
    from tokenlib.tokens import EMBEDDED_DATABASE, start_embedded

    settings = Settings.from_env()
    owner = sqlalchemy_url(url, "--url") if url else settings.sqlalchemy_migration_url
    with ExitStack() as held:
        if owner is not None:
            before = _version(owner)
            if target is None:
                migrations.upgrade(owner)
            else:
                migrations.downgrade(owner, target)
        elif target is not None:
            raise click.UsageError("--to is for a database of your own.")
        else:
            server = held.enter_context(embedded.running(settings.data_dir))
            try:
                before = _version(server.url(EMBEDDED_DATABASE, "tokenlib_owner"))
            except LoginRefused:  # the first start: neither the role nor the database exists
                before = None
            start_embedded(settings, held)
    after = target or SCHEMA_VERSION
    if as_json:
        show_json({"changed": before != after, "before": before, "schema_version": after})
    elif before == after:
        click.echo(f"The database is at schema version {after} already.")
    else:
        click.echo(f"Migrated from schema version {before or 'none'} to {after}.")


def _version(url: str) -> str | None:
    """The schema version of a database; None when it has none."""
    from tokenlib.db import Database, statements

    database = Database(url)
    try:
        rows = database.rows(statements("system")["schema_version"])
    except NotMigrated:
        return None
    finally:
        database.close()
    return str(rows[0]["version_num"]) if rows else None


@click.command(epilog=EXIT_CODES)
@click.option("--seed", type=int, help="Other data; the same seed gives the same data.")
@click.option("--charges", type=Whole(1_000, 2_000_000), help="About how many charges.")
@click.option(
    "--rows",
    type=Whole(1_000, 100_000_000),
    help="For measuring instead: about so many charges of 100,000 organizations.",
)
@click.option("--reset", is_flag=True, help="Bring the demo's scenarios back to their start.")
@click.option("--yes", is_flag=True, help="Write into a database of your own.")
@json_option
def demo(
    seed: int | None,
    charges: int | None,
    rows: int | None,
    reset: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Fill the database with demo data, once.

    `tokenlib serve` does this by itself on the bundled PostgreSQL. A database of your own is filled
    only with --yes, as the owner that TOKENLIB_MIGRATION_URL names.

    With --rows an empty database is filled for measuring: 120 days of 100,000 organizations, the
    largest with a tenth of all charges, and 400,000 users, the same ones at every number of rows.
    Ten million take minutes, and 8 GB of disk.
    """
    given = {
        name: value
        for name, value in (("seed", seed), ("charges", charges), ("rows", rows))
        if value is not None
    }
    if reset and given:
        raise click.UsageError("--reset goes with none of --seed, --charges and --rows.")
    if charges is not None and rows is not None:
        raise click.UsageError("--charges is the demo's size, --rows that of data for measuring.")
    settings = Settings.from_env()
    if not (settings.embedded or yes):
        raise click.UsageError(
            "TOKENLIB_DATABASE_URL names a database of your own. Give --yes to write demo data"
            " there."
        )
    with gate(settings) as tokens:
        if reset:
            from tokenlib import demo as library

            library.reset(owner_url(tokens, settings), tokens)
            if as_json:
                show_json({"reset": True})
            else:
                click.echo("The demo's scenarios are back at their start.")
            return
        summary = load_demo(tokens, settings, **given)
    if as_json:
        show_json(summary)
        return
    what = ", ".join(
        plural(count, noun)
        for count, noun in (
            (summary.organizations, "organization"),
            (summary.users, "user"),
            (summary.charges, "charge"),
        )
    )
    if summary.fresh:
        click.echo(f"Loaded {what} in {summary.seconds:.1f} s.")
    else:
        click.echo(f"The demo data are there already: {what}.")


def load_demo(tokens: Tokens, settings: Settings, **options: Any) -> DemoSummary:
    """Load the demo data as the owner unless they are there, with progress."""
    from tokenlib import demo as library

    owner = owner_url(tokens, settings)
    rows = options.pop("rows", None)
    with progress("Loading the demo data") as move:
        options |= {"elsewhere": not settings.embedded, "progress": move}
        if rows is not None:
            return library.load_rows(owner, tokens, library.Size(rows), **options)
        return library.load(owner, tokens, **options)


def owner_url(tokens: Tokens, settings: Settings) -> str:
    """The owner's login on the database of the gate."""
    owner = settings.sqlalchemy_migration_url
    if settings.embedded or owner is None:
        service = tokens.database.url
        return service.set(username="tokenlib_owner").render_as_string(hide_password=False)
    return owner
