"""What holds for everyone: catalog, limits, parameters, emergency switch, staff, API keys, and who
changed it."""

from __future__ import annotations

from uuid import UUID

import streamlit as st

from tokenlib.console import (
    actions,
    cards,
    desk,
    keys,
    limiting,
    pricing,
    request_limits,
    session,
    staffing,
    switch,
    trail,
)
from tokenlib.console.office import Office

VIEWS = {
    "Catalog": pricing.draw,
    "Limits": limiting.draw,
    "Switch": switch.draw,
    "Staff": staffing.draw,
    "API keys": keys.draw,
    "Changes": trail.draw,
}

person = session.require("admin")
context = session.context(person.reports)
here = Office(person, context)

cards.fresh(context)
desk.done(here)
tabs = st.tabs(list(VIEWS), key="view", bind="query-params", on_change="rerun")
for tab, draw in zip(tabs, VIEWS.values(), strict=True):
    if tab.open:
        with tab, st.skeleton(height=320):
            draw(here)

asked = actions.asked(here)
match asked and (asked.action, asked.subject):
    case (pricing.COST, str() as feature):
        pricing.cost(here, feature)
    case (pricing.SIZE, str() as feature):
        pricing.size(here, feature)
    case (pricing.ALLOWANCE, str() as cell):
        plan, _, token_type = cell.partition("/")
        pricing.allowance(here, plan, token_type)
    case (limiting.LIMITS, UUID() | str() as subject):
        limiting.limits(here, subject)
    case (limiting.PARAMETERS, None):
        limiting.parameters(here)
    case (request_limits.LIMIT, UUID() | str() as subject):
        request_limits.change(here, subject)
    case (switch.MODE, UUID() | str() as subject):
        switch.change(here, subject)
    case (staffing.PERSON, UUID() | str() as subject):
        staffing.change(here, subject)
    case (keys.KEY, keys.NEW):
        keys.create(here)
    case (keys.KEY, UUID() as key):
        keys.change(here, key)
if (secret := actions.secret(here)) is not None:
    keys.show_secret(secret)
