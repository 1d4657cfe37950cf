"""The reply to a customer: a refusal or a verdict in plain words, in the customer's time zone."""

from __future__ import annotations

from zoneinfo import available_timezones

import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console.actions import Desk
from tokenlib.domain import Verdict
from tokenlib.reports import customer_reply
from tokenlib.reports.refusals import RefusalRow

ZONE = "customer_zone"


def choose_zone(desk: Desk) -> str:
    """Draw the choice of the customer's time zone; the reader's own until they choose."""
    zones = sorted(available_timezones())
    own = str(desk.context.zone)
    return st.selectbox(
        "The customer's time zone",
        zones,
        index=zones.index(own) if own in zones else zones.index("UTC"),
        key=ZONE,
        bind="query-params",
        width=280,
    )


def draw(desk: Desk, answer: RefusalRow | Verdict, feature: str, zone: str) -> None:
    """The text, with a button that copies it."""
    wallet = next(
        (
            row
            for row in desk.person.reports.wallets(desk.organization_id)
            if row.token_type == answer.token_type and row.token_type != fmt.PACKS
        ),
        None,
    )
    st.caption("Reply to copy")
    st.code(
        customer_reply(
            answer,
            timezone=zone,
            title=desk.context.feature(feature),
            refresh_date=wallet.refresh_date if wallet else None,
            balance=wallet.balance if wallet else None,
        ),
        language=None,
        wrap_lines=True,
    )
