"""API keys: the list, and the dialogs that make one, give it a new secret, or end it."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import streamlit as st

from tokenlib.console import actions, office, session, tables
from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.console.office import Office
from tokenlib.domain import Scope
from tokenlib.reports.settings import KeyRow

KEY = "key"
NEW = "new"
SCOPES: dict[Scope, str] = {
    "check": "ask whether a feature may run",
    "spend": "hold, charge and release tokens",
    "read": "read balances and their history",
    "admin": "act as you: grants, plans, states, keys, as long as you may",
    "metrics": "read /metrics, which speaks of all organizations",
}
LIMITS = {
    "requests_per_minute": "requests a minute",
    "seconds_between_requests": "seconds between requests",
    "tokens_per_request": "tokens a request",
    "output_units_per_request": "output units a request",
}
STATES = {"good": "✓ Works", "expired": "— Expired", "revoked": "✕ Revoked"}
LIVES = {"30 days": 30, "90 days": 90, "1 year": 365, "No end": None}
OVERLAPS = {
    "Ends now": timedelta(0),
    "1 hour": timedelta(hours=1),
    "1 day": timedelta(days=1),
    "7 days": timedelta(days=7),
}
_ALL, _ONE = "All organizations", "One organization"
_ROTATE, _REVOKE = "New secret", "Revoke"
_CLICK = "key_click"


def draw(here: Office) -> None:
    """Every key with what it may, for whom and until when."""
    pepper = session.tokens().pepper is not None
    if not pepper:
        st.warning(
            "API keys are kept by a secret of this server's. Set TOKENLIB_KEY_PEPPER to one of 32"
            " bytes or more, such as what `openssl rand -hex 32` prints, and start again. Keep it:"
            " with another one every key ends.",
            title="No API key works on this server",
            icon=":material/key_off:",
        )
    rows = here.person.reports.api_keys()
    if rows:
        _table(rows, here.context)
    elif pepper:
        st.caption("No API key yet. A server of your product calls the HTTP API with one.")
    if pepper:
        st.button(
            "Create a key",
            key="ask_key",
            icon=":material/add:",
            on_click=actions.ask,
            args=(KEY, None, NEW),
        )


def _table(rows: list[KeyRow], context: Context) -> None:
    turned = any(row.old_until for row in rows)
    names = ["name", "start", "owner", "expires_at", "last_used_at"]
    names += ["old_until"] if turned else []
    data = tables.frame(rows, names, context)
    data["start"] = [f"{row.start}…" for row in rows]
    data["for"] = [row.organization or _whose(row) for row in rows]
    data["scopes"] = [", ".join(row.scopes) for row in rows]
    data["state"] = [STATES[row.state] for row in rows]
    data["action"] = [None if row.state == "revoked" else "Change" for row in rows]
    columns = {
        "name": st.column_config.TextColumn("Name", width=180),
        "state": st.column_config.TextColumn("State", width=110),
        "scopes": st.column_config.TextColumn("May", width=150),
        "for": st.column_config.TextColumn("Organization", width=150),
        "start": "Begins with",
        **({"old_until": tables.time("Old secret until", context.zone)} if turned else {}),
        "expires_at": {**tables.time("Ends", context.zone), "width": 150},
        "last_used_at": {**tables.time("Last use", context.zone), "width": 150},
        "owner": "Made by",
        "action": tables.action(_CLICK),
    }
    tables.show(data[list(columns)], columns, "API keys, those that work first")
    if (row := tables.clicked(_CLICK, rows)) is not None:
        actions.ask(KEY, None, row.id)


def _whose(row: KeyRow) -> str:
    return _ALL if row.organization_id is None else str(row.organization_id)


@st.dialog("Create a key", icon=":material/key:", on_dismiss=actions.close)
def create(here: Office) -> None:
    """Make a key: its name, what it may, for whom, until when, and limits of its own."""
    name = st.text_input("Name", key="key_name", max_chars=100, placeholder="Who will use it")
    reach = st.segmented_control(
        "For", [_ONE, _ALL], default=_ONE, required=True, key="key_reach", width="stretch"
    )
    organization_id, whom = None, "all organizations"
    if reach == _ONE:
        found = office.find(here, "key_organization")
        if found is None:
            return
        organization_id, whom = found
    scopes: list[Scope] = st.pills(
        "It may",
        [scope for scope in SCOPES if organization_id is None or scope != "metrics"],
        selection_mode="multi",
        default=["check", "spend"],
        key=f"key_scopes_{reach}",
        format_func=str.capitalize,
    )
    st.caption("  \n".join(f"{scope.capitalize()}: {SCOPES[scope]}" for scope in scopes))
    life = st.segmented_control(
        "Ends after", list(LIVES), default="90 days", required=True, key="key_life"
    )
    limits = _limits()
    if not (name and name.strip() and scopes):
        st.caption("Give it a name and something that it may do.")
        return
    days = LIVES[life]
    expires = None if days is None else here.context.now + timedelta(days=days)

    def make(reason: str) -> str | None:
        key = session.tokens().staff_create_key(
            here.person.user_id,
            name,
            scopes,
            organization_id,
            expires_at=expires,
            **limits,
            reason=reason,
        )
        return key.secret

    actions.confirm(
        here,
        "Create the key",
        make,
        f"{name} may call the API for {whom}{_until(expires, here.context)}.",
    )


def _limits() -> dict[str, Any]:
    """Limits of the key's own; empty is none."""
    with st.expander("Limits of its own", icon=":material/speed:"):
        st.caption("Empty is no limit.")
        minute = office.limit("Requests a minute", None, "key_minute")
        seconds = office.limit(
            "Seconds between requests", None, "key_seconds", least=0.1, most=86_400.0, step=0.5
        )
        tokens = office.limit("Tokens a request", None, "key_tokens")
        output = office.limit("Output units a request", None, "key_output")
        users = st.toggle("The limits of each person hold, too", key="key_users")
    return {
        "requests_per_minute": minute,
        "seconds_between_requests": None if seconds is None else Decimal(f"{seconds:g}"),
        "tokens_per_request": tokens,
        "output_units_per_request": output,
        "limit_users": users,
    }


