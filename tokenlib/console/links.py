"""The way from a row to its organization: a name in any table is a button that opens it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn
from uuid import UUID

import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console import process
from tokenlib.errors import InvalidInput
from tokenlib.reports import Reports
from tokenlib.reports.organizations import OrganizationRow

PAGE = "organization.py"
ID = "id"
"""The query parameter that says which organization the page is about."""
KEPT = "filters_kept"


def column(key: str, label: str = "Organization") -> Any:
    """A column of organization names that open their organization; `follow` the same key after."""
    return st.column_config.ButtonColumn(
        label, type="tertiary", alignment="left", pinned=True, key=key
    )


def follow(key: str, ids: Sequence[UUID], **query: str) -> None:
    """Open the organization whose name was clicked in the table with this key. `ids` by row."""
    click = st.session_state.get(key)
    if click is not None and 0 <= click["row"] < len(ids):
        organization(ids[click["row"]], **query)


def organization(organization_id: UUID, **query: str) -> NoReturn:
    """Go to an organization; `query` sets more of its page, such as view="Refusals".

    The browser's Back finds this page with the organization's query instead of its own, so its
    filters are kept for `returned`.
    """
    st.session_state[KEPT] = st.query_params.to_dict()
    st.switch_page(process.pages_folder() / PAGE, query_params={ID: str(organization_id), **query})


def returned(page: str) -> None:
    """Put a page's filters back when somebody came back to it. Call before its widgets."""
    if ID in st.query_params:
        kept = st.session_state.get(KEPT, {})
        st.switch_page(process.pages_folder() / page, query_params=kept)


def back(label: str = "All organizations") -> None:
    """A link to the list."""
    st.page_link(
        process.pages_folder() / "organizations.py",
        label=label,
        icon=":material/arrow_back:",
    )


def asked(reports: Reports) -> OrganizationRow:
    """The organization that the address names. Says why not and ends the page when it names none.

    Somebody else's or a deleted organization looks like none.
    """
    text = st.query_params.get(ID, "").strip()
    try:
        row = reports.organization(text) if text else None
    except InvalidInput:
        row = None
    if row is None:
        back()
        problem = "Choose an organization in the list, or open a link that names one."
        if text:
            problem = f"No organization has the id {fmt.plain(text[:80])}, or you may not see it."
        st.info(problem, title="Which organization?", icon=":material/search:")
        st.stop()
    return row
