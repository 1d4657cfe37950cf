"""Where settings are changed: who acts, for everyone or for an organization found here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pandas as pd
import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console import tables
from tokenlib.console.format import Context
from tokenlib.console.session import Person

_FOUND = 20


@dataclass(frozen=True, slots=True)
class Office:
    """Who changes settings. They belong to no organization."""

    person: Person
    context: Context

    @property
    def organization_id(self) -> UUID | None:
        """Nobody's: a change of settings is looked up among those for everyone."""
        return None


def find(office: Office, key: str) -> tuple[UUID, str] | None:
    """Let somebody find an organization; its id and name once one is chosen."""
    search = st.text_input(
        "Find an organization",
        key=f"{key}_search",
        type="search",
        live="300ms",
        placeholder="Name, member e-mail or id",
    )
    rows = office.person.reports.organizations(search, limit=_FOUND).rows
    if not rows:
        st.caption("No organization matches.")
        return None
    names = {row.organization_id: row.name for row in rows}
    chosen = st.selectbox("Organization", list(names), key=key, format_func=names.__getitem__)
    return chosen, names[chosen]


def changes(lines: Iterable[tuple[str, str, str]]) -> bool:
    """What a change would do: each setting now and afterwards. False when nothing changes."""
    changed = [line for line in lines if line[1] != line[2]]
    with st.container(border=True, gap="small"):
        st.markdown("**What it changes**")
        if changed:
            tables.show(
                pd.DataFrame(changed, columns=["setting", "now", "then"]),
                {"setting": "Setting", "now": "Now", "then": "Afterwards"},
                "Settings before and after the change",
            )
        else:
            st.caption("Nothing yet. Choose another value.")
    return bool(changed)


def limit(
    label: str,
    now: int | float | None,
    key: str,
    *,
    none: str = "No limit",
    least: int | float = 1,
    most: int | float = 1_000_000_000,
    step: int | float | None = None,
) -> Any:
    """Let somebody choose a limit, or none by leaving it empty. It begins at the present one."""
    # An input that is given a value cannot be emptied: it falls back to that value.
    st.session_state.setdefault(key, now)
    return st.number_input(label, least, most, None, step, key=key, placeholder=none)


def said(value: int | float | None, none: str = "No limit") -> str:
    """A number as it reads in a table, None in words."""
    return none if value is None else fmt.number(value)
