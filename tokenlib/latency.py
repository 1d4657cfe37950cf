"""How fast the gate, the API and the console are, measured live and kept.

The probe is an organization of its own that exists only inside the measuring transaction, which is
rolled back: no report and no plain SQL ever counts it, and no customer's wallet is locked.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa

from tokenlib import answers
from tokenlib.db import Row, statements
from tokenlib.domain import MAX_TOKENS, Catalog, Feature
from tokenlib.errors import ConfigurationError
from tokenlib.reports import Reports
from tokenlib.reports.health import LatencyRow

if TYPE_CHECKING:
    from tokenlib.tokens import Tokens

# The organization that measurements and smoke tests use; no transaction with it is ever committed.
PROBE_NAME = "Latency probe"
_WARM_UPS = 3
_ROUNDS = 20
_REMEMBERED = 1000


class Pace:
    """How long this process took lately to answer: "api" requests and "page" runs of the console.

    Whatever answers adds a figure; `keep` writes the median of each kind into the history. The
    first answer of each kind is not counted: it reads the program, and every other finds it warm.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, deque[float]] = {}
        self._warm: set[str] = set()

    def add(self, operation: str, milliseconds: float) -> None:
        """One more answer."""
        with self._lock:
            if operation in self._warm:
                self._seen.setdefault(operation, deque(maxlen=_REMEMBERED)).append(milliseconds)
            self._warm.add(operation)

    def keep(self, tokens: Tokens) -> None:
        """Write a row for each kind that answered since the last time; begin anew."""
        with self._lock:
            seen, self._seen = self._seen, {}
        for operation, figures in seen.items():
            _record(tokens, operation, median(figures))


pace = Pace()


def measure_latency(tokens: Tokens) -> list[LatencyRow]:
    """Time a check, a deduction with its log row, and stats; keep and return one row for each.

    A figure is the median of 20 calls after a warm-up, in milliseconds, as the caller sees them.
    The charges are rolled back, so the commit of a charge is taken from one that stays, that of
    the check's history row, and added to the deduction. Raises ConfigurationError when no plan of
    the catalog has a feature to charge.
    """
    feature, plan = chargeable(tokens.catalog())
    with tokens.database.transaction() as connection:
        try:
            figures = _measure(connection, feature, plan)
        finally:
            connection.rollback()
    commit = _milliseconds(lambda: _record(tokens, "check", figures["check"]))
    _record(tokens, "deduct", figures["deduct"] + commit)
    _record(tokens, "stats", figures["stats"])
    return [row for row in Reports(tokens.database).latest_latencies() if row.operation in figures]


def answer(connection: sa.Connection, noun: str, verb: str, **params: Any) -> Row:
    """One named statement that has one answer, inside the probe's transaction."""
    return dict(connection.exec_driver_sql(statements(noun)[verb], params).mappings().one())


def open_probe(connection: sa.Connection, feature: Feature, plan: str) -> tuple[UUID, UUID]:
    """The probe and its one member, with tokens, in a transaction that the caller rolls back.

    Where the product's own tables take no organization of ours, one of its own is borrowed: its
    wallet is locked until the rollback. Raises ConfigurationError when there is none to borrow.
    """
    try:
        with connection.begin_nested():
            created = answer(connection, "plans", "create_organization", name=PROBE_NAME, plan=plan)
            member = {"organization_id": created["id"], "email": "probe@example.invalid"}
            added = answer(connection, "plans", "add_member", name=PROBE_NAME, **member)
            who = created["id"], added["id"]
    except (sa.exc.IntegrityError, sa.exc.ProgrammingError) as error:
        wanted = {"token_type": feature.token_type}
        lent = connection.exec_driver_sql(statements("doctor")["borrow"], wanted).first()
        if lent is None:
            raise ConfigurationError(
                f"No organization with {feature.feature} in its plan has a member, so nothing can"
                " be charged for a try."
            ) from error
        who = lent.organization_id, lent.user_id
    grant = {"kind": "gift", "source": "latency probe", "actor": "latency probe", "reason": None}
    times = {"effective_at": None, "expires_at": None, "key": None}
    wallet = {"organization_id": who[0], "token_type": feature.token_type, "amount": MAX_TOKENS}
    answer(connection, "plans", "grant", **wallet, **grant, **times)
    return who


def _measure(connection: sa.Connection, feature: Feature, plan: str) -> dict[str, float]:
    call = functools.partial(answer, connection)
    organization_id, user_id = open_probe(connection, feature, plan)
    organization: Mapping[str, Any] = {"organization_id": organization_id}
    request: Mapping[str, Any] = {**organization, "feature": feature.feature, "units": 1}

    def deduct() -> None:
        row = call(
            "gate",
            "deduct",
            **request,
            user_id=user_id,
            metadata=None,
            key=None,
            limits=False,
            mode=None,
        )
        if row["status"] != "ok":
            raise answers.refusal(row)

    def stats() -> None:
        parameters = {**organization, "token_type": None}
        connection.exec_driver_sql(statements("gate")["balances"], parameters).all()

    operations: dict[str, Callable[[], object]] = {
        "check": lambda: call("gate", "has_enough", **request),
        "deduct": deduct,
        "stats": stats,
    }
    figures = {}
    for operation, ask in operations.items():
        for _ in range(_WARM_UPS):
            ask()
        figures[operation] = median(_milliseconds(ask) for _ in range(_ROUNDS))
    return figures


def chargeable(catalog: Catalog) -> tuple[Feature, str]:
    """A feature that can be charged, and a plan that includes it. Raises ConfigurationError."""
    for (plan, token_type), allowance in sorted(catalog.allowances.items()):
        for feature in catalog.features.values():
            if allowance != 0 and feature.token_type == token_type:
                return feature, plan
    raise ConfigurationError("No plan of the catalog includes a feature, so none can be timed.")


def _record(tokens: Tokens, operation: str, milliseconds: float) -> None:
    parameters = {"operation": operation, "milliseconds": milliseconds}
    tokens.database.call(statements("plans")["record_latency"], parameters)


def _milliseconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return (perf_counter() - start) * 1000
