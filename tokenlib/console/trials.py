"""Each of the other AI features as one card: its cost, what is left for it, an input, a result."""

from __future__ import annotations

import json
from dataclasses import dataclass

import streamlit as st

from tokenlib.console import acting, progress, quests, refusals, session
from tokenlib.console import format as fmt
from tokenlib.console.acting import Member
from tokenlib.console.format import Context
from tokenlib.domain import Balance, Feature
from tokenlib.errors import TokenlibError
from tokenlib.features import FEATURES, InvalidInput
from tokenlib.features.feature import DemoFeature, FeatureResult
from tokenlib.features.model import FailingModel, ModelError

_RESULTS = "trial_results"


@dataclass(frozen=True, slots=True)
class Trial:
    """What a run of a feature brought, kept until its next run."""

    result: FeatureResult
    message: str


def names(context: Context) -> list[str]:
    """The features of the catalog that can be tried here; quests have a page of their own."""
    return [
        name for name in context.catalog.features if name in FEATURES and name != quests.FEATURE
    ]


def card(member: Member, name: str, context: Context, failing: bool) -> None:
    """One feature: run it on its input, charged as any other. `failing` makes the model fail."""
    demo, feature = FEATURES[name], context.catalog.features[name]
    with st.container(border=True, height="stretch"):
        with st.container(
            horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"
        ):
            st.markdown(f"**{fmt.plain(feature.title)}**", width="content")
            st.badge(fmt.price(feature), icon=":material/toll:", color="blue")
        st.caption(demo.description)
        left = st.empty()
        with st.form(f"run_{name}", border=False):
            with st.expander("Input"):
                given = st.text_area(
                    "Input, as JSON",
                    json.dumps(demo.sample(), indent=2),
                    height=240,
                    key=f"input_{name}",
                )
            submitted = st.form_submit_button(
                f"Run: {feature.title.lower()}", icon=":material/play_arrow:", width="stretch"
            )
        if submitted:
            _kept().pop((member, name), None)
            _run(member, demo, given, context, failing)
        wallet = session.tokens().get_token_balance(member.organization_id, feature.token_type)
        left.markdown(_left(wallet, feature, context))
        if (trial := _kept().get((member, name))) is not None:
            _result(trial)


def _kept() -> dict[tuple[Member, str], Trial]:
    kept: dict[tuple[Member, str], Trial] = st.session_state.setdefault(_RESULTS, {})
    return kept


def _left(wallet: Balance, feature: Feature, context: Context) -> str:
    standing = fmt.standing(wallet)
    uses = "" if standing in (fmt.UNLIMITED, fmt.ABSENT) else f" · {_buys(wallet, feature)}"
    return f"{standing.mark} {context.token_type(feature.token_type)}: {fmt.balance(wallet)}{uses}"


def _buys(wallet: Balance, feature: Feature) -> str:
    uses = fmt.uses_for(wallet.balance, feature)
    return f"{uses} use{'' if uses == '1' else 's'} left"


def _run(member: Member, demo: DemoFeature, given: str, context: Context, failing: bool) -> None:
    tokens, name = session.tokens(), demo.name
    page = f"trial_{name}"
    try:
        values = json.loads(given)
        key = acting.key_for(page, (member, given))
        with (
            progress.steps("Holding the tokens…") as step,
            tokens.spend(
                member.organization_id, member.user_id, name, idempotency_key=key, limits=True
            ) as held,
        ):
            step(f"Running, with {fmt.count(held.tokens, 'token')} held…")
            if failing:
                _fail(given, held.tokens)
            result = demo.run(values)
        acting.done(page)
        left = tokens.get_token_balance(member.organization_id, held.token_type)
        _kept()[member, name] = Trial(result, quests.message(held.tokens, name, left))
    except json.JSONDecodeError as error:
        st.error(
            f"The input is not JSON: {error.msg} in line {error.lineno}. Nothing was charged.",
            icon=":material/error:",
        )
    except InvalidInput as error:
        st.error(f"{fmt.plain(str(error))}. Nothing was charged.", icon=":material/error:")
    except ModelError as error:
        refusals.model_failed(error)
    except TokenlibError as error:
        acting.done(page)
        refusals.show(error, context)


def _fail(given: str, held: int) -> None:
    try:
        FailingModel().complete(given, timeout=1)
    except ModelError as error:
        error.held = held
        raise


def _result(trial: Trial) -> None:
    st.success(trial.message, title=fmt.plain(trial.result.title), icon=":material/check_circle:")
    st.markdown(fmt.plain(trial.result.summary))
    st.dataframe(
        trial.result.rows,
        hide_index=True,
        alt=trial.result.title,
        column_config={
            column: column.replace("_", " ").capitalize()
            for row in trial.result.rows
            for column in row
        },
    )
