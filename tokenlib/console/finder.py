"""Find an organization from any page: by name, by id or by a member's e-mail."""

from __future__ import annotations

import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console import links
from tokenlib.console.session import Person

KEY = "find"
_FOUND = 6
_LIST = "found"
# Each found name leads to the page Organization, and Streamlit marks a link to the page on screen.
_PLAIN = f"""<style>
.st-key-{_LIST} a:not(:hover, :focus-visible) {{ background: none }}
.st-key-{_LIST} a p {{ font-weight: inherit }}
</style>"""


@st.fragment
def draw(person: Person) -> None:
    """A search field and what it finds; a name opens its organization.

    A fragment: what is typed here asks nothing of the page beside it.
    """
    search = st.text_input(
        "Find an organization",
        key=KEY,
        type="search",
        live="300ms",
        placeholder="Name, e-mail or id",
    )
    if not search:
        return
    found = person.reports.organizations(search, limit=_FOUND)
    st.html(_PLAIN)
    with st.container(key=_LIST):
        for row in found.rows:
            # A link, which the browser follows itself: while a button of a fragment waits for its
            # answer, Overview may ask for its latest charges, and Streamlit then empties the page.
            links.found(row)
    if not found.rows:
        st.caption("No organization matches.")
    elif found.total > len(found.rows):
        st.caption(f"{fmt.number(found.total - len(found.rows))} more. Type more of the name.")
