"""What a view of use is narrowed to: feature, plan, organization, person. All of it in the URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.reports import Reports

ORGANIZATION = "organization"
USER = "user"
BAR = "bar"
PLACE = "before"
"""Query parameters: who, which bar of the chart, and from which row on."""

_FOUND = 6
_PEOPLE = 20


@dataclass(frozen=True, slots=True)
class Narrowed:
    """What was chosen; None leaves a question open. The names are those to show."""

    feature: str | None
    plan: str | None
    organization_id: UUID | None
    user_id: UUID | None
    organization: str = ""
    user: str = ""


def choose(reports: Reports, context: Context) -> Narrowed:
    """Draw the filters, beside each other, and return what was chosen."""
    features = list(context.catalog.features)
    feature = st.selectbox(
        "Feature",
        features,
        index=None,
        key="feature",
        bind="query-params",
        placeholder="Every feature",
        format_func=context.feature,
        label_visibility="collapsed",
        width=200,
    )
    plan = st.selectbox(
        "Plan",
        context.catalog.plans,
        index=None,
        key="plan",
        bind="query-params",
        placeholder="Every plan",
        format_func=str.capitalize,
        label_visibility="collapsed",
        width=150,
    )
    organization_id, user_id = _id(ORGANIZATION), _id(USER)
    row = reports.organization(organization_id) if organization_id else None
    if organization_id is None or row is None:
        _find(reports)
        return Narrowed(feature, plan, organization_id, None, str(organization_id or ""))
    _chip(row.name, ORGANIZATION, USER)
    person = ""
    members = {member.user_id: member.user for member in reports.members(organization_id)}
    if user_id is None:
        _people(organization_id, members)
    else:
        person = members.get(user_id, str(user_id))
        _chip(person, USER)
    return Narrowed(feature, plan, organization_id, user_id, row.name, person)


def to(organization_id: UUID, user_id: UUID | None = None) -> None:
    """Narrow to an organization, or to one person in it, with the next run."""
    clear(USER, BAR)
    who = {ORGANIZATION: organization_id, **({USER: user_id} if user_id else {})}
    # Both in one step, so that one step back takes both away.
    st.query_params.update({name: str(one) for name, one in who.items()})


def clear(*names: str) -> None:
    """Take these out of the URL, and the page of the rows, which belongs to them."""
    for name in (*names, PLACE):
        if name in st.query_params:
            del st.query_params[name]


@st.fragment
def _find(reports: Reports) -> None:
    # A fragment: what is typed here asks nothing of the page around it, until it is chosen.
    with st.popover("Organization", icon=":material/domain:"):
        search = st.text_input(
            "Find an organization",
            key="find_organization",
            type="search",
            live="300ms",
            placeholder="Name, member e-mail or id",
        )
        found = reports.organizations(search, limit=_FOUND).rows
        for row in found:
            if st.button(fmt.plain(row.name), key=f"narrow_{row.organization_id}", type="tertiary"):
                to(row.organization_id)
                st.rerun()
        if not found:
            st.caption("No organization matches.")


def _people(organization_id: UUID, members: Mapping[UUID, str]) -> None:
    with st.popover("Person", icon=":material/person:"):
        for user_id, name in list(members.items())[:_PEOPLE]:
            st.button(
                fmt.plain(name),
                key=f"narrow_{user_id}",
                type="tertiary",
                on_click=to,
                args=(organization_id, user_id),
            )
        if len(members) > _PEOPLE:
            st.caption(f"Those who used most of {fmt.number(len(members))}.")


def _chip(name: str, *parameters: str) -> None:
    st.button(
        fmt.plain(name),
        key=f"clear_{parameters[0]}",
        icon=":material/close:",
        help="Show everyone again",
        on_click=clear,
        args=(*parameters, BAR),
    )


def _id(name: str) -> UUID | None:
    try:
        return UUID(st.query_params.get(name, ""))
    except ValueError:
        return None