def _said(row: KeyRow) -> str:
    """The limits of a key in words."""
    said = [f"{fmt.number(limit)} {LIMITS[name]}" for name, limit in row.limits.items()]
    return ", ".join([*said, *(["those of each person"] if row.limit_users else [])]) or "none"


def _until(expires: datetime | None, context: Context) -> str:
    return "" if expires is None else f" until {context.date(expires)}"


@st.dialog("API key", icon=":material/key:", on_dismiss=actions.close)
def change(here: Office, subject: UUID) -> None:
    """Give a key a new secret, or end it."""
    row = next((row for row in here.person.reports.api_keys() if row.id == subject), None)
    if row is None or row.state == "revoked":
        st.info("This key is revoked already.", icon=":material/key_off:")
        return
    st.markdown(f"**{fmt.plain(row.name)}**, `{row.start}…`")
    used = "never" if row.last_used_at is None else here.context.time(row.last_used_at)
    st.caption(f"Last use: {used}  \nLimits: {_said(row)}")
    rotates = row.state == "good" and session.tokens().pepper is not None
    what = st.segmented_control(
        "Change",
        [_ROTATE, _REVOKE] if rotates else [_REVOKE],
        default=_ROTATE if rotates else _REVOKE,
        required=True,
        key=f"key_{row.id}_what",
    )
    tokens, actor = session.tokens(), here.person.user_id
    if what == _ROTATE:
        overlap = st.segmented_control(
            "The secret of today works on for",
            list(OVERLAPS),
            default="1 day",
            required=True,
            key=f"key_{row.id}_overlap",
        )
        st.caption("Name, rights and limits stay.")
        actions.confirm(
            here,
            "Give it a new secret",
            lambda reason: tokens.staff_rotate_key(
                actor, row.id, overlap=OVERLAPS[overlap], reason=reason
            ),
            f"{row.name} has a new secret.",
        )
        return
    st.caption("From now on every call with it is refused. There is no way back.")
    actions.confirm(
        here,
        "Revoke the key",
        lambda reason: tokens.staff_revoke_key(actor, row.id, reason=reason),
        f"{row.name} is revoked.",
    )


@st.dialog("Copy the key now", icon=":material/key:", dismissible=False)
def show_secret(secret: str) -> None:
    """The secret, once: it leaves the session with this dialog."""
    st.code(secret, language=None, wrap_lines=True)
    st.caption("It is shown this once. The database keeps only an HMAC of it.")
    if st.button("I have copied it", key="key_copied", type="primary", width="stretch"):
        actions.secret_shown()
        st.rerun()
