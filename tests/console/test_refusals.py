"""What an error becomes for the person who meets it."""

from __future__ import annotations

import logging
from uuid import UUID

import pytest
from streamlit.testing.v1 import AppTest

from tokenlib.console import refusals
from tokenlib.domain import Catalog, Feature
from tokenlib.errors import ConfigurationError, DatabaseUnavailable, RateLimited, UserPaused

CATALOG = Catalog(
    features={"generate_goal": Feature("generate_goal", "Generate a quest", "goals", 3)},
    token_types=("goals", "general"),
    plans=("starter", "pro", "enterprise"),
    allowances={
        ("starter", "goals"): 0,
        ("pro", "goals"): 20,
        ("pro", "general"): 50,
        ("enterprise", "goals"): None,
    },
)


def shown(error: Exception, how: str = "unexpected") -> AppTest:
    """A page that meets this error."""

    def page(error: Exception, how: str) -> None:
        from datetime import UTC, datetime

        from tests.console.test_refusals import CATALOG
        from tokenlib.console import refusals
        from tokenlib.console.format import Context

        if how == "unexpected":
            assert refusals.unexpected(error)
        else:
            refusals.show(error, Context(datetime.now(UTC), UTC, CATALOG, {}))  # type: ignore[arg-type]

    app = AppTest.from_function(page, args=(error, how)).run()
    assert not app.exception
    return app


def test_an_error_that_nobody_foresaw_is_logged_and_keeps_its_details(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, "tokenlib"):
        (error,) = shown(ValueError("a detail")).error
    assert "a detail" not in error.value
    assert "server's log" in error.value
    assert "a detail" in caplog.text


def test_our_own_errors_say_their_message() -> None:
    (error,) = shown(ConfigurationError("TOKENLIB_PORT must be a number.")).error
    assert error.value == "TOKENLIB\\_PORT must be a number\\."
    (error,) = shown(DatabaseUnavailable("no answer from 10.0.0.1")).error
    assert error.title == "The database does not answer"
    assert "10.0.0.1" not in error.value


def test_a_limit_says_how_long_to_wait_or_to_ask_for_less() -> None:
    (warning,) = shown(RateLimited("requests_per_minute", 30, 12.4), "show").warning
    assert warning.title == "One moment"
    assert "limit of requests per minute is 30" in warning.value
    assert "Try again in 12 seconds." in warning.value
    (warning,) = shown(RateLimited("tokens_per_request", 10, None), "show").warning
    assert warning.title == "Too large"
    assert "Ask for less in one request." in warning.value


def test_a_paused_person_learns_who_can_resume() -> None:
    (error,) = shown(UserPaused(UUID(int=1)), "show").error
    assert "An administrator can resume it" in error.value


def test_the_upgrade_prompt_names_what_other_plans_give() -> None:
    assert refusals.upgrade("generate_goal", "starter", CATALOG) == (
        "The starter plan does not include “Generate a quest”. Upgrade to use it."
        " Pro: 20 tokens a period; Enterprise: unlimited tokens."
    )
    assert refusals.upgrade("gone", "starter", CATALOG) == (
        "The starter plan does not include “gone”."
    )
    assert refusals.upgrade("generate_goal", None, CATALOG).startswith(
        "Without a plan there is no “Generate a quest”. Upgrade to use it."
    )
    assert refusals.offer(CATALOG) == (
        "This plan includes no AI features. Pro: 70 tokens a period; Enterprise: unlimited tokens."
    )
