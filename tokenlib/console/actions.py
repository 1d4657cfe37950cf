"""What every action of staff has around it: a dialog that stays open, a preview, a reason, a
confirmation, and the entry afterwards.

Which dialog is open lies in the session, so that it outlives the rerun of a widget in it. What it
says gives no right: each verb takes the person signed in, and the database decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import pandas as pd
import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console import refusals, tables
from tokenlib.console.format import Context
from tokenlib.console.session import Person
from tokenlib.domain import Balance, Preview
from tokenlib.errors import TokenlibError
from tokenlib.reports.organizations import OrganizationRow

OPEN = "action"
DONE = "action_done"
REASON = "action_reason"


@dataclass(frozen=True, slots=True)
class Asked:
    """A dialog that somebody opened: what it does, for whom (None: everyone), to what."""

    action: str
    organization_id: UUID | None
    subject: UUID | str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What was done last, and from when on its entry is found. `secret` is to be shown once."""

    organization_id: UUID | None
    since: datetime
    sentence: str
    secret: str | None = field(default=None, repr=False)


class Place(Protocol):
    """Where somebody acts: on an organization, or (None) on what holds for everyone."""

    @property
    def person(self) -> Person: ...
    @property
    def organization_id(self) -> UUID | None: ...
    @property
    def context(self) -> Context: ...


@dataclass(frozen=True, slots=True)
class Desk:
    """Who acts on which organization."""

    person: Person
    organization: OrganizationRow
    context: Context

    @property
    def organization_id(self) -> UUID:
        """The organization's id."""
        return self.organization.organization_id

    @property
    def admin(self) -> bool:
        """Whether the person is an admin: decides which buttons are drawn, and nothing else."""
        return self.person.role == "admin"


def ask(action: str, organization_id: UUID | None, subject: UUID | str | None = None) -> None:
    """Open a dialog with the next run."""
    st.session_state[OPEN] = Asked(action, organization_id, subject)
    st.session_state.pop(DONE, None)


def asked(place: Place) -> Asked | None:
    """The dialog that is open for this organization."""
    found = st.session_state.get(OPEN)
    if isinstance(found, Asked) and found.organization_id == place.organization_id:
        return found
    return None


def close() -> None:
    """No dialog is open."""
    st.session_state.pop(OPEN, None)


def leave() -> None:
    """Another page: what was open or done on the last one is over."""
    st.session_state.pop(OPEN, None)
    st.session_state.pop(DONE, None)


def secret(place: Place) -> str | None:
    """The secret that the last action made, until it was shown."""
    last = st.session_state.get(DONE)
    if isinstance(last, Done) and last.organization_id == place.organization_id:
        return last.secret
    return None


def secret_shown() -> None:
    """Forget the secret; what was done stays on the page."""
    last = st.session_state.get(DONE)
    if isinstance(last, Done):
        st.session_state[DONE] = replace(last, secret=None)


def preview(rehearse: Callable[[], Preview], context: Context) -> bool:
    """Draw what an action would do to the balances. False when it would be refused."""
    try:
        effect = rehearse()
    except TokenlibError as error:
        refusals.problem(error)
        return False
    with st.container(border=True, gap="small"):
        st.markdown("**What it changes**")
        if effect.changed:
            lines = [_change(before, after, context) for before, after in effect.changed]
            data = pd.DataFrame(lines, columns=["type", "now", "then"])
            tables.show(
                data,
                {"type": "Token type", "now": "Now", "then": "Afterwards"},
                "Balances before and after the action",
            )
        else:
            st.caption("No balance changes.")
        if effect.text:
            st.caption(effect.text)
    return True


@st.fragment
def confirm(place: Place, label: str, act: Callable[[str], Any], sentence: str) -> None:
    """Ask why, and on confirmation act; then close the dialog and keep what to show.

    `act` takes the reason; text that it returns is a secret, to be shown once. An error of the
    database is shown in the dialog, and nothing is done. A fragment: to write the reason does not
    ask for the preview again.
    """
    reason = st.text_input(
        "Reason",
        key=REASON,
        max_chars=300,
        placeholder="For the record, and for whoever asks later",
        live="300ms",
    )
    if not st.button(label, type="primary", key="action_confirm", width="stretch"):
        return
    try:
        since = place.person.reports.now()
        made = act(reason or "")
    except TokenlibError as error:
        refusals.problem(error)
        return
    close()
    st.session_state.pop(REASON, None)
    st.session_state[DONE] = Done(
        place.organization_id, since, sentence, made if isinstance(made, str) else None
    )
    st.rerun()


def _change(before: Balance | None, after: Balance, context: Context) -> tuple[str, str, str]:
    now = "—" if before is None else fmt.balance(before)
    return context.token_type(after.token_type), now, fmt.balance(after)
