"""How much the HTTP API takes from an organization as a whole, and the dialog that changes it."""

from __future__ import annotations

from uuid import UUID

import pandas as pd
import streamlit as st

from tokenlib.console import actions, office, session, tables
from tokenlib.console.office import Office

LIMIT = "request_limit"
EVERYONE = "everyone"
ONE = "organization"
_CLICK = "request_limit_click"


def draw(here: Office) -> None:
    """The limit of every organization, and of each that differs."""
    st.markdown("**Limits of each organization**")
    rows = here.person.reports.request_limits()
    data = pd.DataFrame(
        [
            {
                "who": row.organization or "Each",
                "action": "Change",
                "requests_per_minute": row.requests_per_minute,
            }
            for row in rows
        ],
        columns=["who", "action", "requests_per_minute"],
    )
    columns = {
        "who": "Organization",
        "action": tables.action(_CLICK),
        "requests_per_minute": tables.number("Requests a minute"),
    }
    tables.show(data, columns, "Requests a minute from an organization, over all people and keys")
    if (row := tables.clicked(_CLICK, rows)) is not None:
        actions.ask(LIMIT, None, row.organization_id or EVERYONE)
    st.caption("For charges and holds over the API, all its people and keys together.")
    st.button(
        "Request limit for one organization",
        key="ask_request_limit",
        icon=":material/add:",
        on_click=actions.ask,
        args=(LIMIT, None, ONE),
    )


@st.dialog("Change the request limit", icon=":material/speed:", on_dismiss=actions.close)
def change(here: Office, subject: UUID | str) -> None:
    """The limit of everyone, of one organization, or (subject "organization") of one found."""
    known = {row.organization_id: row for row in here.person.reports.request_limits()}
    organization_id: UUID | None = None
    name = "each organization"
    if subject == ONE:
        found = office.find(here, "request_limit_organization")
        if found is None:
            return
        organization_id, name = found
    elif isinstance(subject, UUID):
        organization_id = subject
        own = known.get(subject)
        name = (own and own.organization) or "this organization"
    everyone = known[None].requests_per_minute
    own = known.get(organization_id)
    now = own.requests_per_minute if own else everyone
    lift = (
        organization_id is not None
        and own is not None
        and st.toggle("Back to the limit of everyone", key="request_limit_lift")
    )
    chosen = (
        None
        if lift
        else office.limit(
            "Requests a minute",
            now,
            f"request_limit_{organization_id}",
            none="No limit" if organization_id is None else "As for everyone",
        )
    )
    then = everyone if chosen is None and organization_id is not None else chosen
    if not (office.changes([("Requests a minute", office.said(now), office.said(then))]) or lift):
        return
    actions.confirm(
        here,
        f"Set for {name}",
        lambda reason: session.tokens().staff_set_request_limit(
            here.person.user_id, organization_id, chosen, reason=reason
        ),
        f"Request limit set for {name}.",
    )
