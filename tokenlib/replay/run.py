"""The replay itself: threads that share one gate and take the next row in turn."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tokenlib.domain import Problem
from tokenlib.errors import Refused, TokenlibError
from tokenlib.replay.tenants import Tenants, check_run
from tokenlib.replay.trace import Request, Trace
from tokenlib.tokens import Tokens

_OUTPUT_UNITS_PER_UNIT = 500
_MAX_UNITS_PER_REQUEST = 4
_CHEAPEST_BITS = 8  # a size below 256 has at most eight bits; each doubling has one more
_MAX_ERRORS = 100
_BUCKET = math.log(1.01)


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds per call, each to 1 %; None when nothing was called."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the rows. `replayed` are charges that an earlier replay had made."""

    run: str
    rows: int
    skipped: int
    charged: int
    tokens: int
    replayed: int
    refused: Mapping[str, int]
    errors: Mapping[str, int]
    seconds: float
    per_second: float
    latency_ms: Latency
    wallets: int
    entries: int
    problems: tuple[Problem, ...]

    @property
    def passed(self) -> bool:
        """Whether every request got an answer and the books of its organizations close."""
        return not self.errors and not self.problems


@dataclass
class _Tally:
    """What one thread has seen. Latencies are counted in buckets, so a tally does not grow."""

    sent: int = 0
    charged: int = 0
    tokens: int = 0
    replayed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)

    def add(self, other: _Tally) -> None:
        self.sent += other.sent
        self.charged += other.charged
        self.tokens += other.tokens
        self.replayed += other.replayed
        self.refused += other.refused
        self.errors += other.errors
        self.latencies += other.latencies


class _Workers:
    """The threads, and what they share: the next row, the pace, and the reason to stop."""

    def __init__(
        self,
        send: Callable[[Request, _Tally], None],
        requests: Trace,
        speed: float | None,
        workers: int,
    ) -> None:
        self._send, self._speed = send, speed
        self._requests = requests.requests()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._errors = 0
        self._first: datetime | None = None
        self._started = time.monotonic()
        self.tallies = [_Tally() for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._work, args=(tally,), name=f"replay-{number}")
            for number, tally in enumerate(self.tallies, 1)
        ]

    def run(self, progress: Callable[[int], None]) -> None:
        """Run to the last row; raise what stopped it before that."""
        try:
            for thread in self._threads:
                thread.start()
            for thread in self._threads:
                while thread.is_alive():
                    thread.join(0.1)
                    self._tell(progress)
            self._tell(progress)  # a short replay is over before the first look at its threads
        finally:
            # Also when this thread is interrupted: nobody goes on charging behind its back.
            self._stopped.set()
            for thread in self._threads:
                if thread.ident is not None:
                    thread.join()
        if self._failure is not None:
            raise self._failure

    def _tell(self, progress: Callable[[int], None]) -> None:
        progress(sum(tally.sent for tally in self.tallies))

    def _work(self, tally: _Tally) -> None:
        try:
            while (request := self._next()) is not None:
                try:
                    self._send(request, tally)
                except TokenlibError as error:
                    tally.errors[error.code] += 1
                    self._count_error(error)
                tally.sent += 1
        except BaseException as error:  # noqa: BLE001 - raised again by run()
            self._stop(error)

    def _next(self) -> Request | None:
        """The next row, when it is due; None when there is none or the replay has stopped."""
        with self._lock:
            request = None if self._stopped.is_set() else next(self._requests, None)
            if request is None or self._speed is None:
                return request
            self._first = self._first or request.time
            due = self._started + (request.time - self._first).total_seconds() / self._speed
        return None if self._stopped.wait(max(0.0, due - time.monotonic())) else request

    def _count_error(self, error: TokenlibError) -> None:
        with self._lock:
            self._errors += 1
            if self._errors < _MAX_ERRORS:
                return
        self._stop(error)

    def _stop(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error
        self._stopped.set()


def replay(
    tokens: Tokens,
    trace: Trace,
    tenants: Tenants,
    run: str,
    *,
    workers: int = 8,
    speed: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Send every row through the gate, then verify the books of the organizations it went to.

    The row in line n goes to organization n mod N and there to the members in turn. The feature
    follows the request's size, input plus output units: below 256 the cheapest of the catalog, and
    with each doubling the next dearer one. A request is one unit per started 500 output units, at
    least 1 and at most 4. Each row has an idempotency key of its own, made of the run, the file's
    digest and the line, so a second replay of a run charges nothing twice.

    `speed` 60 keeps the trace's own pace sixty times faster; None is as fast as it goes. A hundred
    errors (refusals are none) stop the replay, and the hundredth is raised.
    """
    features = sorted(tokens.catalog().features.values(), key=lambda f: (f.cost, f.feature))
    key = f"replay:{check_run(run)}:{trace.digest[:32]}"

    def send(request: Request, tally: _Tally) -> None:
        organization, user = tenants.of(request.line)
        size = request.input_units + request.output_units
        feature = features[min(max(size.bit_length() - _CHEAPEST_BITS, 0), len(features) - 1)]
        started = time.perf_counter()
        try:
            usage = tokens.deduct_tokens(
                organization,
                user,
                feature.feature,
                _units(request.output_units),
                metadata={
                    "input_units": request.input_units,
                    "output_units": request.output_units,
                    "line": request.line,
                },
                idempotency_key=f"{key}:{request.line}",
            )
            if usage.replayed:
                tally.replayed += 1
            else:
                tally.charged += 1
                tally.tokens += usage.tokens_deducted
        except Refused as refused:
            tally.refused[refused.rule] += 1
        finally:
            tally.latencies[_bucket(time.perf_counter() - started)] += 1

    crew = _Workers(send, trace, speed, workers)
    started = time.monotonic()
    crew.run(lambda sent: progress(sent, trace.rows) if progress else None)
    seconds = time.monotonic() - started
    total = _Tally()
    for tally in crew.tallies:
        total.add(tally)
    checks = [tokens.verify(organization) for organization in tenants.organizations]
    return Report(
        run=run,
        rows=trace.rows,
        skipped=trace.skipped,
        charged=total.charged,
        tokens=total.tokens,
        replayed=total.replayed,
        refused=dict(total.refused.most_common()),
        errors=dict(total.errors.most_common()),
        seconds=round(seconds, 3),
        per_second=round(total.sent / seconds, 1),
        latency_ms=Latency(*(_percentile(total.latencies, share) for share in (50, 95, 99))),
        wallets=sum(check.wallets for check in checks),
        entries=sum(check.entries for check in checks),
        problems=tuple(problem for check in checks for problem in check.problems),
    )


def _units(output_units: int) -> int:
    return min(max(-(-output_units // _OUTPUT_UNITS_PER_UNIT), 1), _MAX_UNITS_PER_REQUEST)


def _bucket(seconds: float) -> int:
    """The number of a latency's bucket; each is 1 % wider than the one before."""
    return math.ceil(math.log(max(seconds, 1e-6)) / _BUCKET)


def _percentile(latencies: Counter[int], share: int) -> float | None:
    """The upper edge of the bucket in which the nearest-rank percentile lies, in milliseconds."""
    rank = -(-latencies.total() * share // 100)
    for bucket, count in sorted(latencies.items()):
        rank -= count
        if rank <= 0:
            return round(math.exp(bucket * _BUCKET) * 1000, 3)
    return None
