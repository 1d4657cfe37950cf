"""What features cost and what plans give, and the dialogs that change it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from tokenlib.console import actions, numbers, office, session, tables
from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.console.office import Office
from tokenlib.errors import TokenlibError
from tokenlib.reports.settings import CostPreview

COST = "cost"
SIZE = "unit_size"
ALLOWANCE = "allowance"
_CLICK_COST = "catalog_cost"
_CLICK_SIZE = "catalog_size"
_CLICK_ALLOWANCE = "catalog_allowance"
_SHOWN = 8


def draw(here: Office) -> None:
    """The catalog as it stands now."""
    catalog, context = here.context.catalog, here.context
    features = list(catalog.features.values())
    st.markdown("**What a use costs**")
    data = tables.frame(features, ["title", "token_type", "cost"], context)
    data["size"] = [_size(feature.unit_size) for feature in features]
    data["action"] = "Change"
    tables.show(
        data,
        {
            "title": "Feature",
            "token_type": "Draws on",
            "cost": tables.number("Tokens"),
            "size": st.column_config.ButtonColumn("For", key=_CLICK_SIZE, type="tertiary"),
            "action": tables.action(_CLICK_COST),
        },
        "What each feature costs",
    )
    if (chosen := tables.clicked(_CLICK_COST, features)) is not None:
        actions.ask(COST, None, chosen.feature)
    if (chosen := tables.clicked(_CLICK_SIZE, features)) is not None:
        actions.ask(SIZE, None, chosen.feature)

    st.markdown("**What a plan gives per period**")
    types = [name for name in catalog.token_types if name != fmt.PACKS]
    columns: dict[str, object] = {"type": "Token type"}
    lines: dict[str, list[str]] = {"type": [context.token_type(name) for name in types]}
    for plan in catalog.plans:
        lines[plan] = [amount(catalog.allowances.get((plan, name), 0)) for name in types]
        columns[plan] = st.column_config.ButtonColumn(
            plan.capitalize(), key=f"{_CLICK_ALLOWANCE}_{plan}", type="tertiary"
        )
    tables.show(pd.DataFrame(lines), columns, "What each plan gives of each token type")
    st.caption("Click an amount to change it. A wallet has the new amount from its next refresh.")
    for plan in catalog.plans:
        if (token_type := tables.clicked(f"{_CLICK_ALLOWANCE}_{plan}", types)) is not None:
            actions.ask(ALLOWANCE, None, f"{plan}/{token_type}")


def amount(allowance: int | None) -> str:
    """What a plan gives: a number, or unlimited."""
    return office.said(allowance, "Unlimited")


@st.dialog("Change a cost", icon=":material/sell:", on_dismiss=actions.close)
def cost(here: Office, feature: str) -> None:
    """What one unit of a feature costs from now on, against the use of the last 30 days."""
    known = here.context.catalog.features.get(feature)
    if known is None:
        st.info("The catalog has this feature no more.")
        return
    st.markdown(f"**{known.title}** costs {fmt.count(known.cost, 'token')} now.")
    new = numbers.whole("Tokens a use", 1, 1_000_000, known.cost, f"cost_{feature}")
    if new is None:
        return
    if new == known.cost:
        st.caption("Choose another cost to see what it would have meant in the last 30 days.")
        return
    try:
        with st.skeleton(height=240):
            effect(here.person.reports.preview_cost(feature, new, _SHOWN), here.context)
    except TokenlibError as error:
        st.error(fmt.plain(str(error)), icon=":material/error:")
        return
    actions.confirm(
        here,
        f"Set to {fmt.count(new, 'token')}",
        lambda reason: session.tokens().staff_set_cost(
            here.person.user_id, feature, new, reason=reason
        ),
        f"{known.title} costs {fmt.count(new, 'token')} from now on.",
    )


def effect(preview: CostPreview, context: Context) -> None:
    """What the same use would have cost, and who would have run out."""
    with st.container(border=True, gap="small"):
        st.markdown("**What it would have meant in the last 30 days**")
        if not preview.used_by:
            st.caption("Nobody used this feature in that time.")
            return
        change = (preview.new_tokens - preview.tokens) / preview.tokens if preview.tokens else 0
        st.markdown(
            f"{fmt.number(preview.tokens)} → **{fmt.count(preview.new_tokens, 'token')}**"
            f" ({fmt.change(change)}) in {fmt.count(preview.used_by, 'organization')};"
            f" **{fmt.number(preview.run_outs)}** of them would have run out."
        )
        rows = preview.organizations[: preview.run_outs or None]
        tables.draw(
            rows,
            {
                "name": "Organization",
                "plan": "Plan",
                "tokens": tables.number("Tokens"),
                "new_tokens": tables.number("Would be"),
                "runs_out_from": tables.number(
                    "Out from", note="The lowest cost at which a wallet of theirs would run out."
                ),
            },
            context,
            "What the new cost would have meant for each organization",
        )
        found = preview.run_outs or preview.used_by
        shown = f"The first {len(rows)} of them. " if found > len(rows) else ""
        st.caption(
            f"{shown}The same use is assumed; holds that run now keep the cost they were made at."
        )


@st.dialog("Change what is paid for", icon=":material/sell:", on_dismiss=actions.close)
def size(here: Office, feature: str) -> None:
    """Whether a feature costs the same each time, or by the size of its answer."""
    known = here.context.catalog.features.get(feature)
    if known is None:
        st.info("The catalog has this feature no more.")
        return
    price = fmt.count(known.cost, "token")
    st.markdown(f"**{known.title}**: {price} for {_size(known.unit_size)}.")
    st.caption(
        "Empty: each use costs the same. Else the tokens of the longest answer are held, and those"
        " of the answer charged, each started part as a whole one. It holds for callers who ask the"
        " catalog for the units, as the quests here do."
    )
    new = office.limit(
        "Output units that the tokens pay", known.unit_size, f"size_{feature}", none="A use"
    )
    if not office.changes([(known.title, _size(known.unit_size), _size(new))]):
        return
    actions.confirm(
        here,
        f"Set to {_size(new)}",
        lambda reason: session.tokens().staff_set_unit_size(
            here.person.user_id, feature, new, reason=reason
        ),
        f"{known.title}: {price} for {_size(new)} from now on.",
    )


def _size(unit_size: int | None) -> str:
    return "a use" if unit_size is None else fmt.count(unit_size, "output unit")


@st.dialog("Change an allowance", icon=":material/sell:", on_dismiss=actions.close)
def allowance(here: Office, plan: str, token_type: str) -> None:
    """What a plan gives of a token type per period."""
    context = here.context
    now = context.catalog.allowances.get((plan, token_type), 0)
    name = f"{plan.capitalize()}, {context.token_type(token_type).lower()}"
    st.markdown(f"**{name}**: {amount(now).lower()} now.")
    key = f"allowance_{plan}_{token_type}"
    unlimited = st.toggle("Unlimited", now is None, key=f"{key}_unlimited")
    new = None
    if not unlimited:
        new = numbers.whole("Tokens a period", 0, 1_000_000_000, now or 0, key)
        if new is None:
            return
    if not office.changes([(name, amount(now), amount(new))]):
        return
    concerned = here.person.reports.organizations(plan=plan, limit=1).total
    st.caption(
        f"{fmt.count(concerned, 'organization')} on this plan. No balance changes today: each"
        " wallet has the new amount from its next refresh."
    )
    actions.confirm(
        here,
        f"Set to {amount(new).lower()}",
        lambda reason: session.tokens().staff_set_allowance(
            here.person.user_id, plan, token_type, new, reason=reason
        ),
        f"{name}: {amount(new).lower()} from the next refresh on.",
    )
