"""Quests through the gate: what they cost, what a failure costs, and every refusal's way out."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open, press, texts
from tokenlib import demo
from tokenlib.config import Settings
from tokenlib.console import process
from tokenlib.console.acting import Member
from tokenlib.db import Database
from tokenlib.features.quests import FEATURE, QuestRequest
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

ADMIN = demo.PERSONAS["admin"].user_id
MOMENT = timedelta(seconds=4)  # longer than a member has to wait between two requests


def scenario(name: str) -> Member:
    found = demo.SCENARIOS[name]
    return Member(found.user_id, found.organization_id)


def balance(tokens: Tokens, name: str = "healthy") -> int:
    organization = demo.SCENARIOS[name].organization_id
    return tokens.get_token_balance(organization, "goal_generation").balance


def alerts(app: AppTest) -> list[tuple[str, str]]:
    return [(alert.title, alert.value) for alert in (*app.success, *app.warning, *app.error)]


def open_quests(console: Open, name: str) -> AppTest:
    return console("quests.py", scenario=demo.SCENARIOS[name].title)


def test_quests_take_20_to_2_and_the_seventh_is_refused_with_its_way_out(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    app = open_quests(console, "healthy")
    assert "20 of 20" in texts(app)
    assert "Generate a quest: 6 left" in texts(app)
    for left in (17, 14, 11, 8, 5, 2):
        press(app, "Generate")
        assert alerts(app) == [
            (FEATURE.sample()["goal"], f"Used 3 tokens for generate_goal. {left} left.")
        ]
        assert f"{left} of 20" in texts(app)
        assert balance(tokens) == left
        token_clock.advance(MOMENT)
    press(app, "Generate")
    ((title, text),) = alerts(app)
    assert title == "Not enough tokens"
    assert "needs 3 tokens, and 2 are left" in text
    refresh = tokens.get_token_balance(scenario("healthy").organization_id, "goal_generation")
    assert f"{refresh.refresh_date:%Y}" in text
    assert "in 30 days" in text
    assert "upgrade the plan, or buy a pack" in text
    assert balance(tokens) == 2
    assert len(app.expander) == 6
    assert tokens.verify().closed


def test_without_a_limit_it_does_not_say_what_is_left(console: Open) -> None:
    app = open_quests(console, "unlimited")
    press(app, "Generate")
    assert [text for _, text in alerts(app)] == ["Used 3 tokens for generate_goal."]
    said = texts(app)
    assert "### Unlimited\n3 tokens used in this period" in said
    assert " left" not in said


def test_a_failing_model_gives_the_tokens_back(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    app = open_quests(console, "healthy")
    app.toggle(key="quest_failing").set_value(True)
    press(app, "Generate")
    ((title, text),) = alerts(app)
    assert title == "The model failed"
    assert "Nothing was charged: the 3 tokens held for it went back" in text
    assert "20 of 20" in texts(app)
    assert not app.expander
    assert balance(tokens) == 20
    kinds = [
        entry.kind
        for entry in scenario("healthy").reports.ledger(
            scenario("healthy").organization_id, "goal_generation"
        )
    ]
    assert kinds[:2] == ["release", "reserve"]
    token_clock.advance(MOMENT)
    app.toggle(key="quest_failing").set_value(False)
    press(app, "Generate")
    assert balance(tokens) == 17


@pytest.mark.parametrize(
    ("name", "title", "way_out"),
    [
        ("starter", "Not in this plan", "Upgrade to use it. Pro: 20 tokens a period"),
        ("empty", "Not enough tokens", "upgrade the plan, or buy a pack of tokens"),
        ("paused", "AI is paused", "Contact support"),
        ("payment_failed", "AI is off", "Update the payment method"),
    ],
)
def test_each_refusal_says_why_and_what_to_do(
    console: Open, tokens: Tokens, name: str, title: str, way_out: str
) -> None:
    app = open_quests(console, name)
    before = balance(tokens, name)
    press(app, "Generate")
    ((said, text),) = alerts(app)
    assert said == title
    assert way_out in text
    assert balance(tokens, name) == before
    assert not app.expander
    reports = scenario(name).reports
    (refusal,) = reports.refusals(reports.now() - MOMENT * 100, reports.now() + MOMENT)
    assert refusal.user_id == scenario(name).user_id


def test_starter_sees_the_upgrade_prompt_before_asking(look: Open) -> None:
    app = open_quests(look, "starter")
    assert "Not in this plan" in texts(app)
    assert "Enterprise: 200 tokens a period" in texts(app)


def test_an_unlimited_organization_keeps_going(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    app = open_quests(console, "unlimited")
    assert "Unlimited" in texts(app)
    for _ in range(3):
        press(app, "Generate")
        assert [alert.title for alert in app.success] == [FEATURE.sample()["goal"]]
        token_clock.advance(MOMENT)
    assert not app.warning


def test_low_makes_one_quest_and_is_warned(look: Open) -> None:
    app = open_quests(look, "low")
    assert "3 of 21" in texts(app)
    assert "Generate a quest: 1 left" in texts(app)
    assert "Low, under 20 %" in texts(app)


def test_two_requests_within_three_seconds_are_one_too_many(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    token_clock.set(token_clock.now())
    app = open_quests(console, "healthy")
    press(app, "Generate")
    press(app, "Generate")
    ((title, text),) = alerts(app)
    assert title == "One moment"
    assert "Try again in 3 seconds." in text
    assert balance(tokens) == 17


def test_a_click_that_interrupted_the_first_charges_once(console: Open, tokens: Tokens) -> None:
    app = open_quests(console, "healthy")
    member = scenario("healthy")
    request = QuestRequest(**{**FEATURE.sample(), "quarter": _quarter(app)})  # type: ignore[arg-type]
    # The first click's run charged, and was interrupted before it could say so.
    tokens.deduct_tokens(
        member.organization_id,
        member.user_id,
        "generate_goal",
        metadata={"quarter": request.quarter},
        idempotency_key="first-click",
    )
    app.session_state["quests_attempt"] = ((member, request), "first-click")
    press(app, "Generate")
    assert [info.title for info in app.info] == ["Already on its way"]
    assert balance(tokens) == 17


def test_bad_input_is_named_by_its_label_and_costs_nothing(console: Open, tokens: Tokens) -> None:
    app = open_quests(console, "healthy")
    app.number_input(key="quest_target_revenue").set_value(2_000)
    press(app, "Generate")
    ((_, text),) = alerts(app)
    assert text.startswith("Target revenue\\, in dollars must be a whole number from 84\\,001")
    assert "Nothing was charged" in text
    assert balance(tokens) == 20


def test_a_database_that_is_down_is_said_and_costs_nothing(
    console: Open, tokens: Tokens, settings: Settings
) -> None:
    app = open_quests(console, "healthy")
    nobody = "postgresql+psycopg://tokenlib_service@127.0.0.1:1/tokenlib"
    with Tokens(Database(nobody)) as down:
        process.gate.use(down, settings)
        press(app, "Generate")
        assert not app.exception
        assert [error.title for error in app.error] == ["The database does not answer"]
        assert "Nothing was charged" in app.error[0].value
        process.gate.use(tokens, settings)
    press(app, "Try again")
    assert app.title[0].value != "Not available"
    assert balance(tokens) == 20


def test_a_quest_by_the_size_of_its_answer_shows_what_it_may_cost(
    console: Open, tokens: Tokens, settings: Settings, token_database: TestDatabase
) -> None:
    tokens.staff_set_unit_size(ADMIN, "generate_goal", 700, reason="a dear model")
    # What is made offline has no length, so its price is one figure.
    assert ":blue-badge[3 tokens]" in texts(open_quests(console, "healthy"))
    endpoint = {"llm_base_url": "http://127.0.0.1:1/v1", "llm_model": "a model"}
    process.gate.use(tokens, replace(settings, **endpoint))  # type: ignore[arg-type]
    app = open_quests(console, "healthy")
    assert ":blue-badge[3 to 9 tokens]" in texts(app)
    assert "Generate a quest: up to 6 left" in texts(app)
    [form] = [each for each in app.markdown if "Generate a quest line" in each.value]
    assert "3 tokens per 700 output units" in form.help
    with token_database.connect() as owner:
        owner.execute("update ai_token_limits set output_units_per_request = 1000")
    assert ":blue-badge[3 to 6 tokens]" in texts(app.run())


def test_steps_have_rewards_that_can_be_claimed_once(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    app = open_quests(console, "healthy")
    press(app, "Generate")
    assert "0 of 1,000 points" in [progress.text for progress in app.progress]
    assert "Win 40 new clients in" in texts(app)
    press(app, "Claim 400 points")
    assert not app.exception
    assert "400 of 1,000 points" in [progress.text for progress in app.progress]
    assert "400 points claimed" in texts(app)
    assert not [button for button in app.button if button.label == "Claim 400 points"]
    (quest,) = scenario("healthy").reports.quests(scenario("healthy").organization_id)
    assert quest.progress == 25
    assert balance(tokens) == 17


def test_a_quest_of_a_name_with_markdown_in_it_is_shown_as_it_stands(
    console: Open, tokens: Tokens
) -> None:
    app = open_quests(console, "healthy")
    app.text_input(key="quest_goal").set_value("![x](http://example.org/x.png)")
    press(app, "Generate")
    assert "![x](" not in texts(app)
    assert r"\!\[x\]\(http" in app.expander[0].label


def _quarter(app: AppTest) -> str:
    return str(app.session_state["quest_quarter"])
