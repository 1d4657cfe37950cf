"""How it goes: the figures, what needs somebody now, what moved, and what is charged right now."""

from __future__ import annotations

from datetime import timedelta

import streamlit as st

from tokenlib.console import cards, charts, glance, process, ranges, session, shapes
from tokenlib.console import format as fmt

person = session.require(*session.STAFF)
reports = person.reports
context = session.context(reports)

cards.fresh(context)
window = ranges.choose_any(context.now, context.zone)
zone, step = str(context.zone), window.steps[0]

with st.skeleton(height=190):
    found = reports.overview(window.since, window.until, zone)
glance.figures(found, window)

with st.container(border=True, gap="xxsmall"):
    st.markdown("**Needs attention now**")
    with st.skeleton(height=200):
        glance.attention(reports.attention(), context)

with st.container(border=True):
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        st.markdown(f"**Tokens charged per {step}, by feature**", width="content")
        st.page_link(
            process.pages_folder() / "usage.py",
            label="Open in Usage",
            icon=":material/monitoring:",
            query_params=ranges.query(),
        )
    with st.skeleton(height=charts.HEIGHT):
        rows = reports.usage_series(window.since, window.until, "feature", step, zone)
    if rows:
        names = shapes.titles(rows)
        frame, labels, groups = shapes.bars(rows, window, step, context.zone, names, len(names))
        charts.stacked(
            frame,
            labels,
            groups,
            f"Tokens charged {window.phrase}: {fmt.number(round(found.tokens.value))} in all,"
            f" {groups[0]} leads. Usage has the figures as a table.",
            fixed=context.features,
        )
        st.caption(f"Times of {context.zone}. Weaker bars are cut by the range or not over yet.")
    else:
        cards.empty(f"No AI feature was used {window.phrase}. Choose a longer time.")

with st.skeleton(height=560):
    movers = reports.movers(zone)
    grown, before = (
        reports.usage_series(movers.since - back, context.now - back, "feature", "week", zone)
        for back in (timedelta(0), timedelta(days=7))
    )
st.markdown(f"#### Since {movers.since:%A}, {context.date(movers.since)}")
with st.grid(2, min_column_width=330):
    with st.container(border=True, height="stretch"):
        st.markdown("**Who moved most**")
        glance.moved(movers, context)
    with st.container(border=True, height="stretch"):
        st.markdown("**Which feature grew most**")
        glance.grown(grown, before)
    with st.container(border=True, height="stretch"):
        st.markdown("**Who is running out**")
        glance.run_outs(movers, context)
    with st.container(border=True, height="stretch"):
        st.markdown("**Who should be offered an upgrade**")
        glance.upgrades(movers, context)

with st.container(border=True):
    st.markdown("**Charged right now**")
    glance.strip()
