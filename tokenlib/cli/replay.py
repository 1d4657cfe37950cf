"""The command that replays a recorded trace."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokenlib.cli.output import (
    EXIT_CODES,
    Whole,
    gate,
    json_option,
    plural,
    progress,
    show_json,
    show_table,
)
from tokenlib.config import Settings

if TYPE_CHECKING:
    from tokenlib.replay import Report

_MAX_WORKERS = 64
_MAX_SPEED = 1e9


def _finite(
    _context: click.Context, _parameter: click.Parameter, value: float | None
) -> float | None:
    """A number; the range alone lets NaN pass."""
    if value is not None and isnan(value):
        raise click.BadParameter("nan is not a number.")
    return value


@click.command(epilog=EXIT_CODES)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--workers",
    type=Whole(1, _MAX_WORKERS),
    default=8,
    show_default=True,
    help="Threads that send at the same time.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True, max=_MAX_SPEED),
    callback=_finite,
    help="Keep the trace's own pace, this many times faster. Default: as fast as it goes.",
)
@click.option(
    "--organizations",
    type=Whole(1, 1000),
    default=50,
    show_default=True,
    help="Organizations to make for the run, on all three plans, with four members each.",
)
@click.option("--organization", help="Charge this organization (its id) and make none.")
@click.option("--run", help="Name of the run. A run that is repeated charges nothing twice.")
@click.option("--limit", type=Whole(min=1), help="Send only the first rows, this many.")
@click.option("--skip-bad-rows", is_flag=True, help="Leave out rows that cannot be read.")
@json_option
def replay(
    file: Path,
    workers: int,
    speed: float | None,
    organizations: int,
    organization: str | None,
    run: str | None,
    limit: int | None,
    skip_bad_rows: bool,
    as_json: bool,
) -> None:
    """Send a recorded trace through the gate.

    FILE is a CSV with the columns time (or TIMESTAMP), input_units (or ContextTokens) and
    output_units (or GeneratedTokens), in any order and case. It is read to its end first: a bad
    row is named by line and column and stops the replay before anything is charged. The books are
    verified afterwards.

    The row in line n goes to organization n mod N, and there to the members in turn. The feature
    follows the request's size, input plus output units: below 256 the cheapest of the catalog, and
    with each doubling the next dearer one. A request is one unit per started 500 output units, at
    least 1 and at most 4. Refusals are part of a replay; errors and books that do not close make
    the exit code 1.
    """
    from tokenlib import replay as library

    run = library.check_run(run or secrets.token_hex(4))
    trace = library.Trace(file, skip_bad_rows=skip_bad_rows, limit=limit)
    if trace.skipped:
        click.echo(f"Skipping {plural(trace.skipped, 'bad row')}, first of all:", err=True)
        for sentence in trace.first_skipped:
            click.echo(f"  {sentence}", err=True)
    settings = Settings.from_env()
    settings = replace(settings, pool_size=max(settings.pool_size, workers))
    with gate(settings) as tokens:
        if organization is None:
            tenants = library.replay_organizations(tokens, run, organizations)
        else:
            tenants = library.own_organization(tokens, organization)
        try:
            with progress("Replaying") as move:
                report = library.replay(
                    tokens, trace, tenants, run, workers=workers, speed=speed, progress=move
                )
        except BaseException:
            click.echo(f"Stopped. With --run {run} it goes on and charges nothing twice.", err=True)
            raise
    if as_json:
        show_json(report)
    else:
        _show(report)
    if not report.passed:
        raise click.exceptions.Exit(1)


def _show(report: Report) -> None:
    latency = report.latency_ms
    click.echo(f"Run {report.run}: {plural(report.rows, 'request')} in {report.seconds:.1f} s.")
    refused = sum(report.refused.values())
    rows = [
        ("charged", report.charged, plural(report.tokens, "token")),
        ("charged before", report.replayed, "not charged again"),
        ("refused", refused, _by_name(report.refused)),
        ("errors", sum(report.errors.values()), _by_name(report.errors)),
    ]
    show_table(("answer", "requests", "of these"), rows)
    click.echo(
        f"{report.per_second:,.0f} requests/s; latency p50 {latency.p50} ms, p95 {latency.p95} ms,"
        f" p99 {latency.p99} ms."
    )
    read = f"{plural(report.wallets, 'wallet')}, {plural(report.entries, 'entry')}"
    if not report.problems:
        click.echo(f"Verified {read}: the books close.")
        return
    click.echo(f"Verified {read}: {plural(len(report.problems), 'problem')}.")
    for problem in report.problems:
        wallet = f"{problem.organization_id} {problem.token_type}"
        click.echo(f"  {wallet}, {problem.entry}: {problem.kind} ({problem.detail})")


def _by_name(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
