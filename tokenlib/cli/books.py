"""The commands on wallets: initialize, refresh, verify, stats, explain."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from uuid import UUID

import click

from tokenlib.cli.data import owner_url
from tokenlib.cli.output import (
    EXIT_CODES,
    Failure,
    gate,
    json_option,
    plural,
    progress,
    show_json,
    show_table,
)
from tokenlib.config import Settings
from tokenlib.domain import plain
from tokenlib.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    TokenlibError,
    UnknownTokenType,
)
from tokenlib.reports import Reports

if TYPE_CHECKING:
    from tokenlib.reports.explain import Story
    from tokenlib.tokens import Tokens


@click.command(epilog=EXIT_CODES)
@click.argument("organization", required=False)
@click.option(
    "--all", "everyone", is_flag=True, help="Do it for every organization that lacks some."
)
@click.option("--dry-run", is_flag=True, help="Only count what would be created.")
@json_option
def initialize(organization: str | None, everyone: bool, dry_run: bool, as_json: bool) -> None:
    """Create missing wallets, with the plan's allowance.

    Does it for one ORGANIZATION (its id), or with --all for every one that lacks some. Safe to run
    twice: a wallet that exists is left as it is. With --all an organization that fails
    is listed, the others go on, and the exit code is 1.
    """
    if everyone == (organization is not None):
        raise click.UsageError("Give the id of an organization, or --all.")
    done: dict[str, int] = {}
    failed: dict[str, str] = {}
    with gate() as tokens, progress("Initializing") as move:
        wanted: Sequence[UUID | str] = (
            tokens.organizations_to_initialize() if organization is None else [organization]
        )
        for number, one in enumerate(wanted, 1):
            try:
                done[str(one)] = tokens.initialize_tokens(one, dry_run=dry_run)
            except (ConfigurationError, DatabaseUnavailable):
                raise
            except TokenlibError as error:
                if not everyone:
                    raise
                failed[str(one)] = error.message
            move(number, len(wanted))
    wallets = sum(done.values())
    if as_json:
        show_json({"dry_run": dry_run, "wallets": wallets, "organizations": done, "failed": failed})
    else:
        created = sum(count > 0 for count in done.values())
        click.echo(
            f"{plural(wallets, 'wallet')} {'would be ' if dry_run else ''}created for"
            f" {plural(created, 'organization')}."
        )
        for one, message in failed.items():
            click.echo(f"{one}: {message}", err=True)
    if failed:
        raise click.exceptions.Exit(1)


@click.command(epilog=EXIT_CODES)
@click.argument("organization", required=False)
@json_option
def refresh(organization: str | None, as_json: bool) -> None:
    """End every period that is due.

    Of everybody, or of one ORGANIZATION (its id). Nothing depends on running this: a period also
    ends when its wallet is next used. Counts the wallets brought up to date, also those where only
    a hold ended, or a gift began or ended.
    """
    with gate() as tokens:
        wallets = tokens.refresh_tokens(organization)
    if as_json:
        show_json({"wallets": wallets})
    else:
        click.echo(f"{plural(wallets, 'wallet')} brought up to date.")


@click.command(epilog=EXIT_CODES)
@click.option("--anew", is_flag=True, help="Forget the figures and make them again from the log.")
@click.option("--check", is_flag=True, help="Compare the figures with the log instead.")
@click.option(
    "--archive",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --anew: also from the files that `tokenlib archive` wrote into this folder.",
)
@json_option
def rollup(anew: bool, check: bool, archive: Path | None, as_json: bool) -> None:
    """Add what was charged to the figures that reports are answered from.

    As far as nothing can change there any more. `serve` does it every minute; without it the same
    answers are read from the log, and take longer. With --check the exit code is 1 where a figure
    is not what the log adds up to. With --anew figures of rows that are archived stand, unless
    --archive names their files: then as the role tokenlib_owner, by TOKENLIB_MIGRATION_URL if set.
    """
    if anew and check:
        raise click.UsageError("--anew goes without --check.")
    if archive is not None and not anew:
        raise click.UsageError("--archive goes with --anew.")
    with gate() as tokens:
        if check:
            _compare(Reports(tokens.database), as_json)
            return
        kept_to = tokens.archived_to() if anew and archive is None else None
        if archive is not None:
            _from_files(tokens, archive)
        closed_to = tokens.close_usage(anew=anew and archive is None)
    if as_json:
        show_json({"closed_to": closed_to, "kept_to": kept_to})
    elif closed_to is None:
        click.echo("Nothing is closed yet: somebody is at it, or a transaction is open.")
    else:
        click.echo(f"Closed up to {closed_to:%Y-%m-%d %H:%M} UTC.")
        if kept_to is not None:
            click.echo(
                f"Figures up to {kept_to:%Y-%m-%d %H:%M} UTC stand as they were, since rows of then"
                " are archived. To make them from the files, name their folder with --archive."
            )


def _from_files(tokens: Tokens, folder: Path) -> None:
    from tokenlib import archives

    for _ in range(2):  # what is archived has to be closed; the first call may only find it over
        tokens.close_usage()
    with progress("Reading files") as move:
        owner = owner_url(tokens, Settings.from_env())
        if archives.roll_up(owner, folder, progress=move) is None:
            tokens.close_usage(anew=True)
    tokens.close_usage()  # finds what is over since then


def _compare(reports: Reports, as_json: bool) -> None:
    wrong = reports.rollup_differences()
    if as_json:
        show_json({"differences": plain(wrong)})
    elif wrong:
        show_table(
            ("day from (UTC)", "feature", "token type", "uses", "tokens", "refunded"),
            [
                (f"{d.since:%Y-%m-%d %H:%M}", d.feature, d.token_type, d.uses, d.tokens, d.refunded)
                for d in wrong
            ],
        )
        click.echo("So much more than the log has. Make them again: tokenlib rollup --anew")
    else:
        click.echo("The figures are what the log adds up to.")
    if wrong:
        raise click.exceptions.Exit(1)


@click.command(epilog=EXIT_CODES)
@click.argument("organization", required=False)
@click.option(
    "--anchor",
    type=click.File(encoding="utf-8"),
    help="Also hold the books against the file that `tokenlib anchor` wrote.",
)
@click.option(
    "--archive",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Also check the files that `tokenlib archive` wrote into this folder.",
)
@json_option
def verify(
    organization: str | None, anchor: TextIO | None, archive: Path | None, as_json: bool
) -> None:
    """Check that the books close.

    Recomputes every wallet from its entries, or those of one ORGANIZATION (its id): sums,
    numbering, hash chains, grants and reservations. Lists what does not hold, by wallet and entry;
    the exit code is then 1.
    """
    with gate() as tokens, progress("Verifying") as move:
        found = tokens.verify(organization, anchor=anchor, archive=archive, progress=move)
    if as_json:
        show_json({"closed": found.closed, **plain(found)})
    else:
        read = f"{plural(found.wallets, 'wallet')}, {plural(found.entries, 'entry')}"
        if found.closed:
            click.echo(f"{read}: the books close.")
        else:
            click.echo(f"{read}: {plural(len(found.problems), 'problem')}.")
            header = ("organization", "token type", "entry", "problem", "detail")
            show_table(
                header,
                [
                    (p.organization_id, p.token_type, p.entry, p.kind.replace("_", " "), p.detail)
                    for p in found.problems
                ],
            )
    if not found.closed:
        raise click.exceptions.Exit(1)


@click.command(epilog=EXIT_CODES)
@click.argument("organization")
@json_option
def stats(organization: str, as_json: bool) -> None:
    """Show the wallets of an organization.

    ORGANIZATION is its id. Each wallet is current: a period that has ended is refreshed first.
    """
    with gate() as tokens:
        found = tokens.get_token_stats(organization)
    if as_json:
        show_json(found)
        return
    header = ("token type", "balance", "reserved", "used", "allocated", "refresh (UTC)")
    rows: list[tuple[object, ...]] = [
        (
            wallet.token_type,
            wallet.balance,
            wallet.reserved,
            wallet.total_used,
            wallet.total_allocated,
            f"{wallet.refresh_date:%Y-%m-%d %H:%M}",
        )
        for wallet in found.by_type
    ]
    totals = (found.total_balance, found.total_reserved, found.total_used, found.total_allocated)
    show_table(header, [*rows, ("total", *totals, "")])


# What the clocks of this machine and of the database may differ.
_CLOCKS_APART = timedelta(minutes=1)


def _moment(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> datetime | None:
    """A time in ISO 8601; without a zone it is UTC."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a time such as 2026-03-01T12:00+01:00."
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment > datetime.now(UTC) + _CLOCKS_APART:
        raise click.BadParameter(f"{value!r} lies ahead.")
    return moment


