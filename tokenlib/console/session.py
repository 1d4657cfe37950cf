"""Who is signed in, and what they may ask. Every page begins with `require`.

The session keeps the name of a persona, or the id found for an e-mail address, and nothing else:
what that person may do is read from the database in every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo
from typing import Literal
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st

from tokenlib import demo
from tokenlib.console import signin
from tokenlib.console.format import Context
from tokenlib.console.process import gate
from tokenlib.console.signin import ADVICE, Closed, Identity, SignedOut
from tokenlib.db import statements
from tokenlib.reports import Reports, Viewer
from tokenlib.tokens import Tokens

Role = Literal["admin", "support", "member"]
STAFF: tuple[Role, ...] = ("admin", "support")
EVERYBODY: tuple[Role, ...] = ("admin", "support", "member")

PERSONA = "persona"
"""The session's one entry about who somebody is: a persona of the demo mode."""

AS = "as"
"""The query parameter by which the demo mode's persona outlives a reload, on every page."""

SUBJECT = "subject"
"""Whom the e-mail address was found to mean: an id, which gives nothing unless it still does."""

UNTIMED = "untimed"
"""Set by work that somebody asked for and knows to take long: it says nothing about a page."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody signed in, as the database knows them. Staff belong to no organization."""

    user_id: UUID
    role: Role
    name: str
    organization_id: UUID | None

    @property
    def viewer(self) -> Viewer:
        """How this person reads: as staff or as a member, under row-level security."""
        return Viewer(self.user_id, "authenticated" if self.role == "member" else "tokenlib_reader")

    @property
    def reports(self) -> Reports:
        """Every read-only question, answered with what this person may see."""
        return Reports(tokens().database, self.viewer)


def tokens() -> Tokens:
    """The gate of this process. Raises SignedOut once the session is over.

    Dialogs and other fragments run without the frame, so it is asked here, too.
    """
    settings = gate.settings().sign_in
    if settings is not None and isinstance(closed := signin.identity(settings), Closed):
        raise SignedOut(f"{closed.value}. {ADVICE[closed]}")
    return gate.tokens()


def demo_mode() -> bool:
    """Whether people choose who they are: on the bundled database, without a sign-in."""
    return gate.settings().demo_people


def current() -> Person | None:
    """Who is signed in, asked of the database. None for nobody and for strangers."""
    found = somebody()
    return found if isinstance(found, Person) else None


def somebody() -> Person | Closed:
    """Who is signed in, asked of the database, or why nobody is."""
    settings = gate.settings()
    if settings.sign_in is not None:
        identity = signin.identity(settings.sign_in)
        if isinstance(identity, Closed):
            return identity
        signin.tell_claims(settings.sign_in, identity)
        person = _person(identity)
        if isinstance(person, Person) and signin.elsewhere(person.user_id):
            return Closed.ELSEWHERE
        return person
    if not settings.demo_people:
        return Closed.NO_SIGN_IN
    persona = demo.PERSONAS.get(str(st.session_state.get(PERSONA)))
    if persona is None:
        return Closed.SIGNED_OUT
    return known(persona.user_id) or Closed.NO_ROLE


def _person(identity: Identity) -> Person | Closed:
    """Whom the database knows by this identity."""
    if identity.user_id is not None:
        return known(identity.user_id) or Closed.UNKNOWN
    email = str(identity.email)
    kept = st.session_state.get(SUBJECT)
    if isinstance(kept, UUID) and (person := known(kept, email)):
        return person
    rows = gate.tokens().database.rows(statements("system")["by_email"], {"email": email})
    # The staff's table goes first: what stands in the tenants' cannot make its people ambiguous.
    ids = {row["user_id"] for row in rows if row["staff"]} or {row["user_id"] for row in rows}
    if len(ids) > 1:
        return Closed.AMBIGUOUS
    st.session_state[SUBJECT] = found = next(iter(ids), None)
    return (found and known(found, email)) or Closed.UNKNOWN


def known(user_id: UUID, email: str | None = None) -> Person | None:
    """The person whom the database knows under this id, and with this e-mail address if it says so.

    Of staff the address is the staff's table's: a tenant's row that bears the id of staff and an
    address of its own is nobody.
    """
    rows = gate.tokens().database.rows(
        statements("system")["whoami"], reader="authenticated", user_id=user_id
    )
    if not rows:
        return None
    row = rows[0]
    if email is not None and not signin.same(row["email"], email):
        return None
    return Person(
        user_id=row["user_id"],
        role=row["staff_role"] or "member",
        name=row["full_name"] or row["email"] or "A member",
        organization_id=None if row["staff_role"] else row["organization_id"],
    )


def require(*roles: Role) -> Person:
    """The person signed in, if they have one of these roles; else say so and end the page."""
    person = current()
    if person is None:
        st.info("Open the console at its start page to sign in.", title="Sign-in needed")
        st.stop()
    if person.role not in roles:
        wanted = " and ".join(f"{role}s" if role != "support" else role for role in roles)
        st.warning(f"This page is for {wanted}.", title="Not for you", icon=":material/lock:")
        st.stop()
    return person


def context(reports: Reports) -> Context:
    """What this reader's figures are read against."""
    catalog = tokens().catalog()
    titles = tokens().database.rows(statements("catalog")["token_types"])
    return Context(
        reports.now(), timezone(), catalog, {row["token_type"]: row["title"] for row in titles}
    )


def timezone() -> tzinfo:
    """The reader's time zone, as the browser tells it; UTC where it does not."""
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")
