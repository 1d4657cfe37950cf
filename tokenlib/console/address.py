"""What stands in a page's address beside what its widgets keep there: ids, and places in lists.

A name would be longer, not unique, and nobody's business in a link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import streamlit as st

PLACE = "before"
"""The query parameter that says from which row on a list is shown."""

_BETWEEN = "~"
_LARGEST = 2**63 - 1


def choice(
    label: str,
    options: Mapping[UUID, str],
    name: str,
    *,
    placeholder: str | None = None,
    width: int | None = None,
) -> UUID | None:
    """A choice among people; its id is the query parameter `name`.

    With a `placeholder` nobody may be chosen (None), else the first one is.
    """
    key = f"{name}_choice"
    first = None if placeholder else next(iter(options), None)
    asked = identifier(name)
    st.session_state[key] = asked if asked in options else first
    return st.selectbox(
        label,
        list(options),
        index=None if placeholder else 0,
        key=key,
        format_func=options.__getitem__,
        placeholder=placeholder,
        on_change=_chosen,
        args=(name, key),
        width=width or "stretch",
    )


def identifier(name: str) -> UUID | None:
    """The id that a query parameter holds; None for anything else."""
    try:
        return UUID(st.query_params.get(name, ""))
    except ValueError:
        return None


def put(name: str, value: UUID) -> None:
    """Write an id into the address."""
    st.query_params[name] = str(value)


def place(*kinds: Callable[[str], Any]) -> tuple[Any, ...] | None:
    """Where the page of a list begins, its parts read by `kinds`; None for the first page."""
    parts = st.query_params.get(PLACE, "").split(_BETWEEN)
    try:
        return tuple(kind(part) for kind, part in zip(kinds, parts, strict=True))
    except ValueError:
        return None


def first_page() -> None:
    """Another list begins at its first page."""
    if PLACE in st.query_params:
        del st.query_params[PLACE]


def turn(*parts: object) -> None:
    """Go to the page after the row that these parts name."""
    words = (
        part.astimezone(UTC).isoformat() if isinstance(part, datetime) else str(part)
        for part in parts
    )
    st.query_params[PLACE] = _BETWEEN.join(words)


def pages(key: str, begins: object, last: tuple[object, ...] | None) -> None:
    """The ways to the latest rows and to those after `last`. Back turns one page back."""
    if begins is not None:
        st.button("Latest", key=f"{key}_latest", icon=":material/first_page:", on_click=first_page)
    if last is not None:
        st.button(
            "Older", key=f"{key}_older", icon=":material/chevron_right:", on_click=turn, args=last
        )


def moment(text: str) -> datetime:
    """A time with its zone. Raises ValueError."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(text)
    return found


def position(text: str) -> int:
    """A number that the database can hold. Raises ValueError."""
    if not (text.isascii() and text.isdecimal() and int(text[:20]) <= _LARGEST):
        raise ValueError(text)
    return int(text)


def word(text: str) -> str:
    """A name such as a token type's. Raises ValueError."""
    if not text.isidentifier():
        raise ValueError(text)
    return text


def _chosen(name: str, key: str) -> None:
    first_page()
    chosen = st.session_state[key]
    if chosen is not None:
        put(name, chosen)
    elif name in st.query_params:
        del st.query_params[name]