@click.command(epilog=EXIT_CODES)
@click.argument("organization")
@click.argument("token_type")
@click.option(
    "--at",
    callback=_moment,
    metavar="TIME",
    help="A past moment in ISO 8601; UTC unless it says a zone.",
)
@json_option
def explain(organization: str, token_type: str, at: datetime | None, as_json: bool) -> None:
    """Tell how a balance came to be.

    ORGANIZATION is its id, TOKEN_TYPE one of its wallets: what the period opened with, each kind of
    movement with its count and sum, what is held, and what remains. With --at, as it stood then.
    """
    from tokenlib.reports import Reports

    with gate() as tokens:
        known = tokens.catalog().token_types
        if token_type not in known:
            raise UnknownTokenType(token_type, known)
        organization_id = tokens.known_organization(organization)
        if at is None:
            tokens.refresh_tokens(organization_id)
        story = Reports(tokens.database).explain(organization_id, token_type, at)
    if story is None:
        when = "" if at is None else f" at {plain(at)}"
        if token_type == "shared":
            raise Failure(
                f"{organization_id} has no wallet shared{when}: no pack was bought by then."
            )
        raise Failure(f"The wallet {token_type} of {organization_id} has no books{when}.")
    if as_json:
        show_json({"allocated": story.allocated, "closes": story.closes, **plain(story)})
    else:
        _show_story(story)


def _show_story(story: Story) -> None:
    """The movements of a period under one another, as on a bank statement."""
    opened = "opened" if story.opened_by == "opening" else "refreshed"
    rows: list[tuple[object, ...]] = [
        (story.opening, "", f"{opened} on {story.opened_at:%Y-%m-%d %H:%M} UTC")
    ]
    for line in story.lines:
        waived = f", {line.waived:,} waived" if line.waived else ""
        rows.append((line.tokens, f"{line.count:,} x", f"{line.label}{waived}"))
    if story.holds:
        rows.append((-story.held, f"{story.holds:,} x", "held for calls that are running"))
    rows.append((story.balance, "", f"remain on {story.at:%Y-%m-%d %H:%M} UTC"))
    show_table(("tokens", "", ""), rows)
    ends = "ended" if story.refresh_due else "ends"
    click.echo(f"The period {ends} on {story.refresh_date:%Y-%m-%d %H:%M} UTC.")
