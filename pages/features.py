"""The other AI features of the catalog, a card each, on a small input, charged as any other."""

from __future__ import annotations

import streamlit as st

from tokenlib.console import acting, cards, notices, refusals, session, trials

person = session.require(*session.EVERYBODY)
member = acting.choose(person)
organization = acting.organization(member)
context = session.context(member.reports)

notices.state(organization)
failing = st.toggle(
    "Make the model fail",
    key="trials_failing",
    help="The model takes the request and then fails, so you see what a failure costs.",
)
names = trials.names(context)
if not names:
    cards.empty("The catalog has no other feature that can be tried here.")
elif not any(
    context.catalog.allowances.get((organization.plan or "", feature.token_type), 0) != 0
    for feature in context.catalog.features.values()
):
    st.info(refusals.offer(context.catalog), icon=":material/upgrade:")
with st.grid(2, min_column_width=330):
    for name in names:
        trials.card(member, name, context, failing)
