"""Whether the books close, what is stuck or overdue, and how fast the gate answers."""

from __future__ import annotations

import streamlit as st

from tokenlib import demo
from tokenlib.console import cards, checks, legacy, session, settling, speed, verifying

person = session.require(*session.STAFF)
reports, tokens = person.reports, session.tokens()
context = session.context(reports)

cards.fresh(context)
settling.done(person, context)
books = st.container()  # first, and filled last: a verification takes its time
with st.skeleton(height=160):
    found = checks.ask(reports, context)
checks.overview(found)
checks.details(found, context, person.role == "admin")
with st.skeleton(height=420):
    speed.draw(reports, context)
if session.demo_mode() and demo.loaded(tokens):
    with st.skeleton(height=320):
        faults = demo.legacy.figures(tokens.database.url)
        people = {str(row.user_id): row.full_name for row in reports.staff()}
        legacy.draw(faults, reports.findings(), people, context)
settling.draw(person, context)
with books:
    verifying.draw(reports, context)
