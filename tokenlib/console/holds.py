"""What is held right now, and the grants that the balance is made of."""

from __future__ import annotations

import streamlit as st

from tokenlib.console import actions, tables
from tokenlib.console.actions import Desk

CLICK = "holds_action"


def draw(desk: Desk) -> None:
    """Open holds, then grants."""
    st.markdown("**Open holds**")
    held(desk)
    st.markdown("**Grants**")
    granted(desk)


def held(desk: Desk) -> None:
    """Open holds with who and how long, each with its release."""
    rows = desk.person.reports.reservations(organization_id=desk.organization_id)
    if not rows:
        st.caption("Nothing is held: no request runs now.")
        return
    names = ["user", "feature", "token_type", "tokens", "created_at", "age", "expires_at"]
    data = tables.frame(rows, names, desk.context)
    data["age"] = [row.age.total_seconds() for row in rows]
    data["state"] = ["Past its expiry" if row.expired else "Runs" for row in rows]
    data["action"] = "Release"
    tables.show(
        data,
        {
            "user": "Person",
            "feature": "Feature",
            "token_type": "Token type",
            "tokens": tables.number("Tokens held"),
            "created_at": tables.time("Since", desk.context.zone),
            "age": tables.duration("Age"),
            "expires_at": tables.time("Ends by itself", desk.context.zone),
            "state": "State",
            "action": tables.action(CLICK),
        },
        "Tokens held by requests that have not ended, the oldest first",
    )
    if (row := tables.clicked(CLICK, rows)) is not None:
        actions.ask("release", desk.organization_id, row.id)


def granted(desk: Desk) -> None:
    """What the balance is made of, in the order in which it is used."""
    ended = st.toggle("Also ended ones", key="ended", bind="query-params")
    rows = desk.person.reports.grants(desk.organization_id, closed=ended)
    if not rows:
        st.caption("No grant yet.")
        return
    context = desk.context
    names = ["token_type", "kind", "source", "amount", "remaining", "effective_at", "expires_at"]
    data = tables.frame(rows, names, context)
    data["state"] = [
        "Ended" if row.closed_at else "Open" if row.arrived_at else "Scheduled" for row in rows
    ]
    data["reason"] = [row.reason for row in rows]
    tables.show(
        data,
        {
            "token_type": "Token type",
            "kind": "Kind",
            "source": "Source",
            "amount": tables.number("Tokens"),
            "remaining": tables.number("Left"),
            "effective_at": tables.time("From", context.zone),
            "expires_at": tables.time("Expires", context.zone),
            "state": "State",
            "reason": st.column_config.TextColumn("Reason", width=200),
        },
        "Grants in the order in which they are used",
    )
