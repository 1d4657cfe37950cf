"""What used an organization's tokens: by day and feature, by feature, by person."""

from __future__ import annotations

from uuid import UUID

import streamlit as st

from tokenlib.console import charts, ranges, tables
from tokenlib.console import format as fmt
from tokenlib.console.actions import Desk
from tokenlib.console.format import Context
from tokenlib.reports import Reports


def view(desk: Desk) -> None:
    """The same as a view of the organization's page."""
    draw(desk.person.reports, desk.organization_id, desk.context)


def draw(reports: Reports, organization_id: UUID, context: Context) -> None:
    """The time range, a chart, and the two tables."""
    window = ranges.choose(context.now)
    since, until = window.since, window.until
    features = reports.usage_by_feature(since, until, organization_id)
    if not features:
        st.caption(f"Nothing was used {window.phrase}. Choose a longer time.")
        return
    people = reports.top_users(since, until, 50, organization_id)
    if window.by_day:
        days = reports.usage_by_day(
            since, until, str(context.zone), organization_id, by_feature=True
        )
        most = max(features, key=lambda row: row.tokens)
        charts.per_day(
            tables.frame(days, ["day", "feature", "uses", "tokens"], context),
            window.days(context.zone),
            context.features,
            f"Tokens per day {window.phrase}: {context.feature(most.feature)} used most, with"
            f" {fmt.count(most.tokens, 'token')}",
        )
    left, right = st.columns(2)
    with left:
        st.markdown("**By feature**")
        tables.usage(features, context)
    with right:
        st.markdown("**By person**")
        tables.draw(
            people,
            {
                "user": "Person",
                "calls": tables.number("Calls"),
                "tokens": tables.number("Tokens"),
                "share": tables.share("Share"),
            },
            context,
            f"Tokens by person {window.phrase}",
        )
