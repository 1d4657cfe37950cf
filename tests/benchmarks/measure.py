"""Callers that are timed, sides that take turns, and ratios held against their targets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from statistics import median, quantiles
from typing import Any

Caller = Callable[[], object]
Meter = Callable[[], tuple[float, float]]
"""Seconds of processor that client and server have used so far."""
WARM_SECONDS = 0.5
FIGURES = ("rate", "p50", "p99", "client", "server")


@dataclass(frozen=True)
class Round:
    """What one side did in one round: calls a second, milliseconds of a call, and microseconds of
    processor for a call, which other work on the machine hardly changes."""

    calls: int
    rate: float
    p50: float
    p99: float
    client: float = 0.0
    server: float = 0.0


@dataclass
class Side:
    """One of the things compared: how it has its turn of some seconds, and what it did."""

    name: str
    turn: Callable[[float], Round]
    rounds: list[Round] = field(default_factory=list)
    calls: int = 0  # the warm-up counts, too: each of them is in the log

    def run(self, seconds: float) -> Round:
        """Have a turn."""
        found = self.turn(seconds)
        self.calls += found.calls
        return found

    def median(self, figure: str) -> float:
        """The median over the rounds of `rate`, `p50` or `p99`."""
        return float(median(getattr(one, figure) for one in self.rounds))

    def figures(self) -> dict[str, Any]:
        """For the JSON."""
        medians = {name: round(self.median(name), 3) for name in FIGURES}
        return {**medians, "calls": self.calls, "rounds": [asdict(one) for one in self.rounds]}


def timed(callers: Sequence[Caller], seconds: float) -> Round:
    """Every caller calls again and again, each in a thread of its own.

    What one raises ends the benchmark.
    """
    line = threading.Barrier(len(callers))

    def work(call: Caller) -> tuple[float, float, list[float]]:
        taken = []
        line.wait()
        start = now = time.perf_counter()
        until = start + seconds
        while now < until:
            call()
            then = time.perf_counter()
            taken.append(then - now)
            now = then
        return start, now, taken

    with ThreadPoolExecutor(len(callers)) as threads:
        done = list(threads.map(work, callers))
    return summed(done)


def summed(done: Sequence[tuple[float, float, Sequence[float]]]) -> Round:
    """What callers did together: for each its start, its end and what every call took."""
    took = max(end for _, end, _ in done) - min(start for start, _, _ in done)
    every = [one * 1000 for _, _, taken in done for one in taken]
    cuts = quantiles(every, n=100) if len(every) > 1 else every * 99
    return Round(len(every), len(every) / took, cuts[49], cuts[98])


def take_turns(
    sides: Sequence[Side],
    rounds: int,
    seconds: float,
    meter: Meter = lambda: (0.0, 0.0),
    warmed: Callable[[], object] = lambda: None,
) -> None:
    """Warm every side up, then A B A B: load that comes and goes meets all of them."""
    for side in sides:
        side.run(min(seconds, WARM_SECONDS))
    warmed()
    for _ in range(rounds):
        for side in sides:
            before = meter()
            found = side.run(seconds)
            client, server = (
                (now - then) / found.calls * 1_000_000
                for now, then in zip(meter(), before, strict=True)
            )
            side.rounds.append(replace(found, client=client, server=server))


def table(title: str, sides: Mapping[str, Side], first: str) -> str:
    """Medians of each side, and its share of the first one's throughput."""
    metered = any(side.median("client") for side in sides.values())
    lines = [
        f"{title:40}{'a second':>10}{'p50 ms':>10}{'p99 ms':>10}{'of ' + first:>12}"
        + (f"{'client µs':>11}{'server µs':>11}" if metered else "")
    ]
    for name, side in sides.items():
        lines.append(
            f"  {name:38}{side.median('rate'):>10,.0f}{side.median('p50'):>10.2f}"
            f"{side.median('p99'):>10.2f}{ratio(sides, name, first):>12.2f}"
            + (f"{side.median('client'):>11.0f}{side.median('server'):>11.0f}" if metered else "")
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Target:
    """A figure beside what it has to be."""

    what: str
    found: float | None  # None: could not be measured
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the figure is there and is what it has to be."""
        if self.found is None:
            return False
        return not (
            (self.least is not None and self.found < self.least)
            or (self.most is not None and self.found > self.most)
        )

    def line(self) -> str:
        """For the table."""
        found = "none" if self.found is None else f"{self.found:,.2f}"
        wanted = f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"
        return f"  {self.what:56}{found:>10}  {wanted:9}{'met' if self.met else 'NOT MET'}"

    def figures(self) -> dict[str, Any]:
        """For the JSON."""
        return {**asdict(self), "met": self.met}


def ratio(sides: Mapping[str, Side], of: str, to: str, figure: str = "rate") -> float:
    """The ratio of the medians of two sides."""
    return sides[of].median(figure) / sides[to].median(figure)
