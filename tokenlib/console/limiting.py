"""Abuse limits and parameters, and the dialogs that change them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pandas as pd
import streamlit as st

from tokenlib.console import actions, office, request_limits, session, tables
from tokenlib.console import format as fmt
from tokenlib.console.office import Office
from tokenlib.console.throttle import NAMES
from tokenlib.domain import Limits

LIMITS = "limits"
PARAMETERS = "parameters"
_CLICK = "limits_click"
_OFF = Limits(None, None, None, None, None, None)


def draw(here: Office) -> None:
    """The limits of everyone and of each organization that differs; then the parameters."""
    st.markdown("**Limits of each person**")
    rows = here.person.reports.limits()
    data = pd.DataFrame(
        [
            {
                "who": row.organization or "Everyone",
                "action": "Change",
                **{name: _number(value) for name, value in asdict(row.limits).items()},
            }
            for row in rows
        ],
        columns=["who", "action", *NAMES],
    )
    columns = {
        "who": "Who",
        "action": tables.action(_CLICK),
        **{name: tables.number(label) for name, label in NAMES.items()},
        "failed_attempts": tables.number("Failed attempts", note="Until somebody is blocked."),
    }
    tables.show(data, columns, "Abuse limits of everyone, and of organizations that differ")
    if (row := tables.clicked(_CLICK, rows)) is not None:
        actions.ask(LIMITS, None, row.organization_id or "everyone")
    st.caption(
        "For members in the console and member tokens in the API; library callers choose. — is no"
        " limit. The alert refuses nothing: it marks the person on Top spenders."
    )
    st.button(
        "Limits for one organization",
        key="ask_limits",
        icon=":material/add:",
        on_click=actions.ask,
        args=(LIMITS, None, "organization"),
    )
    request_limits.draw(here)
    _parameters(here)


def _parameters(here: Office) -> None:
    found = here.person.reports.parameters()
    st.markdown("**Parameters**")
    lines = [
        ("Life of a hold", _minutes(found.hold_life), "Then the tokens come back by themselves"),
        (
            "Top-up of an unlimited wallet",
            fmt.count(found.top_up_block, "token"),
            "Added when it runs out, with an entry",
        ),
        ("Cost of a token", _cents(found.token_cost_cents), "For estimated cost and margin"),
        ("Period", f"{found.period.days} days", "Fixed"),
        ("Levels of a balance", "50 % and 20 %", "Fixed: green above, yellow between, red below"),
        ("Near the limit", "80 % and 100 % used", "Fixed: the lists of Overview"),
    ]
    tables.show(
        pd.DataFrame(lines, columns=["name", "value", "note"]),
        {"name": "Parameter", "value": "Value", "note": "What it does"},
        "Parameters and thresholds",
    )
    st.button(
        "Change parameters",
        key="ask_parameters",
        icon=":material/tune:",
        on_click=actions.ask,
        args=(PARAMETERS, None),
    )


@st.dialog("Change limits", icon=":material/speed:", on_dismiss=actions.close)
def limits(here: Office, subject: UUID | str) -> None:
    """The limits of everyone, of one organization, or (subject "organization") of one found."""
    known = {row.organization_id: row for row in here.person.reports.limits()}
    organization_id: UUID | None = None
    name = "everyone"
    if subject == "organization":
        found = office.find(here, "limits_organization")
        if found is None:
            return
        organization_id, name = found
    elif isinstance(subject, UUID):
        organization_id = subject
        row = known.get(subject)
        name = (row and row.organization) or "this organization"
    everyone = known[None].limits if None in known else _OFF
    own = known.get(organization_id)
    now = own.limits if own else everyone
    lift = (
        organization_id is not None
        and own is not None
        and st.toggle("Back to the limits of everyone", key="limits_lift")
    )
    new = everyone if lift else _chosen(now, f"limits_{organization_id}")
    changed = office.changes(
        (NAMES[name], office.said(_number(before)), office.said(_number(getattr(new, name))))
        for name, before in asdict(now).items()
    )
    if not (changed or lift):
        return
    actions.confirm(
        here,
        f"Set for {name}",
        lambda reason: session.tokens().staff_set_limits(
            here.person.user_id, organization_id, None if lift else new, reason=reason
        ),
        f"Limits set for {name}.",
    )


def _chosen(now: Limits, key: str) -> Limits:
    chosen: dict[str, int | Decimal | None] = {}
    st.caption("Empty is no limit.")
    with st.grid(2, min_column_width=150):
        for name, label in NAMES.items():
            value = _number(getattr(now, name))
            if name == "seconds_between_requests":
                now_seconds = None if value is None else float(value)
                seconds = office.limit(
                    label, now_seconds, f"{key}_{name}", least=0.1, most=86_400.0, step=0.5
                )
                chosen[name] = None if seconds is None else Decimal(f"{seconds:g}")
            else:
                chosen[name] = office.limit(label, value, f"{key}_{name}")
    return Limits(**chosen)  # type: ignore[arg-type]


@st.dialog("Change parameters", icon=":material/tune:", on_dismiss=actions.close)
def parameters(here: Office) -> None:
    """How long a hold lives, what an unlimited wallet gets, what a token costs the operator."""
    found = here.person.reports.parameters()
    minutes = st.number_input(
        "Life of a hold, in minutes",
        1.0,
        1440.0,
        found.hold_life.total_seconds() / 60,
        1.0,
        key="parameter_hold",
        help="Longer than any AI call takes. For holds made from now on.",
    )
    block = int(
        st.number_input(
            "Top-up of an unlimited wallet, in tokens",
            1,
            1_000_000_000,
            found.top_up_block,
            key="parameter_block",
        )
    )
    cents = st.number_input(
        "Cost of a token, in US cents",
        0.0,
        1_000_000.0,
        float(found.token_cost_cents),
        0.1,
        format="%.3f",
        key="parameter_cents",
        help="Every estimate of cost and margin uses it, also for use in the past.",
    )
    life, price = timedelta(minutes=minutes), Decimal(f"{cents:.3f}").normalize()
    changed = office.changes(
        [
            ("Life of a hold", _minutes(found.hold_life), _minutes(life)),
            ("Top-up", office.said(found.top_up_block), office.said(block)),
            (
                "Cost of a token",
                _cents(found.token_cost_cents),
                _cents(price),
            ),
        ]
    )
    if not changed:
        return
    actions.confirm(
        here,
        "Set parameters",
        lambda reason: session.tokens().staff_set_parameters(
            here.person.user_id,
            hold_life=life,
            top_up_block=block,
            token_cost_cents=price,
            reason=reason,
        ),
        "Parameters changed.",
    )


def _number(value: int | Decimal | None) -> int | float | None:
    if value is None or isinstance(value, int):
        return value
    return int(value) if value == int(value) else float(value)


def _cents(price: Decimal) -> str:
    return f"{fmt.number(price)} {'cent' if price == 1 else 'cents'}"


def _minutes(life: timedelta) -> str:
    return f"{fmt.number(life.total_seconds() / 60)} minutes"
