"""How fast the gate answers, against what operators were promised."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pandas as pd
import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console import gauges, session, tables
from tokenlib.console.format import Context
from tokenlib.latency import measure_latency, pace
from tokenlib.reports import Reports
from tokenlib.reports.health import TARGETS, Closing, LatencyRow

OPERATIONS = {
    "check": "Token check",
    "deduct": "Deduction with log",
    "stats": "Stats",
    "api": "API response",
    "page": "Console page, on the server",
}
GRADES = {
    "on_target": "✓ On target",
    "acceptable": "○ Acceptable",
    "slow": "△ Slow",
    "alert": "✕ Alert",
    "unknown": "",
}
HISTORY_DAYS = 30
LATE = timedelta(minutes=30)


def draw(reports: Reports, context: Context) -> None:
    """Measure on request; the table of targets, the history as charts, and the database's size."""
    with st.container(border=True):
        with st.container(
            horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
        ):
            st.markdown("**Speed**", width="content")
            wanted = st.button("Measure now", icon=":material/timer:", key="measure")
        if wanted:
            with st.skeleton(height=60):
                measure_latency(session.tokens())
                pace.keep(session.tokens())
            st.session_state[session.UNTIMED] = True
        with reports.together() as asked:
            rows = asked.latencies(context.now - timedelta(days=HISTORY_DAYS))
            size = asked.database_size()
            closing = asked.closing()
        table(rows, context)
        history(rows, context)
        st.caption(
            "The gate: median of 20 calls on a probe organization that no report counts. API and"
            " console: median of what this server answered, kept every hour; a page counts until"
            " its last element is sent, and `make bench-console` adds the browser's part and cold"
            f" loads. The database holds {fmt.number(round(size / 1_000_000))} MB."
        )
        st.caption(_closing(closing, context))


def _closing(found: Closing | None, context: Context) -> str:
    """Up to when figures need not be read from the log, and what to do when that is long ago."""
    if found is None:
        return (
            ":material/history: Figures are not rolled up yet, so reports read the whole log. The"
            " server does it every minute, `tokenlib rollup` now."
        )
    told = f"Figures are rolled up to {fmt.minute(found.closed_to, context.zone)}; what came"
    told += " since is read from the log, as exactly."
    if found.lag < LATE:
        return f":material/history: {told}"
    return (
        f":material/warning: {told} That is long ago: look for a transaction that stays open, and"
        " run `tokenlib rollup`."
    )


def table(rows: Sequence[LatencyRow], context: Context) -> None:
    """Each operation with its targets and its latest measurement."""
    data = pd.DataFrame(
        [
            _line(operation, [row for row in rows if row.operation == operation])
            for operation in OPERATIONS
        ]
    )
    tables.show(
        data,
        {
            "operation": "Operation",
            "now": tables.milliseconds("Measured"),
            "grade": "Verdict",
            "target": tables.milliseconds("Target"),
            "acceptable": tables.milliseconds("Acceptable"),
            "alert": tables.milliseconds("Alert"),
            "when": tables.time("When", context.zone),
        },
        "Latency of each operation against its targets",
    )


def history(rows: Sequence[LatencyRow], context: Context) -> None:
    """A small chart for each operation that was measured more than once, with its target."""
    measured = {
        operation: [row for row in reversed(rows) if row.operation == operation]
        for operation in OPERATIONS
    }
    shown = {operation: known for operation, known in measured.items() if len(known) > 1}
    if not shown:
        return
    with st.grid(3, min_column_width=220):
        for operation, known in shown.items():
            with st.container():
                st.markdown(f"{OPERATIONS[operation]}, last {HISTORY_DAYS} days")
                values = [row.milliseconds for row in known]
                frame = pd.DataFrame(
                    {
                        "when": [context.time(row.measured_at) for row in known],
                        "place": range(len(known)),
                        "milliseconds": values,
                        "verdict": [GRADES[row.grade] for row in known],
                    }
                )
                gauges.latency(
                    frame,
                    TARGETS[operation].target,
                    f"{OPERATIONS[operation]} in {len(known)} measurements: from"
                    f" {fmt.tenths(min(values))} to {fmt.tenths(max(values))} ms,"
                    f" {fmt.tenths(values[-1])} ms last; the target is"
                    f" {fmt.number(TARGETS[operation].target)} ms.",
                )


def _line(operation: str, rows: Sequence[LatencyRow]) -> dict[str, object]:
    latest = rows[0] if rows else None
    promised = TARGETS[operation]
    return {
        "operation": OPERATIONS[operation],
        "now": latest and round(latest.milliseconds, 1),
        "grade": GRADES[latest.grade] if latest else "Not measured yet",
        "target": promised.target,
        "acceptable": promised.acceptable,
        "alert": promised.alert,
        "when": latest and latest.measured_at,
    }
