"""A member's own organization: what is left, what used it, and what was refused. Phone first."""

from __future__ import annotations

from datetime import timedelta

import streamlit as st

from tokenlib.console import cards, consumption, notices, refusals, session, tables

PERIOD = timedelta(days=30)

person = session.require("member")
reports = person.reports
context = session.context(reports)
organization = person.organization_id and reports.organization(person.organization_id)
if not organization:
    cards.empty("You belong to no organization yet. Ask your administrator to add you.")
    st.stop()

cards.organization(organization)
cards.fresh(context)
with st.skeleton(height=420):
    wallets = reports.wallets(organization.organization_id)
    if organization.level == "none":
        st.info(
            refusals.offer(context.catalog), title="Upgrade to use AI", icon=":material/upgrade:"
        )
    notices.draw(organization, wallets, context)
    cards.wallets(wallets, context)
    if organization.level != "none":
        notices.outlook(reports.run_outs(PERIOD).rows, wallets, context)

st.markdown("#### What used it")
with st.skeleton(height=320):
    consumption.draw(reports, organization.organization_id, context)

refused = st.expander("What was refused", icon=":material/block:", on_change="rerun", key="refused")
if refused.open:
    with refused:
        rows = reports.refusals(context.now - PERIOD, context.now, limit=50)
        if rows:
            tables.refused(rows, context)
        else:
            st.caption("No request was refused in the last 30 days.")
entries = st.expander("Latest entries", icon=":material/list:", on_change="rerun", key="entries")
if entries.open:
    with entries:
        latest = reports.ledger(organization.organization_id, limit=25)
        if latest:
            tables.ledger(latest, context)
        else:
            st.caption("No entry yet.")
