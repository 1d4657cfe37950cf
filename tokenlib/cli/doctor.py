"""The command that examines the database."""

from __future__ import annotations

from contextlib import ExitStack

import click

from tokenlib.cli.output import EXIT_CODES, json_option, show_json
from tokenlib.config import Settings


@click.command(epilog=EXIT_CODES)
@click.option(
    "--smoke", is_flag=True, help="Also charge and refund, in a transaction that is rolled back."
)
@json_option
def doctor(smoke: bool, as_json: bool) -> None:
    """Examine the database, with a way out for each line that is not ok.

    Settings, login, tables, rights, policies, triggers and functions against what this tokenlib
    packages; plans, findings, periods; the clocks. Changes nothing. The exit code is 1 when a line
    failed.
    """
    from tokenlib import doctor as library
    from tokenlib.db import Database
    from tokenlib.tokens import Tokens, start_embedded

    settings = Settings.from_env()
    with ExitStack() as held:
        url = settings.sqlalchemy_url or start_embedded(settings, held)
        database = Database(url, pool_size=settings.pool_size, prepare=settings.prepare)
        tokens = held.enter_context(Tokens(database, settings.switch))
        checks = []
        for check in library.examine(tokens, smoke=smoke):
            checks.append(check)
            if not as_json:
                click.echo(f"{check.status:<8} {check.name}: {check.detail}")
                if check.way_out:
                    click.echo(f"{'':<8} {check.way_out}")
    failed = any(check.status == "failed" for check in checks)
    if as_json:
        show_json({"ok": not failed, "checks": checks})
    if failed:
        raise click.exceptions.Exit(1)
