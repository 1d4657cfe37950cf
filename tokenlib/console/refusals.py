"""What a refusal means for the person who meets it, and the way out."""

from __future__ import annotations

import logging

import streamlit as st

from tokenlib.console import format as fmt
from tokenlib.console.format import Context
from tokenlib.domain import Catalog
from tokenlib.errors import (
    AlreadySpent,
    DatabaseUnavailable,
    FeatureNotInPlan,
    InProgress,
    InsufficientTokens,
    OrganizationPaused,
    PaymentFailed,
    RateLimited,
    TokenlibError,
    UserPaused,
)
from tokenlib.features.model import ModelError

log = logging.getLogger("tokenlib")


def show(error: TokenlibError, context: Context) -> None:
    """Draw the refusal of an AI feature with its way out. Nothing was charged."""
    match error:
        case FeatureNotInPlan():
            st.warning(
                f"Nothing was charged. {upgrade(error.feature, error.plan, context.catalog)}",
                title="Not in this plan",
                icon=":material/upgrade:",
            )
        case InsufficientTokens():
            refresh = (
                f" New tokens come on {context.date(error.refresh_date)}"
                f" ({context.days(error.refresh_date)})."
                if error.refresh_date
                else ""
            )
            st.warning(
                f"This needs {fmt.count(error.needed, 'token')}, and {fmt.number(error.available)}"
                f" {'is' if error.available == 1 else 'are'} left.{refresh}"
                " To go on now: upgrade the plan, or buy a pack of tokens.",
                title="Not enough tokens",
                icon=":material/hourglass_empty:",
            )
        case PaymentFailed():
            st.error(
                "The last payment failed. Balances are kept, and AI is back as soon as the payment"
                " goes through. Update the payment method to go on.",
                title="AI is off",
                icon=":material/credit_card_off:",
            )
        case OrganizationPaused():
            st.error(
                "An operator paused AI for this organization. Contact support to resume it.",
                title="AI is paused",
                icon=":material/pause_circle:",
            )
        case UserPaused():
            st.error(
                "AI is paused for this person alone. An administrator can resume it.",
                title="AI is paused",
                icon=":material/pause_circle:",
            )
        case RateLimited():
            wait = (
                f"Try again in {fmt.count(max(1, round(error.retry_after)), 'second')}."
                if error.retry_after is not None
                else "Ask for less in one request."
            )
            limit = error.limit.replace("_", " ")
            st.warning(
                f"The limit of {limit} is {fmt.number(error.allowed)}. Nothing was charged. {wait}",
                title="One moment" if error.retry_after is not None else "Too large",
                icon=":material/speed:",
            )
        case AlreadySpent() | InProgress():
            st.info(
                "This request was sent before. It is charged once, and its result is in the list.",
                title="Already on its way",
            )
        case _:
            problem(error)


def model_failed(error: ModelError) -> None:
    """Draw that the model failed, and that its tokens came back."""
    back = "."
    if error.held is not None:
        back = f": the {fmt.count(error.held, 'token')} held for it went back to the balance."
    st.warning(
        f"{fmt.plain(str(error))} Nothing was charged{back}",
        title="The model failed",
        icon=":material/undo:",
    )


def upgrade(feature: str, plan: str | None, catalog: Catalog) -> str:
    """The prompt to upgrade: what the other plans give for this feature."""
    known = catalog.features.get(feature)
    title = known.title if known else feature
    offers = []
    for other in catalog.plans:
        given = catalog.allowances.get((other, known.token_type), 0) if known else 0
        if other != plan and given != 0:
            amount = (
                "unlimited tokens" if given is None else f"{fmt.count(given, 'token')} a period"
            )
            offers.append(f"{other.capitalize()}: {amount}")
    prompt = f"The {plan} plan does not include “{title}”."
    if plan is None:
        prompt = f"Without a plan there is no “{title}”."
    return f"{prompt} Upgrade to use it. {'; '.join(offers)}." if offers else prompt


def offer(catalog: Catalog) -> str:
    """The prompt to upgrade from a plan without AI: what each other plan gives in a period."""
    plans = []
    for plan in catalog.plans:
        given = [catalog.allowances.get((plan, name), 0) for name in catalog.token_types]
        if None in given:
            plans.append(f"{plan.capitalize()}: unlimited tokens")
        elif total := sum(amount or 0 for amount in given):
            plans.append(f"{plan.capitalize()}: {fmt.count(total, 'token')} a period")
    return f"This plan includes no AI features. {'; '.join(plans)}."


def problem(error: TokenlibError) -> None:
    """Draw any other error, plainly."""
    if isinstance(error, DatabaseUnavailable):
        log.warning("%s", error)  # may name hosts, which are nobody's business on the page
        st.error(
            "Nothing was charged, and nothing is let through until it answers. Try again in a"
            " moment.",
            title="The database does not answer",
            icon=":material/cloud_off:",
        )
    else:
        st.error(fmt.plain(str(error)), icon=":material/error:")


def unexpected(error: Exception) -> bool:
    """Draw an error that no page foresaw, without its details, and log it. True: it was shown."""
    if isinstance(error, TokenlibError):
        problem(error)
    else:
        log.error("The console failed: %s", error, exc_info=error)
        st.error(
            "This page failed, and the server's log says why. Nothing more was done. Try again, or"
            " choose another page.",
            title="Something went wrong",
            icon=":material/error:",
        )
    return True
