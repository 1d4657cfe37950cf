"""The command line: `tokenlib COMMAND`. Run `tokenlib --help`."""

from __future__ import annotations

from importlib import metadata

import click

from tokenlib.cli import books, custody, data, doctor, keys, replay, serve
from tokenlib.cli.output import EXIT_CODES, failures


class _Commands(click.Group):
    """Commands whose errors end in one plain line and an exit code, never in a traceback."""

    def invoke(self, context: click.Context) -> object:
        with failures(debug=context.params["debug"]):
            return super().invoke(context)


def _print_version(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    try:
        version = metadata.version("tokenlib-ai")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    click.echo(f"tokenlib {version}")
    context.exit()


@click.group(
    cls=_Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--debug", is_flag=True, envvar="TOKENLIB_DEBUG", help="Show the traceback of an error."
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def main(debug: bool) -> None:
    """Gate the AI features of a product with tokens, and show where every token went.

    The commands work on the database that TOKENLIB_DATABASE_URL names, or on the bundled
    PostgreSQL when it is not set.
    """


for _command in (
    serve.serve,
    data.migrate,
    custody.adopt,
    data.demo,
    keys.key,
    books.initialize,
    books.refresh,
    books.rollup,
    doctor.doctor,
    books.verify,
    custody.settle,
    custody.anchor,
    custody.archive,
    custody.erase,
    books.stats,
    books.explain,
    replay.replay,
):
    main.add_command(_command)
