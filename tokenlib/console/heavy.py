"""Who spends most, how unusual that is for them, and who goes beyond the abuse limits."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, Literal
from uuid import UUID

import streamlit as st

from tokenlib.console import actions, cards, charts, links, shapes, tables, throttle
from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.console.ranges import Window
from tokenlib.console.session import Person
from tokenlib.reports import Page
from tokenlib.reports.refusals import FrequentRefusal
from tokenlib.reports.spend import BASELINE_DAYS, UNUSUAL_FROM, AbuseRow, Spender

OVER = {
    "alert_tokens_per_hour": "tokens in an hour",
    "requests_per_minute": "requests in a minute",
    "seconds_between_requests": "too fast",
    "tokens_per_request": "large requests",
}
"""Limits, as what somebody did too much of."""

Who = Literal["organization", "user"]
WHO: dict[Who, str] = {"organization": "Organizations", "user": "People"}

LISTS = {"spenders": "Spenders", "beyond": "Beyond a limit", "refused": "Often refused"}
"""The lists of the page, as its control and its address call them."""

PAUSE = "Pause"
EITHER = "Pause…"
RESUME = "Resume"
THROTTLE = "Throttle"


def figures(rows: Sequence[Spender], total: int, before: int, window: Window) -> None:
    """What the page is about, in three figures."""
    if not rows:
        return
    with st.grid(3, min_column_width=150):
        cards.figure(
            "Tokens charged", total, before, f"Gross. The change is against {window.before.words}."
        )
        st.metric(
            f"Share of the top {len(rows)}",
            fmt.percent(sum(row.share for row in rows)),
            border=True,
            height="stretch",
            help="Of all tokens charged in this time.",
        )
        st.metric(
            "Unusual",
            f"{sum(odd(row) for row in rows)} of {len(rows)}",
            border=True,
            height="stretch",
            help=f"Far above their own {BASELINE_DAYS} days before this time.",
        )


def choose() -> Who:
    """Organizations or people."""
    return st.segmented_control(
        "Who",
        list(WHO),
        key="who",
        bind="query-params",
        default="organization",
        required=True,
        format_func=lambda name: WHO[name],
        label_visibility="collapsed",
    )


def choose_list() -> str:
    """Which list to show."""
    return st.segmented_control(
        "List",
        list(LISTS),
        key="list",
        bind="query-params",
        default="spenders",
        required=True,
        format_func=lambda name: LISTS[name],
        label_visibility="collapsed",
    )


def spenders(
    rows: Sequence[Spender], who: Who, person: Person, window: Window, context: Context
) -> None:
    """Who spent most, as bars and as a table."""
    if not rows:
        cards.empty(f"Nobody used a token {window.phrase}. Choose a longer time.")
        return
    with st.container(border=True):
        st.markdown(f"**{WHO[who]} by tokens charged**")
        ranking(rows, who, window, context)
        table(rows, who, person, window, context)


def ranking(rows: Sequence[Spender], who: Who, window: Window, context: Context) -> None:
    """Bars of the tokens charged."""
    name = "user" if who == "user" else "organization"
    first = rows[0]
    frame = tables.frame(rows, [name, "tokens"], context)
    seen = list(frame[name])
    if len(set(seen)) < len(seen):  # two of one name are two bars
        frame[name] = [f"{place}. {one}" for place, one in enumerate(seen, 1)]
    charts.ranking(
        frame,
        name,
        f"{getattr(first, name)} spent most tokens {window.phrase}:"
        f" {fmt.number(first.tokens)}, {fmt.percent(first.share)} of all. The table has the"
        " figures.",
    )


def table(rows: Sequence[Spender], who: Who, person: Person, window: Window, ctx: Context) -> None:
    """The figures of each, its trend, its change, and in words how unusual that is."""
    key = f"spender_{who}"
    by_user = who == "user"
    fields = ["user", "organization"] if by_user else ["organization", "plan"]
    data = tables.frame(rows, [*fields, "tokens", "share"], ctx)
    data["unusual"] = [unusual(row) for row in rows]
    data["change"] = [shapes.change(row.tokens, row.before) for row in rows]
    data["trend"] = [trend(row) for row in rows]
    data["calls"] = [row.calls for row in rows]
    columns: dict[str, Any] = {
        "organization": links.column(key),
        **({"user": "Person"} if by_user else {"plan": "Plan"}),
        "tokens": tables.number("Tokens", note="Gross: what was deducted."),
        "share": st.column_config.NumberColumn("Share", format="percent", width=70),
        "unusual": st.column_config.TextColumn("Against its own past", width=180),
        "change": st.column_config.TextColumn(
            "Change", help=f"Against {window.before.words}.", width=80
        ),
        "trend": st.column_config.AreaChartColumn(
            f"Last {BASELINE_DAYS} days",
            y_min=0,
            width=100,
            help="Whole days of 24 hours, the last one on the right.",
        ),
        "calls": tables.number("Calls"),
    }
    subjects = [row.user_id for row in rows] if by_user else [None] * len(rows)
    _acting(data, columns, key, person, [EITHER if user else "" for user in subjects])
    tables.show(data, columns, f"Who spent most tokens {window.phrase}, and how unusual that is")
    _follow(key, [row.organization_id for row in rows], subjects)


def beyond(found: Page[AbuseRow], person: Person, window: Window, context: Context) -> None:
    """People beyond a limit, with what they did and the way to stop it."""
    rows = found.rows
    if not rows:
        cards.empty(f"Nobody went beyond a limit {window.phrase}.", ":material/thumb_up:")
        return
    with st.container(border=True):
        st.markdown("**People beyond a limit**")
        st.caption(
            "Who passed a limit of their organization, or of everyone, whether it was enforced on"
            " them or not. Peaks are of any 60 minutes and any 60 seconds."
        )
        _abuse(found, person, context)


def _abuse(found: Page[AbuseRow], person: Person, context: Context) -> None:
    rows = found.rows
    names = ["user", "organization", "peak_hour_tokens", "peak_minute_requests", "rate_limited"]
    data = tables.frame(rows, names, context)
    data["over"] = [", ".join(OVER.get(one, one) for one in row.over) for row in rows]
    data["state"] = ["AI paused" if row.paused_at else "Active" for row in rows]
    columns: dict[str, Any] = {
        "organization": links.column("abuse"),
        "user": "Person",
        "over": st.column_config.TextColumn("Too much of", width=190),
        "peak_hour_tokens": tables.number("Peak hour", note="Most tokens in any 60 minutes."),
        "peak_minute_requests": tables.number("Peak minute", note="Most requests in 60 seconds."),
        "rate_limited": tables.number("Refused", note="As too many requests."),
        "state": "State",
    }
    ids, users = [row.organization_id for row in rows], [row.user_id for row in rows]
    _acting(data, columns, "abuse", person, [RESUME if r.paused_at else PAUSE for r in rows])
    tables.show(data[list(columns)], columns, "People beyond a limit of theirs")
    _follow("abuse", ids, users)
    if found.total > len(rows):
        st.caption(f"The first {len(rows)} of {fmt.number(found.total)}.")


def refused(rows: Sequence[FrequentRefusal], who: Who, window: Window, context: Context) -> None:
    """Who was refused most often, and by what."""
    if not rows:
        cards.empty(f"Nobody was refused {window.phrase}.", ":material/thumb_up:")
        return
    columns = {
        "organization": links.column("refused"),
        **({"user": "Person"} if who == "user" else {"plan": "Plan"}),
        "refusals": tables.number("Refusals"),
        "insufficient_tokens": tables.number("Empty wallet"),
        "feature_not_in_plan": tables.number("Not in the plan"),
        "rate_limited": tables.number("Too many requests"),
        "last_at": tables.time("Last", context.zone),
    }
    with st.container(border=True):
        st.markdown(f"**{WHO[who]} often refused**")
        st.caption(
            "Empty wallets and features outside the plan speak for an upgrade; too many requests"
            " for a look at the person."
        )
        tables.draw(rows, columns, context, f"{WHO[who]} refused most often {window.phrase}")
    links.follow("refused", [row.organization_id for row in rows], view="Refusals")


def unusual(row: Spender) -> str:
    """How a spender's day compares with its own past: 3.1 × its usual day."""
    if row.new:
        return "New: nothing before"
    usual = median(row.daily[:BASELINE_DAYS])
    mark = "⚠ Unusual: " if odd(row) else ""
    if not usual:
        return f"{mark}idle on most days before"
    return f"{mark}{fmt.tenths(row.tokens / max(row.days, 1.0) / usual)} × its usual day"


def odd(row: Spender) -> bool:
    """Whether that is far above its own past."""
    return row.unusual is not None and row.unusual > UNUSUAL_FROM


def trend(row: Spender) -> list[int]:
    """Its last whole days, without the one that is not over."""
    whole = row.daily if float(row.days).is_integer() else row.daily[:-1]
    return list(whole[-BASELINE_DAYS:])


def _acting(
    data: Any, columns: dict[str, Any], key: str, person: Person, pauses: Sequence[str]
) -> None:
    # Drawn for admins only; the database decides when they confirm.
    if person.role != "admin":
        return
    if any(pauses):
        data["pause"] = list(pauses)
        columns["pause"] = tables.action(f"{key}_pause", "The person")
    data["throttle"] = THROTTLE
    columns["throttle"] = tables.action(f"{key}_throttle", "Everyone in it")


def _follow(key: str, organizations: Sequence[UUID], users: Sequence[UUID | None]) -> None:
    for action, name in (("user", f"{key}_pause"), (throttle.ACTION, f"{key}_throttle")):
        row = tables.clicked(name, list(zip(organizations, users, strict=True)))
        if row is not None:
            actions.ask(action, row[0], row[1] if action == "user" else None)
    links.follow(key, organizations)
