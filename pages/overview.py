"""How it goes: the figures, what needs somebody now, what moved, and what is charged right now."""

from __future__ import annotations

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

left, right = st.columns([3, 2])
with left, st.container(border=True, height="stretch"):
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        st.markdown(f"**Tokens per {step}, by feature**", width="content")
        st.page_link(
            process.pages_folder() / "usage.py", label="Open in Usage", icon=":material/monitoring:"
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
            f"Tokens {window.phrase}: {fmt.number(round(found.tokens.value))} in all,"
            f" {groups[0]} leads. Usage has the figures as a table.",
        )
        st.caption(f"Times of {context.zone}. Weaker bars are cut by the range or not over yet.")
    else:
        cards.empty(f"No AI feature was used {window.phrase}. Choose a longer time.")
with right, st.container(border=True, height="stretch"):
    st.markdown("**Needs attention now**")
    with st.skeleton(height=240):
        glance.attention(reports.attention(), context)

with st.skeleton(height=260):
    movers = reports.movers(zone)
st.markdown(f"#### Since {movers.since:%A}, {context.date(movers.since)}")
columns = st.columns([5, 6, 5])
for column, title, draw in zip(
    columns,
    ("What moved most", "Who is running out", "Who should hear of an upgrade"),
    (glance.moved, glance.run_outs, glance.upgrades),
    strict=True,
):
    with column, st.container(border=True, height="stretch"):
        st.markdown(f"**{title}**")
        draw(movers, context)

with st.container(border=True):
    st.markdown("**Charged right now**")
    glance.strip()
