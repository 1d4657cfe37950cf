"""The views are true: their figures are those of plain SQL on the same rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open, press, texts
from tokenlib import demo
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

HEALTHY = demo.SCENARIOS["healthy"]
FEATURES = ("generate_leads", "generate_goal", "analyze_strategy", "generate_insight")


@pytest.fixture
def busy(tokens: Tokens, token_database: TestDatabase, token_clock: TestClock) -> TestDatabase:
    """Three weeks of use by two people, and a refund."""
    organization = HEALTHY.organization_id
    for day in range(21):
        token_clock.advance(timedelta(days=1))
        for place, user in enumerate((HEALTHY.user_id, HEALTHY.colleague_id)):
            feature = FEATURES[(day + place) % len(FEATURES)]
            if tokens.has_enough_tokens(organization, feature):
                tokens.deduct_tokens(organization, user, feature)
    usage = tokens.deduct_tokens(organization, HEALTHY.user_id, "generate_insight")
    tokens.refund(usage, "a test")
    return token_database


def plain(database: TestDatabase, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """The operators' own SQL, as the owner."""
    with database.connect() as owner:
        return owner.execute(statement, values).fetchall()


def table(app: AppTest, column: str) -> Any:
    """The first table that has this column."""
    return next(frame.value for frame in app.dataframe if column in frame.value.columns)


def test_health_is_clean_on_clean_books(look: Open) -> None:
    app = look("health.py")
    said = texts(app)
    assert said.count("None") >= 6
    assert "found" not in said


def test_health_finds_what_is_overdue_expired_or_drifted(
    console: Open, tokens: Tokens, token_database: TestDatabase, token_clock: TestClock
) -> None:
    tokens.reserve(HEALTHY.organization_id, HEALTHY.user_id, "generate_leads")
    with token_database.connect() as owner:
        owner.execute(
            "update organizations set plan = 'enterprise' where id = %s",
            (demo.SCENARIOS["low"].organization_id,),
        )
    token_clock.advance(timedelta(minutes=11))
    app = console("health.py")
    assert table(app, "expires_at")[["organization", "tokens"]].to_numpy().tolist() == [
        ["Healthy Roofing", 5]
    ]
    assert table(app, "wallet_plan")[["name", "plan", "wallet_plan"]].to_numpy().tolist() == [
        ["Low Roofing", "Enterprise", "Pro"]
    ]
    token_clock.advance(timedelta(days=31))
    app.run()
    assert len(table(app, "overdue")) == 35


def test_health_verifies_the_books(console: Open) -> None:
    app = press(console("health.py"), "Verify now")
    assert "Every sum closes, every chain holds, no key was charged twice" in app.success[0].value


def test_health_measures_speed_and_keeps_it(console: Open, token_database: TestDatabase) -> None:
    app = console("health.py")
    assert set(table(app, "grade")["grade"]) == {"Not measured yet"}
    before = plain(token_database, "select count(*) from ai_token_usage_log")
    press(app, "Measure now")
    assert not app.exception
    speed = table(app, "grade").set_index("operation")
    assert (speed.loc[["Token check", "Deduction with log", "Stats"], "now"] > 0).all()
    assert speed.loc["Token check", "target"] == 5
    assert plain(token_database, "select count(*) from ai_token_usage_log") == before


def test_health_names_books_that_are_wrong(
    console: Open, tokens: Tokens, token_database: TestDatabase
) -> None:
    organization = tokens.create_organization("Adopted Paving", "pro")
    with token_database.connect() as owner:
        owner.execute("delete from ai_tokens where organization_id = %s", (organization,))
        owner.execute("delete from ai_token_grants where organization_id = %s", (organization,))
        owner.execute("alter table ai_tokens drop constraint sums_close")
        owner.execute(
            "insert into ai_tokens (organization_id, token_type, balance, total_allocated)"
            " values (%s, 'goal_generation', 9999, 20)",
            (organization,),
        )
    app = console("health.py")
    assert table(app, "difference")["name"].tolist() == ["Adopted Paving"]
    stuck = table(app, "total_allocated")[["name", "balance", "total_allocated"]]
    assert stuck.to_numpy().tolist() == [["Adopted Paving", 9999, 20]]
    assert texts(app).count("1 found") == 2


def test_a_member_sees_what_used_the_tokens(console: Open, tokens: Tokens) -> None:
    tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.user_id, "generate_leads")
    app = console("tokens.py", "member")
    said = texts(app)
    assert "45 of 50" in said
    assert "Generate leads: 9 left" in said
    assert table(app, "net")[["feature", "tokens"]].to_numpy().tolist() == [["Generate leads", 5]]
    app.session_state["entries"] = True  # the expander, opened
    entries = table(app.run(), "balance_after")
    assert entries.iloc[0][["kind", "balance_change", "balance_after"]].tolist() == [
        "Charge",
        -5,
        45,
    ]


def test_charts_and_tables_have_a_text_alternative(console: Open, busy: TestDatabase) -> None:
    for page in ("usage.py", "spenders.py", "health.py", "organizations.py"):
        app = console(page, range="30d")
        charts = app.get("vega_lite_chart")
        assert bool(charts) == (page in ("usage.py", "spenders.py"))
        assert all("tokens" in chart.proto.alt.lower() for chart in charts)
        assert app.dataframe
        assert all(frame.proto.alt for frame in app.dataframe)
