"""The dialogs of the health view: settle a finding, release a hold that has expired."""

from __future__ import annotations

from uuid import UUID

import pandas as pd
import streamlit as st

from tokenlib.console import actions, checks, desk, dialogs, session, tables
from tokenlib.console import format as fmt
from tokenlib.console.actions import Desk
from tokenlib.console.format import Context
from tokenlib.console.session import Person


def draw(person: Person, context: Context) -> None:
    """Open the dialog that was asked for on this page, if any."""
    asked = st.session_state.get(actions.OPEN)
    if not isinstance(asked, actions.Asked):
        return
    here = _desk(person, context, asked.organization_id)
    match asked.action, asked.subject:
        case checks.SETTLE, UUID() as finding if here:
            settle(here, finding)
        case checks.RELEASE, UUID() as hold if here:
            dialogs.release(here, hold)
        case _:
            actions.close()


def done(person: Person, context: Context) -> None:
    """What was just done here, with its entry."""
    last = st.session_state.get(actions.DONE)
    if isinstance(last, actions.Done) and (here := _desk(person, context, last.organization_id)):
        desk.done(here)


def _desk(person: Person, context: Context, organization_id: UUID | None) -> Desk | None:
    row = person.reports.organization(organization_id) if organization_id else None
    return Desk(person, row, context) if row else None


@st.dialog("Settle a finding", icon=":material/task_alt:", on_dismiss=actions.close)
def settle(here: Desk, finding: UUID) -> None:
    """Say how a finding was settled; that is its entry."""
    row = next((row for row in here.person.reports.findings(False) if row.id == finding), None)
    if row is None:
        st.info("This finding is settled already.", icon=":material/task_alt:")
        return
    st.markdown(
        f"**{tables.word(row.kind)}**, {fmt.plain(row.organization)},"
        f" {here.context.token_type(row.token_type).lower()}"
    )
    st.markdown(fmt.plain(row.detail))
    st.markdown("As adoption found it")
    lines = [(name.replace("_", " ").capitalize(), str(row.found[name])) for name in row.found]
    tables.show(
        pd.DataFrame(lines, columns=["figure", "value"]),
        {"figure": "Figure", "value": "Value"},
        "The wallet's figures when it was adopted",
    )
    with st.container(border=True, gap="small"):
        st.markdown("**What it changes**")
        st.caption(
            "The finding is closed by an entry with your reason. No balance moves: grant or refund"
            " first if the customer should have another one."
        )
    actions.confirm(
        here,
        "Settle",
        lambda reason: session.tokens().staff_settle_finding(
            here.person.user_id, here.organization_id, finding, reason=reason
        ),
        "Finding settled.",
    )
