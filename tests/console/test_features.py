"""The other AI features: a card each, charged as any other, and what a failure costs."""

from __future__ import annotations

import json

import pytest
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open, press, texts
from tokenlib import demo
from tokenlib.testing import TestDatabase
from tokenlib.tokens import Tokens

HEALTHY = demo.SCENARIOS["healthy"]


def balance(tokens: Tokens, token_type: str = "lead_generation") -> int:
    return tokens.get_token_balance(HEALTHY.organization_id, token_type).balance


def run(app: AppTest, feature: str = "Generate leads") -> AppTest:
    press(app, f"Run: {feature.lower()}")
    assert not app.exception
    return app


@pytest.mark.parametrize(
    ("feature", "cost", "left"),
    [
        ("Generate leads", 5, 45),
        ("Analyze strategy", 2, 98),
        ("Forecast revenue", 4, 26),
        ("Generate an insight", 1, 49),
        ("Analyze efficiency", 2, 48),
    ],
)
def test_every_other_feature_runs_and_costs_what_the_catalog_says(
    console: Open, feature: str, cost: int, left: int
) -> None:
    app = run(console("features.py"), feature)
    (success,) = app.success
    tokens = "1 token" if cost == 1 else f"{cost} tokens"
    assert success.value.startswith(f"Used {tokens} for ")
    assert success.value.endswith(f". {left} left.")
    assert f": {left} of " in texts(app)
    assert app.dataframe
    assert app.dataframe[0].proto.alt
    assert [status.label for status in app.status] == ["Done"]


def test_a_cost_by_the_size_of_the_answer_is_shown_as_such(console: Open, tokens: Tokens) -> None:
    admin = demo.PERSONAS["admin"].user_id
    tokens.staff_set_unit_size(admin, "generate_leads", 500, reason="a dear model")
    said = texts(console("features.py"))
    assert "5 tokens per 500 output units" in said
    assert "50 of 50 · up to 10 uses left" in said


def test_a_result_stays_while_another_feature_runs_and_is_one_scenarios_own(
    console: Open, tokens: Tokens
) -> None:
    app = run(console("features.py"))
    run(app, "Analyze strategy")
    # The second follows within three seconds of the first: refused, and the first result stays.
    assert [alert.title for alert in app.warning] == ["One moment"]
    assert "Used 5 tokens for generate_leads. 45 left." in [a.value for a in app.success]
    app.segmented_control(key="scenario").set_value("low").run()
    assert not app.success


def test_a_failing_model_gives_the_tokens_back(console: Open, tokens: Tokens) -> None:
    app = console("features.py")
    app.toggle(key="trials_failing").set_value(True)
    run(app)
    assert [alert.title for alert in app.warning] == ["The model failed"]
    assert "the 5 tokens held for it went back" in app.warning[0].value
    assert [status.state for status in app.status] == ["error"]
    assert balance(tokens) == 50


@pytest.mark.parametrize(("given", "said"), [("{", "not JSON"), (json.dumps({"x": 1}), "unknown")])
def test_unusable_input_costs_nothing(console: Open, tokens: Tokens, given: str, said: str) -> None:
    app = console("features.py")
    app.text_area(key="input_generate_leads").set_value(given)
    run(app)
    assert said in app.error[0].value
    assert "Nothing was charged" in app.error[0].value
    assert balance(tokens) == 50


def test_starter_sees_what_the_other_plans_give(look: Open) -> None:
    app = look("features.py", scenario="Starter")
    assert "This plan includes no AI features" in app.info[0].value
    assert texts(app).count("Not in this plan") == 5


def test_a_paused_organization_sees_why_before_it_tries(look: Open) -> None:
    app = look("features.py", scenario="Paused")
    assert [error.title for error in app.error] == ["AI is paused"]


def test_a_catalog_without_other_features_says_so(
    console: Open, token_database: TestDatabase
) -> None:
    with token_database.connect() as owner:
        owner.execute("delete from ai_token_features where feature <> 'generate_goal'")
    assert "no other feature" in texts(console("features.py"))
