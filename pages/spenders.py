"""Who spends most, how unusual that is, who goes beyond a limit; to pause or throttle from here."""

from __future__ import annotations

from datetime import UTC

import streamlit as st

from tokenlib.console import cards, heavy, ranges, session, tables, throttle

TOP = 10

person = session.require(*session.STAFF)
reports = person.reports
context = session.context(reports)

cards.fresh(context)
with st.container(horizontal=True, vertical_alignment="center"):
    window = ranges.choose_any(context.now, context.zone, "24h")
    who = heavy.choose()
throttle.done(person, context)

# In UTC: a day of spending is 24 hours, also when the clocks change.
since, until = window.since.astimezone(UTC), window.until.astimezone(UTC)
with st.skeleton(height=420):
    total = reports.usage_totals(since, until).tokens
    before = reports.usage_totals(window.before.since, window.before.until).tokens
    rows = reports.spenders(since, until, who, TOP)

if not rows:
    cards.empty(f"Nobody used a token {window.phrase}. Choose a longer time.")
else:
    heavy.figures(rows, total, before, window)
    with st.container(border=True):
        st.markdown(f"**{heavy.WHO[who]} by tokens used**")
        heavy.ranking(rows, who, window, context)
        heavy.table(rows, who, person, window, context)

with st.container(border=True):
    st.markdown("**Beyond a limit**")
    st.caption(
        "People who passed a limit of their organization, or of everyone, whether it was enforced"
        " on them or not. Peaks are of any 60 minutes and any 60 seconds."
    )
    with st.skeleton(height=200):
        beyond = reports.abuse(since, until, every_limit=True)
    if beyond.rows:
        heavy.abuse(beyond, person, context)
    else:
        cards.empty(f"Nobody went beyond a limit {window.phrase}.", ":material/thumb_up:")

with st.container(border=True):
    st.markdown(f"**{heavy.WHO[who]} often refused**")
    st.caption(
        "Empty wallets and features outside the plan speak for an upgrade; too many requests for a"
        " look at the person."
    )
    limited = reports.frequent_refusals(since, until, TOP, by=who)
    if not limited:
        cards.empty(f"Nobody was refused {window.phrase}.", ":material/thumb_up:")
    else:
        tables.draw(
            limited,
            {
                **({"user": "Person"} if who == "user" else {}),
                "organization": "Organization",
                "plan": "Plan",
                "refusals": tables.number("Refusals"),
                "insufficient_tokens": tables.number("Empty wallet"),
                "feature_not_in_plan": tables.number("Not in the plan"),
                "rate_limited": tables.number("Too many requests"),
                "last_at": tables.time("Last", context.zone),
            },
            context,
            f"{heavy.WHO[who]} refused most often {window.phrase}",
        )

throttle.draw(person, context)
