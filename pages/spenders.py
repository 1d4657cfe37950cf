"""Who spends most, how unusual that is, who goes beyond a limit; to pause or throttle from here."""

from __future__ import annotations

from datetime import UTC

import streamlit as st

from tokenlib.console import cards, heavy, ranges, session, throttle

TOP = 10

person = session.require(*session.STAFF)
reports = person.reports
context = session.context(reports)

cards.fresh(context)
with st.container(horizontal=True, vertical_alignment="center"):
    window = ranges.choose_any(context.now, context.zone, "24h")
    chosen = heavy.choose_list()
    who = heavy.choose() if chosen != "beyond" else "user"
throttle.done(person, context)

# In UTC: a day of spending is 24 hours, also when the clocks change.
since, until = window.since.astimezone(UTC), window.until.astimezone(UTC)
match chosen:
    case "beyond":
        with st.skeleton(height=420):
            beyond = reports.abuse(since, until)
        heavy.beyond(beyond, person, window, context)
    case "refused":
        with st.skeleton(height=420):
            limited = reports.frequent_refusals(since, until, TOP, by=who)
        heavy.refused(limited, who, window, context)
    case _:
        with st.skeleton(height=420):
            total = reports.usage_totals(since, until).tokens
            before = reports.usage_totals(window.before.since, window.before.until).tokens
            rows = reports.spenders(since, until, who, TOP)
        heavy.figures(rows, total, before, window)
        heavy.spenders(rows, who, person, window, context)

throttle.draw(person, context)
