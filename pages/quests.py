"""Generate a quest line, see what it cost, and claim the rewards of its steps."""

from __future__ import annotations

import streamlit as st

from tokenlib.console import acting, cards, history, progress, quests, refusals, session
from tokenlib.console import format as fmt
from tokenlib.console.process import gate
from tokenlib.errors import TokenlibError
from tokenlib.features.inputs import InvalidInput
from tokenlib.features.model import ModelError
from tokenlib.features.quests import FEATURE as EXAMPLE
from tokenlib.features.quests import QuestRequest
from tokenlib.reports import Reports

person = session.require(*session.EVERYBODY)
tokens = session.tokens()
member = acting.choose(person)
organization = acting.organization(member)
context = session.context(member.reports)
feature = context.catalog.features[quests.FEATURE]

quarters = quests.quarters(context.now.astimezone(context.zone))

left, right = st.columns([5, 6], gap="large")
with left:
    balance = st.container(border=True)
    with st.form("quest", border=True):
        price, why = quests.price(tokens, member, feature, gate.settings())
        st.markdown(f"**Generate a quest line** :blue-badge[{price}]", help=why)
        example = EXAMPLE.sample()
        goal = st.text_input("Goal", str(example["goal"]), max_chars=80, key="quest_goal")
        with st.grid(2, min_column_width=130):
            numbers = {
                name: st.number_input(
                    label, low, high, int(str(example[name])), key=f"quest_{name}"
                )
                for name, label, low, high in quests.NUMBERS
            }
        quarter = st.segmented_control(
            "Quarter",
            quarters,
            default=quarters[0],
            required=True,
            key="quest_quarter",
        )
        failing = st.toggle(
            "Make the model fail",
            key="quest_failing",
            help="The model takes the request and then fails, so you see what a failure costs.",
        )
        submitted = st.form_submit_button(
            "Generate", type="primary", icon=":material/auto_awesome:", width="stretch"
        )
    if submitted:
        try:
            request = QuestRequest(goal, quarter, **numbers)
            key = acting.key_for("quests", (member, request))
            with progress.steps("Generating") as step:
                limit = Reports(tokens.database).output_limit(member.organization_id)
                model = quests.model(gate.settings(), failing, limit)
                made = quests.generate(tokens, member, feature, request, model, key, step)
            acting.done("quests")
            st.success(
                quests.message(made.used, quests.FEATURE, made.left),
                title=fmt.plain(made.line.title),
                icon=":material/check_circle:",
            )
        except ModelError as error:
            refusals.model_failed(error)
        except InvalidInput as error:
            st.error(
                f"{fmt.plain(quests.label(error))}. Nothing was charged.", icon=":material/error:"
            )
        except TokenlibError as error:
            acting.done("quests")
            refusals.show(error, context)
    with balance:
        wallet = tokens.get_token_balance(member.organization_id, feature.token_type)
        cards.wallet(wallet, f"{organization.name}: goal tokens", context)
        if wallet.total_allocated == 0:
            st.caption(refusals.upgrade(feature.feature, organization.plan, context.catalog))
with right:
    history.draw(tokens, member, context)
