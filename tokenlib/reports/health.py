"""Is the gate well: wallets that cannot be right, what is overdue, findings, speed, size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple
from uuid import UUID

from tokenlib.errors import InvalidInput
from tokenlib.reports.asking import Asking, Page, open_window, rows_at_most

Grade = Literal["on_target", "acceptable", "slow", "alert", "unknown"]


@dataclass(frozen=True, slots=True)
class StuckWallet:
    """A wallet with more balance than was ever allocated: impossible in books of ours."""

    organization_id: UUID
    name: str
    token_type: str
    balance: int
    total_allocated: int


@dataclass(frozen=True, slots=True)
class OpenSum:
    """A wallet whose sums do not close: allocated is not balance + reserved + used."""

    organization_id: UUID
    name: str
    token_type: str
    balance: int
    reserved: int
    total_used: int
    total_allocated: int
    difference: int


@dataclass(frozen=True, slots=True)
class OverduePeriod:
    """A wallet past its refresh date, and for how long."""

    organization_id: UUID
    name: str
    token_type: str
    refresh_date: datetime
    overdue: timedelta


@dataclass(frozen=True, slots=True)
class FindingRow:
    """What was wrong with a wallet when it was adopted; `found` has its figures before."""

    id: UUID
    organization_id: UUID
    organization: str
    token_type: str
    kind: str
    detail: str
    found: Mapping[str, Any]
    found_at: datetime
    settled_at: datetime | None
    settled_by: str | None
    settlement: str | None


@dataclass(frozen=True, slots=True)
class PlanDrift:
    """An organization whose plan was changed outside; its wallets' next touch applies it."""

    organization_id: UUID
    name: str
    plan: str
    wallet_plan: str
    wallets: int


@dataclass(frozen=True, slots=True)
class VerificationRow:
    """A verification of everybody's books: what it read, and how many problems it found."""

    at: datetime
    wallets: int
    entries: int
    problems: int


class Target(NamedTuple):
    """What operators were promised for one operation, in milliseconds."""

    target: float
    acceptable: float
    alert: float


TARGETS: Mapping[str, Target] = {
    "check": Target(5, 10, 20),
    "deduct": Target(20, 50, 100),
    "stats": Target(15, 30, 50),
    "api": Target(100, 200, 500),
    "page": Target(300, 500, 1000),
}


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """One measurement, with what was promised for the operation (None where nothing was)."""

    operation: str
    measured_at: datetime
    milliseconds: float
    target: float | None
    acceptable: float | None
    alert: float | None

    @property
    def grade(self) -> Grade:
        """Where the measurement lies: up to target, up to acceptable, below alert, or above."""
        if self.target is None or self.acceptable is None or self.alert is None:
            return "unknown"
        if self.milliseconds <= self.target:
            return "on_target"
        if self.milliseconds <= self.acceptable:
            return "acceptable"
        return "slow" if self.milliseconds < self.alert else "alert"


@dataclass(frozen=True, slots=True)
class Closing:
    """Up to when the figures are rolled up; what came since is read from the log, as exactly."""

    closed_to: datetime
    lag: timedelta


@dataclass(frozen=True, slots=True)
class RollupDifference:
    """Where a day's rolled up figures are not those of the log: by how much they are more."""

    since: datetime
    feature: str
    token_type: str
    uses: int
    tokens: int
    waived: int
    refunded: int


class HealthReports(Asking):
    """Questions about the state of the books and the speed of the gate."""

    def stuck_tokens(self) -> list[StuckWallet]:
        """Wallets where balance > total_allocated."""
        return [StuckWallet(**row) for row in self._ask("health", "stuck_tokens")]

    def sums_that_do_not_close(self) -> list[OpenSum]:
        """Wallets where allocated is not balance + reserved + used."""
        return [OpenSum(**row) for row in self._ask("health", "open_sums")]

    def overdue_periods(self) -> list[OverduePeriod]:
        """Wallets past their refresh date, the longest first."""
        return list(self._overdue().rows)

    def findings(self, settled: bool | None = None) -> list[FindingRow]:
        """What adoption found: open, settled or (None) all of it; open ones first."""
        return list(self._findings(settled).rows)

    def verifications(self, limit: int = 50) -> list[VerificationRow]:
        """Verifications of everybody's books, the latest first. PermissionDenied for a member."""
        rows = self._ask("health", "verifications", limit=rows_at_most(limit))
        return [VerificationRow(**row) for row in rows]

    def plan_drift(self) -> list[PlanDrift]:
        """Organizations whose plan differs from the one that wallets of theirs stand on."""
        return [PlanDrift(**row) for row in self._ask("health", f"plan_drift{self._closed}")]

    def latencies(self, since: datetime) -> list[LatencyRow]:
        """Measurements from `since` on, the latest first. PermissionDenied for a member."""
        if since.tzinfo is None:
            raise InvalidInput("since", "must have a time zone")
        return [latency(**row) for row in self._ask("health", "latencies", since=since)]

    def latest_latencies(self) -> list[LatencyRow]:
        """The last measurement of each operation. PermissionDenied for a member."""
        return [latency(**row) for row in self._ask("health", "latest_latencies")]

    def closing(self) -> Closing | None:
        """Up to when the figures are rolled up; None when they never were. PermissionDenied for a
        member."""
        rows = self._ask("rollups", "state")
        return Closing(**rows[0]) if rows else None

    def rollup_differences(self, since: datetime | None = None) -> list[RollupDifference]:
        """Days (from `since` on) whose rolled up figures are not what the log adds up to.

        Empty when all is well. Reads that part of the log. PermissionDenied for a member.
        """
        rows = self._ask("rollups", "differences", **open_window(since, None))
        return [RollupDifference(**row) for row in rows]

    def _overdue(self, limit: int | None = None) -> Page[OverduePeriod]:
        return self._page(OverduePeriod, "health", "overdue_periods", limit)

    def _findings(self, settled: bool | None, limit: int | None = None) -> Page[FindingRow]:
        return self._page(FindingRow, "health", "findings", limit, settled=settled)

    def database_size(self) -> int:
        """Size of the database in bytes. PermissionDenied for a member."""
        rows = self._ask("health", "database_size")
        return int(rows[0]["bytes"]) if rows else 0


def latency(operation: str, measured_at: datetime, milliseconds: float) -> LatencyRow:
    """A measurement beside its targets."""
    promised = TARGETS.get(operation)
    if promised is None:
        return LatencyRow(operation, measured_at, milliseconds, None, None, None)
    return LatencyRow(operation, measured_at, milliseconds, *promised)
