"""Use divided into parts: the chart, what was clicked in it, and the table below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal
from uuid import UUID

import streamlit as st

from tokenlib.console import charts, links, narrowing, shapes, tables
from tokenlib.console import format as fmt
from tokenlib.console.charges import Asked
from tokenlib.console.format import Context
from tokenlib.console.narrowing import Narrowed
from tokenlib.console.ranges import Step, Window, end
from tokenlib.reports import Reports
from tokenlib.reports.series import SeriesPoint

By = Literal["feature", "plan", "organization", "user"]

GROUPS: dict[By, str] = {
    "feature": "Feature",
    "plan": "Plan",
    "organization": "Organization",
    "user": "Person",
}
ALONE = 7
"""Groups with a color of their own in the chart; the table has more."""
LISTED = 25
CHART = "usage_bars"
_CLICK = "part_organization"
_ROUND = "usage_bars_round"
_BETWEEN = "_"


@dataclass(frozen=True, slots=True)
class Parts:
    """What was asked and its answer: the rows, and those of the time before."""

    window: Window
    step: Step
    by: By
    narrowed: Narrowed
    rows: Sequence[SeriesPoint]
    before: Sequence[SeriesPoint]

    @property
    def names(self) -> Mapping[str | None, str]:
        """What each part is called, the largest first."""
        return shapes.titles(self.rows)


def choose() -> By:
    """What the use is divided by."""
    return st.segmented_control(
        "Divided by",
        list(GROUPS),
        key="by",
        bind="query-params",
        default="feature",
        required=True,
        format_func=lambda name: f"By {GROUPS[name].lower()}",
        label_visibility="collapsed",
    )


def ask(
    reports: Reports, window: Window, step: Step, by: By, narrowed: Narrowed, zone: str
) -> Parts:
    """The use of a window and of the one before it."""
    then = window.before
    rows = reports.usage_series(
        window.since,
        window.until,
        by,
        step,
        zone,
        LISTED,
        organization_id=narrowed.organization_id,
        user_id=narrowed.user_id,
        feature=narrowed.feature,
        plan=narrowed.plan,
    )
    used = reports.usage_before(
        window.since,
        window.until,
        (then.since, then.until),
        by,
        LISTED,
        organization_id=narrowed.organization_id,
        user_id=narrowed.user_id,
        feature=narrowed.feature,
        plan=narrowed.plan,
    )
    before = [SeriesPoint(then.since, key, key or "", 0, tokens, 0) for key, tokens in used.items()]
    return Parts(window, step, by, narrowed, rows, before)


def chart(parts: Parts, context: Context) -> None:
    """Stacked bars over time. A click on one narrows the rows below; the URL has it."""
    names = parts.names
    frame, labels, groups = shapes.bars(
        parts.rows, parts.window, parts.step, context.zone, names, ALONE, _picked()
    )
    first = next(iter(names.values()), "")
    total = sum(row.tokens for row in parts.rows)
    largest = sum(row.tokens for row in parts.rows if names[row.key] == first)
    charts.stacked(
        frame,
        labels,
        groups,
        f"Tokens charged per {parts.step} {parts.window.phrase}: {first} leads with"
        f" {fmt.number(largest)} of {fmt.count(total, 'token')}. The table below has the figures.",
        f"{CHART}_{st.session_state.get(_ROUND, 0)}",
        _pick,
        fixed=context.features if parts.by == "feature" else (),
    )
    st.caption(
        f"Times of {context.zone}. Click a bar to see its charges."
        + (" Weaker bars are cut by the range or not over yet." if _cut(parts, context) else "")
    )


def table(parts: Parts) -> None:
    """The figures of each part beside the time before; an organization's name opens it."""
    frame = shapes.compared(parts.rows, parts.before, parts.names)
    linked = parts.by == "organization"
    columns = {
        "group": links.column(_CLICK) if linked else GROUPS[parts.by],
        "uses": tables.number("Uses"),
        "tokens": tables.number("Tokens", note="Charged, gross."),
        "share": tables.share("Share"),
        "before": tables.number("Before", note=f"Tokens charged in {parts.window.before.words}."),
        "change": "Change",
        "refunded": tables.number("Refunded"),
        "net": tables.number("Net", note="Tokens less refunds."),
    }
    tables.show(
        frame[list(columns)], columns, f"Use by {GROUPS[parts.by].lower()} {parts.window.phrase}"
    )
    if linked:
        links.follow(_CLICK, [UUID(key) if key else None for key in frame["key"]])


def inside(parts: Parts, context: Context) -> Asked:
    """Which charges to list: those of the clicked bar, else of the whole window."""
    window, narrowed = parts.window, parts.narrowed
    picked = _picked()
    starts = window.starts(parts.step, context.zone)
    start = next((one for one in starts if picked and one.isoformat() == picked[0]), None)
    if picked is None or start is None:
        return Asked(window.since, window.until, narrowed)
    key = picked[1] if picked[1] in parts.names else ""
    st.button(
        f"{shapes.name(start, parts.step, window, context.zone)}"
        f"{f', {fmt.plain(parts.names[key])}' if key else ''}",
        key="clear_bar",
        icon=":material/close:",
        help="Show the charges of the whole time range",
        on_click=_unpick,
    )
    return Asked(
        max(window.since, start), min(window.until, end(start, parts.step)), _within(parts, key)
    )


def _within(parts: Parts, key: str) -> Narrowed:
    if not key:
        return parts.narrowed
    match parts.by:
        case "feature":
            return replace(parts.narrowed, feature=key)
        case "plan":
            return replace(parts.narrowed, plan=key)
        case "organization":
            return replace(parts.narrowed, organization_id=UUID(key))
        case "user":
            return replace(parts.narrowed, user_id=UUID(key))


def _cut(parts: Parts, context: Context) -> bool:
    starts: list[datetime] = parts.window.starts(parts.step, context.zone)
    return any(shapes.partial(one, parts.step, parts.window, context.zone) for one in starts)


def _picked() -> tuple[str, str] | None:
    start, _, key = st.query_params.get(narrowing.BAR, "").partition(_BETWEEN)
    return (start, key) if start else None


def _pick(start: str, key: str) -> None:
    narrowing.clear(*([] if start else [narrowing.BAR]))
    if start:
        st.query_params[narrowing.BAR] = f"{start}{_BETWEEN}{key}"


def _unpick() -> None:
    narrowing.clear(narrowing.BAR)
    # A chart that forgets its click: else the next one on the same bar would only undo it.
    st.session_state[_ROUND] = st.session_state.get(_ROUND, 0) + 1
