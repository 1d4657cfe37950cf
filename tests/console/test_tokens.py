"""A member's own tokens: what is left, the warnings, and nobody else's rows."""

from __future__ import annotations

from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open, open_alone, texts
from tokenlib import demo
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

PAGE = "tokens.py"
HEALTHY = demo.SCENARIOS["healthy"]
ORGANIZATION = HEALTHY.organization_id


def cards(app: AppTest) -> list[str]:
    """The balances on the cards."""
    return [text.value.removeprefix("### ") for text in app.markdown if "### " in text.value[:4]]


def test_the_cards_are_the_stored_balances(console: Open, token_database: TestDatabase) -> None:
    app = console(PAGE, "member")
    assert not app.exception
    with token_database.connect() as owner:
        rows = owner.execute(
            "select balance, total_allocated from ai_tokens where organization_id = %s",
            (ORGANIZATION,),
        ).fetchall()
    assert sorted(cards(app)) == sorted(f"{balance} of {given}" for balance, given in rows)
    said = texts(app)
    assert "Generate a quest: 6 left" in said
    assert "As of " in said
    assert not app.warning


def test_a_low_balance_is_a_warning_with_the_way_out(console: Open, tokens: Tokens) -> None:
    for _ in range(6):
        tokens.deduct_tokens(ORGANIZATION, HEALTHY.user_id, "generate_goal")
    app = console(PAGE, "member")
    (warning,) = app.warning
    assert warning.title == "Running low"
    assert "2 of 20 left, new tokens in 30 days" in warning.value
    assert "upgrade the plan, or buy a pack" in warning.value


def test_it_says_what_runs_out_before_the_refresh(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    said = texts(console(PAGE, "member"))
    assert "At the pace of the last 7 days: nothing runs out before its refresh" in said
    for _ in range(2):
        tokens.deduct_tokens(ORGANIZATION, HEALTHY.colleague_id, "generate_goal")
    # 14 are left, at 6 in 7 days: 16 or 17 dates away, as the clock stands.
    rome, now = ZoneInfo("Europe/Rome"), token_clock.now()
    end = (now + timedelta(days=7 * 14 / 6)).astimezone(rome).date()
    days = (end - now.astimezone(rome).date()).days
    said = texts(console(PAGE, "member"))
    assert f"Goal generation runs out in {days} days, its refresh" in said
    for _ in range(25):
        tokens.deduct_tokens(ORGANIZATION, HEALTHY.colleague_id, "analyze_efficiency")
    assert "General is empty, its refresh is in 30 days" in texts(console(PAGE, "member"))


def test_it_says_whether_the_figures_add_up(console: Open, token_database: TestDatabase) -> None:
    assert "Left, held and used add up" in texts(console(PAGE, "member"))
    with token_database.connect("postgres") as owner:
        owner.execute(
            "alter table public.ai_tokens drop constraint sums_close, disable trigger user"
        )
        owner.execute(
            "update public.ai_tokens set balance = balance - 1"
            " where organization_id = %s and token_type = 'forecast'",
            (ORGANIZATION,),
        )
    said = texts(console(PAGE, "member"))
    assert "The figures of Forecast do not add up" in said
    assert "Left, held and used" not in said


def test_the_refresh_button_asks_again(console: Open, tokens: Tokens) -> None:
    app = console(PAGE, "member")
    assert "20 of 20" in cards(app)
    tokens.deduct_tokens(ORGANIZATION, HEALTHY.colleague_id, "generate_goal")
    app.button(key="refresh").click().run()
    assert "17 of 20" in cards(app)


def test_a_due_refresh_says_so(console: Open, token_clock: TestClock) -> None:
    token_clock.advance(timedelta(days=31))
    assert "Refresh is due: new tokens come with the next use" in texts(console(PAGE, "member"))


@pytest.mark.parametrize(
    ("status", "title"), [("limited", "AI is off"), ("suspended", "AI is paused")]
)
def test_a_state_that_stops_ai_is_said_first(
    console: Open, tokens: Tokens, status: str, title: str
) -> None:
    tokens.set_status(ORGANIZATION, status, actor="test", reason="test")  # type: ignore[arg-type]
    app = console(PAGE, "member")
    assert [error.title for error in app.error] == [title]
    assert "20 of 20" in cards(app)


def test_starter_is_offered_an_upgrade(console: Open, tokens: Tokens) -> None:
    tokens.change_plan(ORGANIZATION, "starter")
    app = console(PAGE, "member")
    (prompt,) = app.info
    assert prompt.title == "Upgrade to use AI"
    assert "Pro: 250 tokens a period; Enterprise: 2,400 tokens a period" in prompt.value


def test_who_used_what_is_what_plain_sql_says(
    console: Open, tokens: Tokens, token_database: TestDatabase
) -> None:
    for user in (HEALTHY.user_id, HEALTHY.colleague_id, HEALTHY.colleague_id):
        tokens.deduct_tokens(ORGANIZATION, user, "generate_leads")
    app = console(PAGE, "member")
    with token_database.connect() as owner:
        rows = owner.execute(
            "select u.full_name, count(*), sum(tokens_deducted) from ai_token_usage_log l"
            " join user_profiles u on u.id = l.user_id where l.organization_id = %s group by 1",
            (ORGANIZATION,),
        ).fetchall()
    people = next(f.value for f in app.dataframe if "calls" in f.value.columns)
    shown = people[["user", "calls", "tokens"]].to_numpy().tolist()
    assert sorted(map(tuple, shown)) == sorted(rows)
    features = next(f.value for f in app.dataframe if "net" in f.value.columns)
    assert features[["feature", "uses", "tokens"]].to_numpy().tolist() == [
        ["Generate leads", 3, 15]
    ]
    assert all(chart.proto.alt for chart in app.get("vega_lite_chart"))


def test_a_member_who_left_their_organization_sees_nothing(
    console: Open, token_database: TestDatabase
) -> None:
    app = console(PAGE, "member")
    assert cards(app)
    with token_database.connect() as owner:
        owner.execute(
            "update user_profiles set organization_id = %s where id = %s",
            (demo.SCENARIOS["starter"].organization_id, HEALTHY.user_id),
        )
    app.run()
    assert not app.exception
    assert "Healthy Roofing" not in texts(app)
    assert "Starter Roofing" in texts(app)


@pytest.mark.parametrize("persona", ["admin", "support"])
def test_staff_are_sent_away(look: Open, persona: str) -> None:
    assert [warning.title for warning in look(PAGE, persona).warning] == ["Not for you"]
    assert [info.title for info in open_alone(PAGE).info] == ["Sign-in needed"]
