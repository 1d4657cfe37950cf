"""One organization: what it has, why it was refused, what moved its balance, and what to do now."""

from __future__ import annotations

import streamlit as st

from tokenlib.console import (
    actions,
    cards,
    consumption,
    desk,
    dialogs,
    entries,
    holds,
    links,
    people,
    refused,
    session,
    story,
)

VIEWS = {
    "Story": story.draw,
    "Refusals": refused.draw,
    "Usage": consumption.view,
    "Holds and grants": holds.draw,
    "Ledger": entries.draw,
    "People": people.draw,
}

person = session.require(*session.STAFF)
reports = person.reports
context = session.context(reports)
here = actions.Desk(person, links.asked(reports), context)

cards.fresh(context)
desk.head(here)
desk.buttons(here)
desk.done(here)
with st.skeleton(height=220):
    desk.balances(here)
tabs = st.tabs(list(VIEWS), key="view", bind="query-params")
for tab, draw in zip(tabs, VIEWS.values(), strict=True):
    if tab.open:
        with tab, st.skeleton(height=320):
            draw(here)
dialogs.draw(here)
