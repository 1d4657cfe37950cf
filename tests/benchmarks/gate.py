"""The gate beside the floor, the textbook and the old system: throughput, waits, round trips.

Ours goes through the public library as it comes: `connect`, then `deduct_tokens` with a key and
`limits=True`, entry number and hash on. Callers are threads of one process, on every side. After
all rounds the books close, and the log has what was acknowledged, no more and no less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import psycopg

from tests.benchmarks import machine
from tests.benchmarks.baselines import Baselines, baselines
from tests.benchmarks.measure import Caller, Side, Target, ratio, table, take_turns, timed
from tests.benchmarks.wallets import FEATURE, Choose, World, prepare
from tests.faults.proxy import Proxy
from tokenlib import connect
from tokenlib.cluster import PORT
from tokenlib.config import Settings
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.reports import Reports, Viewer
from tokenlib.tokens import EMBEDDED_DATABASE, Tokens

Make = Callable[[Choose], Caller]
Sides = dict[str, Side]
PREPARED = 10
"""Calls after which the driver has prepared what it is going to prepare."""


@dataclass
class Bench:
    """Everything that a scenario needs."""

    tokens: Tokens
    apart: Tokens  # without the shared commit
    owner: psycopg.Connection[Any]
    socket: Path
    others: Baselines
    world: World
    rounds: int
    seconds: float
    scenarios: dict[str, Sides] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    spent: int = 0  # charges beside those of the sides
    notes: list[str] = field(default_factory=list)

    def compare(
        self, name: str, makes: dict[str, Make], callers: int, chooser: Callable[[int], Choose]
    ) -> Sides:
        """Run the sides in turns, with so many callers each."""
        sides = {
            kind: Side(kind, partial(timed, [make(chooser(number)) for number in range(callers)]))
            for kind, make in makes.items()
        }
        try:
            take_turns(list(sides.values()), self.rounds, self.seconds, self.processor, self.settle)
        finally:
            self.others.close()
        self.scenarios[name] = sides
        return sides

    def settle(self) -> None:
        """What autovacuum does within a minute: no side runs by plans for empty tables."""
        self.owner.execute("vacuum analyze")
        self.owner.execute("checkpoint")

    def least(self, what: str, found: float | None, least: float) -> None:
        """A target from below."""
        self.targets.append(Target(what, found, least=least))

    def most(self, what: str, found: float | None, most: float) -> None:
        """A target from above."""
        self.targets.append(Target(what, found, most=most))

    def processor(self) -> tuple[float, float]:
        """Seconds of processor: of this process, and of the server's that are there now."""
        postmaster = self.socket.parents[1] / "pgdata" / "postmaster.pid"
        used = 0.0
        for process in psutil.Process(int(postmaster.read_text().split()[0])).children():
            with suppress(psutil.NoSuchProcess):
                used += sum(process.cpu_times()[:2])
        return time.process_time(), used

    # What is called on each side ---------------------------------------------------------------

    def ours(self, choose: Choose, tokens: Tokens | None = None) -> Caller:
        """A charge through the library."""
        deduct = (tokens or self.tokens).deduct_tokens

        def charge() -> object:
            organization, user = choose()
            return deduct(organization, user, FEATURE, idempotency_key=str(uuid4()), limits=True)

        return charge

    def ours_check(self, choose: Choose) -> Caller:
        """A check through the library."""
        return lambda: self.tokens.has_enough_tokens(choose()[0], FEATURE)


# The scenarios -----------------------------------------------------------------------------------


def check(bench: Bench) -> None:
    """One caller asks for the balance."""
    makes: dict[str, Make] = {
        "floor": bench.others.floor_check,
        "textbook": bench.others.textbook_check,
        "ours": bench.ours_check,
    }
    sides = bench.compare("check, one caller", makes, 1, bench.world.anyone)
    bench.least("check, to a bare SELECT", ratio(sides, "ours", "floor"), 0.6)
    bench.least("check, to the textbook", ratio(sides, "ours", "textbook"), 2)


def lone(bench: Bench) -> None:
    """One caller, by a gate that shares commits and by one that does not."""
    makes: dict[str, Make] = {
        "floor": bench.others.floor,
        "apart": partial(bench.ours, tokens=bench.apart),
        "ours": bench.ours,
    }
    sides = bench.compare("charge, a lone caller", makes, 1, bench.world.anyone)
    what = "lone caller, p50 to one without the shared commit"
    bench.most(what, ratio(sides, "ours", "apart", "p50"), 1.1)


def _spread(bench: Bench, callers: int, least: float, *, old: bool = False) -> None:
    makes: dict[str, Make] = {"floor": bench.others.floor, "textbook": bench.others.textbook}
    if old:
        makes["old"] = bench.others.old
    makes["ours"] = bench.ours
    many = "one caller" if callers == 1 else f"{callers} callers"
    sides = bench.compare(f"charge, {many} on 1,000 wallets", makes, callers, bench.world.anyone)
    bench.least(f"charge, {many}, to the floor", ratio(sides, "ours", "floor"), least)
    bench.least(f"charge, {many}, to the textbook", ratio(sides, "ours", "textbook"), 2)


def one(bench: Bench) -> None:
    """One caller charges."""
    _spread(bench, 1, 0.6)


def spread16(bench: Bench) -> None:
    """16 callers charge 1,000 wallets."""
    _spread(bench, 16, 0.8, old=True)


