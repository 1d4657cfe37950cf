"""Requests of this process, counted for Prometheus by method, route and status."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator

NAME = "tokenlib_api_request_duration_seconds"
_HELP = "How long requests took in the process that answers; its _count is how many there were."
# The targets that operators were promised are among them.
BOUNDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0)


class Requests:
    """A histogram for each route and status: a few hundred at most, whatever is asked."""

    def __init__(self) -> None:
        # A count for each bound and one above them, then the sum of seconds.
        self._seen: dict[tuple[str, str, int], list[float]] = {}

    def add(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """One more. `route` is its template, never a path that somebody chose."""
        # Where nothing of ours was found the mount that led here stands as route.
        name = (method, route if route and route.startswith("/v1/") else "none", status)
        cells = self._seen.get(name)
        if cells is None:
            cells = self._seen[name] = [0] * (len(BOUNDS) + 2)
        cells[bisect_left(BOUNDS, seconds)] += 1
        cells[-1] += seconds

    def lines(self) -> Iterator[str]:
        """In Prometheus' text format, cumulative as it wants them."""
        if not self._seen:
            return
        yield f"# HELP {NAME} {_HELP}"
        yield f"# TYPE {NAME} histogram"
        for (method, route, status), cells in sorted(self._seen.items()):
            labels = f'method="{method}",route="{route}",status="{status}",process="{os.getpid()}"'
            *counts, seconds = cells.copy()
            total = 0
            for bound, count in zip((*BOUNDS, "+Inf"), counts, strict=True):
                total += int(count)
                yield f'{NAME}_bucket{{{labels},le="{bound}"}} {total}'
            yield f"{NAME}_sum{{{labels}}} {seconds:.6f}"
            yield f"{NAME}_count{{{labels}}} {total}"
