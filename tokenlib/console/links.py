"""Ways through the console: from a row to its organization, back with its filters, to the start."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn
from uuid import UUID

import streamlit as st
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Route
from streamlit.errors import StreamlitAPIException

from tokenlib.console import format as fmt
from tokenlib.console import process, tables
from tokenlib.console.session import AS
from tokenlib.errors import InvalidInput
from tokenlib.reports import Reports
from tokenlib.reports.organizations import OrganizationRow

PAGE = "organization.py"
ID = "id"
"""The query parameter that says which organization the page is about."""
START_PAGES = ("overview", "tokens")
"""The first page of staff, and of members."""

_STEPS = """<script>
if (!window.tokenlibSteps) {
    window.tokenlibSteps = true;
    const push = history.pushState, kept = ["id", "before"];
    const places = url => [url.pathname, ...kept.map(name => url.searchParams.get(name))].join();
    history.pushState = function (state, title, to) {
        const same = places(new URL(to, location)) === places(new URL(location));
        return (same ? history.replaceState : push).call(this, state, title, to);
    };
}
</script>"""
_QUERIES = "queries_kept"
_HERE = "query_of"
_ON = "organization_on_screen"
_DUE = "query_due"


def column(key: str, label: str = "Organization") -> Any:
    """A column of organization names that open their organization; `follow` the same key after."""
    return st.column_config.ButtonColumn(
        label, type="tertiary", alignment="left", pinned=True, key=key
    )


def follow(key: str, ids: Sequence[UUID | None], **query: str) -> None:
    """Open the organization whose name was pressed in the table with this key. `ids` by row."""
    chosen = tables.clicked(key, ids)
    if chosen is not None:
        organization(chosen, **query)


def organization(organization_id: UUID, **query: str) -> NoReturn:
    """Go to an organization; `query` sets more of its page, such as view="Refusals"."""
    st.switch_page(process.pages_folder() / PAGE, query_params={ID: str(organization_id), **query})


def found(row: OrganizationRow) -> None:
    """A link to an organization, under its name."""
    st.page_link(
        process.pages_folder() / PAGE,
        label=fmt.plain(row.name),
        icon=":material/apartment:",
        query_params={ID: str(row.organization_id)},
    )


def one_step_each() -> None:
    """Make each page, and each place in a list, one step of the browser's Back.

    Streamlit pushes a step whenever the server writes the address, so a page whose filters come
    back would be three: its name, then its filters, and before them the last page without its own.
    A choice of a filter is no step either way.
    """
    st.html(_STEPS, unsafe_allow_javascript=True)


def returned(file: str) -> None:
    """Put a page's filters back when somebody comes back to it. Call before it is drawn.

    The browser's Back and the menu find a page without its query, or with the id of the
    organization that was opened from it; so the last query of each page is kept. A link that says
    what it wants wins.
    """
    kept: dict[str, dict[str, tuple[list[str], Any]]] = st.session_state.setdefault(_QUERIES, {})
    left = str(st.session_state.get(_HERE))
    query = _query()
    bare = not query or (ID in query and file != PAGE)
    if left != file:
        st.session_state[_HERE] = file
        for name, (texts, _) in kept.get(left, {}).items():  # with the value of its widget, if any
            kept[left][name] = texts, st.session_state.get(name)
        if bare and kept.get(file):
            # After Back, Streamlit holds every widget to the address, but in the first run alone.
            st.session_state[_DUE] = True
            st.rerun()
    if not st.session_state.pop(_DUE, False):
        kept[file] = {} if bare else query
        return
    if file != PAGE and ID in st.query_params:
        del st.query_params[ID]
    for name, (texts, value) in kept[file].items():
        if value is not None:
            st.session_state[name] = value
        if value is not None or name not in st.session_state:
            with suppress(StreamlitAPIException):  # of a widget still bound, which writes it itself
                st.query_params[name] = texts


def keep(file: str) -> None:
    """Keep what a page wrote into its address. Call after it was drawn.

    A filter that several pages have comes along, and stands in the address only then.
    """
    st.session_state[_QUERIES][file] = _query()


def _query() -> dict[str, tuple[list[str], Any]]:
    """What the address says of the page, without who reads it."""
    names = [name for name in st.query_params if name != AS]
    return {name: (st.query_params.get_all(name), None) for name in names}


def start_pages() -> list[Route]:
    """The start pages under names of their own, too: Streamlit answers for them only at /."""
    return [Route(f"/{name}", _to_start) for name in START_PAGES]


def _to_start(request: Request) -> RedirectResponse:
    # Relative, so that it holds behind a proxy that puts the console in a folder.
    return RedirectResponse(f"./?{request.url.query}" if request.url.query else "./")


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
    if text and st.session_state.get(_ON) != text:
        # A link from one organization to another leads to the page that is there, and the browser
        # leaves its address as it was until somebody writes it.
        st.session_state[_ON] = st.query_params[ID] = text
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