def spread64(bench: Bench) -> None:
    """64 callers charge 1,000 wallets."""
    _spread(bench, 64, 1.1)


def busy(bench: Bench) -> None:
    """32 callers charge one wallet."""
    makes: dict[str, Make] = {
        "floor": bench.others.floor,
        "textbook": bench.others.textbook,
        "old": bench.others.old,
        "ours": bench.ours,
    }
    sides = bench.compare("charge, 32 callers on one wallet", makes, 32, bench.world.the_one)
    bench.least("busy wallet, to the floor", ratio(sides, "ours", "floor"), 5)
    bench.most("busy wallet, p99 to the floor's", ratio(sides, "ours", "floor", "p99"), 0.2)
    bench.least("busy wallet, to the textbook", ratio(sides, "ours", "textbook"), 15)


def trips(bench: Bench) -> None:
    """What goes over the wire, counted between library and server."""
    database = bench.tokens.database.url.render_as_string(hide_password=False)
    organization, user = bench.world.spread[0]
    with Proxy(bench.socket) as between, connect(between.url(database)) as tokens:
        own = Reports(tokens.database, Viewer(user, "authenticated"))

        def spend() -> None:
            with tokens.spend(organization, user, FEATURE, limits=True):
                bench.spent += 1

        for what, call, most in (
            ("round trips of spend", spend, 2),
            ("round trips of a member's read with claims", own.wallets, 1),
        ):
            for _ in range(PREPARED):
                call()
            before = between.trips
            call()
            bench.most(what, between.trips - before, most)


SCENARIOS: dict[str, Callable[[Bench], None]] = {
    scenario.__name__: scenario for scenario in (trips, check, one, lone, spread16, spread64, busy)
}


# The part ----------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """What can be said about this part."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds-per-round", type=float, default=2.0)
    parser.add_argument(
        "--only", help=f"some of {','.join(SCENARIOS)}", type=lambda text: text.split(",")
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; the figures, with the targets under `targets`."""
    chosen: Sequence[str] = options.only or list(SCENARIOS)
    if unknown := set(chosen) - set(SCENARIOS):
        raise SystemExit(f"There is no {', '.join(sorted(unknown))}: {', '.join(SCENARIOS)}.")
    with ExitStack() as held:
        folder = held.enter_context(machine.folder())
        settings = Settings(data_dir=folder / "data")
        tokens = held.enter_context(connect(settings=settings))
        apart = held.enter_context(connect(settings=replace(settings, shared_commit=False)))
        server = Embedded(folder / "data")
        owner = held.enter_context(
            psycopg.connect(server.conninfo(EMBEDDED_DATABASE, SUPERUSER), autocommit=True)
        )
        socket = folder / "data" / "run" / f".s.PGSQL.{PORT}"
        world = prepare(owner)
        for organization in world.organizations:
            tokens.initialize_tokens(organization)
        owner.execute("vacuum analyze")
        others = held.enter_context(baselines(server, world.organizations))
        about = machine.about(folder, owner)
        print(machine.lines(about))
        bench = Bench(
            tokens, apart, owner, socket, others, world, options.rounds, options.seconds_per_round
        )
        for name in chosen:
            before = len(bench.scenarios), len(bench.targets)
            SCENARIOS[name](bench)
            for title in list(bench.scenarios)[before[0] :]:
                print(table(title, bench.scenarios[title], "floor"))
            for target in bench.targets[before[1] :]:
                print(target.line())
            print()
        _books(bench)
        for note in bench.notes:
            print(note)
        for target in bench.targets[-2:]:
            print(target.line())
    return {
        **about,
        "rounds": options.rounds,
        "seconds_per_round": options.seconds_per_round,
        "scenarios": {
            title: {name: side.figures() for name, side in sides.items()}
            for title, sides in bench.scenarios.items()
        },
        "notes": bench.notes,
        "targets": [target.figures() for target in bench.targets],
    }


def _books(bench: Bench) -> None:
    """What was acknowledged is in the log, on every side, and what the balances know of."""
    charges = [sides for name, sides in bench.scenarios.items() if name.startswith("charge")]
    for kind in ("floor", "textbook", "old"):
        said = sum(sides[kind].calls for sides in charges if kind in sides)
        logged, known = bench.others.found(kind)
        if said != logged or (known != logged and kind != "old"):
            raise SystemExit(f"{kind}: {said} said, {logged} in the log, {known} in the balances")
        if kind == "old" and said:
            bench.notes.append(
                f"The old system lost {said - known:,} of {said:,} charges"
                f" ({(said - known) / said:.0%}): callers overwrote each other's balance."
            )
    said = bench.spent + sum(
        sides[name].calls for sides in charges for name in ("ours", "apart") if name in sides
    )
    [row] = bench.owner.execute(
        "select count(*), coalesce(sum(tokens_deducted), 0) from ai_token_usage_log"
    ).fetchall()
    found = bench.tokens.verify()
    bench.notes.append(
        f"Ours: {said:,} charges acknowledged, {row[0]:,} in the log, {row[1]:,} tokens;"
        f" verify found {len(found.problems)} problems in {found.entries:,} entries."
    )
    bench.most("charges that log and answers differ by", abs(said - row[0]), 0)
    bench.most("problems that verify found", len(found.problems), 0)
