"""As whom the AI features run: the member signed in, or in demo mode a member with a scenario."""

from __future__ import annotations

import uuid
from collections.abc import Hashable
from dataclasses import dataclass
from uuid import UUID

import streamlit as st

from tokenlib import demo
from tokenlib.console import process, session
from tokenlib.console.session import Person
from tokenlib.reports import Reports, Viewer
from tokenlib.reports.organizations import OrganizationRow

SCENARIO = "scenario"


@dataclass(frozen=True, slots=True)
class Member:
    """The member who runs a feature, and the organization that pays."""

    user_id: UUID
    organization_id: UUID

    @property
    def reports(self) -> Reports:
        """What this member may read."""
        return Reports(
            session.tokens().database, Viewer(user_id=self.user_id, reader="authenticated")
        )


def choose(person: Person) -> Member:
    """The member who acts on this page; in demo mode it is chosen by scenario. Draws the choice.

    Ends the page when there is nobody to act as.
    """
    user_id = person.user_id
    if session.demo_mode():
        user_id = demo.SCENARIOS[_scenario()].user_id
        acting = session.known(user_id)
    else:
        acting = person
    if acting is None or acting.organization_id is None:
        st.info(
            "AI features run for a member of an organization. Sign in as a member, or reset the"
            " demo.",
            title="Nobody to run a feature for",
        )
        st.stop()
    return Member(user_id, acting.organization_id)


def organization(member: Member) -> OrganizationRow:
    """The member's organization, as the member may see it."""
    row = member.reports.organization(member.organization_id)
    if row is None:
        st.stop()
    return row


def key_for(page: str, request: Hashable) -> str:
    """The idempotency key of a request: the same until `done`, new for another request.

    So a second click, or a click that interrupts the first, charges once.
    """
    attempt: tuple[Hashable, str] | None = st.session_state.get(f"{page}_attempt")
    if attempt is None or attempt[0] != request:
        attempt = (request, uuid.uuid4().hex)
        st.session_state[f"{page}_attempt"] = attempt
    return attempt[1]


def done(page: str) -> None:
    """The answer to a request was seen: the next one is another request."""
    st.session_state.pop(f"{page}_attempt", None)


def _scenario() -> str:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        names = list(demo.SCENARIOS)
        chosen = st.segmented_control(
            "Scenario",
            names,
            key=SCENARIO,
            bind="query-params",
            required=True,
            wrap=True,
            default=names[0],
            format_func=lambda name: demo.SCENARIOS[name].title,
            help="Whose request this is: a member of a demo organization in that state.",
        )
        with st.popover("Reset demo", icon=":material/restart_alt:", type="tertiary"):
            st.write("Put the demo data back as it was on the first day.")
            if st.button("Reset now", key="reset_demo", type="primary"):
                with st.spinner("Putting the demo data back…"):
                    demo.reset(process.owner_url(session.tokens()), session.tokens())
                st.toast("The demo data are as new.", icon=":material/check_circle:")
    return chosen
