"""Who used what and when: by feature, plan, organization or person, down to the single charge."""

from __future__ import annotations

import streamlit as st

from tokenlib.console import cards, charges, narrowing, parts, ranges, session
from tokenlib.console import format as fmt

FIGURES = (
    ("Uses", "uses", "Charges in the usage log."),
    ("Tokens charged", "tokens", "Gross: what was deducted."),
    ("Tokens refunded", "refunded", "Given back in this time, whenever they were charged."),
    ("Net tokens", "net", "Charged less refunded."),
)

person = session.require(*session.STAFF)
reports = person.reports
context = session.context(reports)

cards.fresh(context)
with st.container(horizontal=True, vertical_alignment="center"):
    window = ranges.choose_any(context.now, context.zone)
    step = ranges.choose_step(window)
with st.container(horizontal=True, vertical_alignment="center"):
    by = parts.choose()
    narrowed = narrowing.choose(reports, context)

with st.skeleton(height=110):
    now, before = (
        reports.usage_totals(
            time.since,
            time.until,
            organization_id=narrowed.organization_id,
            user_id=narrowed.user_id,
            feature=narrowed.feature,
            plan=narrowed.plan,
        )
        for time in (window, window.before)
    )
if not now.uses and not now.refunded:
    cards.empty(
        f"No AI feature was used {window.phrase} by what is chosen here. Choose a longer time, or"
        " take a filter away.",
        ":material/monitoring:",
    )
    st.stop()

with st.grid(4, min_column_width=150):
    for label, field, note in FIGURES:
        note = f"{note} The change is against {window.before.words}."
        cards.figure(label, getattr(now, field), getattr(before, field), note)
if now.waived:
    st.caption(
        f":material/info: {fmt.count(now.waived, 'token')} more waived: the emergency switch let"
        " these uses through for nothing."
    )

with st.skeleton(height=420):
    found = parts.ask(reports, window, step, by, narrowed, str(context.zone))
with st.container(border=True):
    st.markdown(f"**Tokens charged per {step}, by {parts.GROUPS[by].lower()}**")
    parts.chart(found, context)
    parts.table(found)

with st.container(border=True):
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**Charges**", width="content")
        asked = parts.inside(found, context)
    with st.skeleton(height=300):
        charges.draw(reports, asked, context)
