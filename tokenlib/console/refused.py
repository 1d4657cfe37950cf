"""Why requests of an organization were refused, and whether one would be refused now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console import ranges, reply, tables, verdict
from tokenlib.console.actions import Desk
from tokenlib.reports.refusals import RefusalRow

REFUSAL = "refusal"
"""The query parameter that says which refusal is answered."""
CLICK = "refusal_reply"


def draw(desk: Desk) -> None:
    """The refusals with their rules and numbers, the verdict of now, and a reply to each."""
    window = ranges.choose(desk.context.now)
    rows = desk.person.reports.refusals(window.since, window.until, desk.organization_id)
    if rows:
        table(rows, desk)
    else:
        st.caption(f"No request was refused {window.phrase}.")
    zone = reply.choose_zone(desk)
    left, right = st.columns(2)
    if rows:
        row = chosen(rows)
        with left, st.container(border=True, height="stretch"):
            st.markdown("**Why was it refused?**")
            st.markdown(label(row, desk))
            reply.draw(desk, row, row.feature, zone)
    with right if rows else left, st.container(border=True, height="stretch"):
        asked = verdict.draw(desk)
        if asked is not None:
            reply.draw(desk, asked[1], asked[0], zone)


def chosen(rows: Sequence[RefusalRow]) -> RefusalRow:
    """The refusal that the URL names; the latest when it names none of these."""
    named = st.query_params.get(REFUSAL)
    return next((row for row in rows if name(row) == named), rows[0])


def name(row: RefusalRow) -> str:
    """A refusal in the URL. One line is one user, feature, rule and minute."""
    return f"{row.first_at.astimezone(UTC).isoformat()}~{row.user_id}~{row.feature}~{row.rule}"


def label(row: RefusalRow, desk: Desk) -> str:
    """A refusal in one line."""
    context = desk.context
    why = "; ".join(part for part in (tables.word(row.rule).lower(), because(row)) if part)
    return fmt.plain(
        f"{context.time(row.last_at)} · {row.user} · {context.feature(row.feature)} · {why}"
    )


def table(rows: Sequence[RefusalRow], desk: Desk) -> None:
    """Each refusal with the rule and the numbers that caused it, and the way to its reply."""
    names = ["last_at", "user", "feature", "rule", "count"]
    data = tables.frame(rows, names, desk.context)
    data.insert(4, "because", [because(row) for row in rows])
    data["action"] = "Reply"
    tables.show(
        data,
        {
            "last_at": tables.time("When", desk.context.zone),
            "user": "Person",
            "feature": "Feature",
            "rule": "Why",
            "because": "Because",
            "count": tables.number("Times", note="Within one minute."),
            "action": tables.action(CLICK),
        },
        "Refused requests with the rule and its numbers, the latest first",
    )
    if (row := tables.clicked(CLICK, rows)) is not None:
        st.query_params[REFUSAL] = name(row)


def because(row: RefusalRow) -> str:
    """The numbers of a refusal in a few words."""
    data: Mapping[str, Any] = row.data
    words = ""
    match row.rule:
        case "insufficient_tokens":
            words = f"needed {fmt.number(row.needed or 0)}, had {fmt.number(row.available or 0)}"
        case "feature_not_in_plan":
            words = f"on the {data.get('plan') or 'present'} plan"
        case "rate_limited" if "limit" in data:
            words = f"{str(data['limit']).replace('_', ' ')}: {data.get('allowed')} allowed"
        case "failed_attempt":
            words = str(data.get("problem") or "")
    if data.get("mode") is not None:
        words = f"{words}; let through by the switch".lstrip("; ")
    return words
