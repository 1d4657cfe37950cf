"""The list of organizations: found, filtered, sorted, paged; its figures are the stored ones."""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open, open_alone, texts
from tokenlib import demo
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

PAGE = "organizations.py"


def listed(app: AppTest) -> pd.DataFrame:
    """The list, by organization."""
    frame: pd.DataFrame = next(
        frame.value for frame in app.dataframe if "Goal generation" in frame.value.columns
    )
    return frame.set_index("Organization")


def test_balances_have_a_mark_beside_their_color_and_what_they_buy(look: Open) -> None:
    app = look(PAGE)
    assert not app.exception
    assert listed(app)["Goal generation"].to_dict() == {
        "Empty Roofing": "○ 2 of 20 · 0 uses",
        "Healthy Roofing": "● 20 of 20 · 6 uses",
        "Low Roofing": "○ 3 of 21 · 1 use",
        "Paused Roofing": "● 20 of 20 · 6 uses",
        "Payment failed Roofing": "● 20 of 20 · 6 uses",
        "Starter Roofing": "—",
        "Unlimited Roofing": "∞ unlimited",
    }
    assert listed(app).loc["Healthy Roofing", "General"] == "● 50 of 50 · 25 to 50 uses"
    assert listed(app)["State"]["Paused Roofing"] == "Paused"
    assert listed(app)["Lowest"][
        ["Empty Roofing", "Healthy Roofing", "Starter Roofing"]
    ].tolist() == [
        "○ Low",
        "● Above half",
        "— Not in this plan",
    ]


def test_the_run_out_is_the_first_wallet_at_the_pace_of_the_last_week(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    low = demo.SCENARIOS["low"]
    token_clock.advance(timedelta(days=1))
    tokens.deduct_tokens(low.organization_id, low.user_id, "generate_goal")
    rows = listed(console(PAGE))["Runs out"]
    assert rows["Low Roofing"] == "now: Goal generation"
    assert rows["Healthy Roofing"] == ""
    assert listed(console(PAGE, sort="Runs out first")).index[0] == "Low Roofing"


def test_a_due_refresh_is_marked_and_does_not_change_the_figure(
    console: Open, token_clock: TestClock
) -> None:
    token_clock.advance(timedelta(days=31))
    rows = listed(console(PAGE, plan="Pro"))
    assert rows.loc["Empty Roofing", "Goal generation"] == "○ 2 of 20 ↻ · 0 uses"
    assert rows.loc["Empty Roofing", "Refresh"] == "due"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"plan": "Starter"}, {"Starter Roofing"}),
        ({"status": "Paused"}, {"Paused Roofing"}),
        ({"level": "Low"}, {"Empty Roofing", "Low Roofing"}),
        ({"level": "Not in this plan"}, {"Starter Roofing"}),
        ({"search": "user.low@example.org"}, {"Low Roofing"}),
        ({"search": "unlim"}, {"Unlimited Roofing"}),
        ({"search": str(demo.SCENARIOS["empty"].organization_id)}, {"Empty Roofing"}),
        ({"search": "roofing", "plan": "Pro", "level": "Low"}, {"Empty Roofing", "Low Roofing"}),
    ],
)
def test_search_and_filters_in_the_url_narrow_the_list(
    look: Open, query: dict[str, str], expected: set[str]
) -> None:
    assert set(listed(look(PAGE, **query)).index) == expected


def test_nobody_matches(look: Open) -> None:
    app = look(PAGE, search="nobody at all")
    assert "No organization matches" in texts(app)
    assert not app.dataframe


@pytest.mark.parametrize(
    "query", [{"plan": "Gold"}, {"sort": "1; drop table"}, {"list_page": "-3"}]
)
def test_a_filter_that_nobody_offers_is_ignored(look: Open, query: dict[str, str]) -> None:
    app = look(PAGE, **query)
    assert not app.exception
    assert not app.error
    assert len(listed(app)) == 7


def test_the_order_is_in_the_url(look: Open, kept_tokens: Tokens) -> None:
    used = list(listed(look(PAGE, sort="Most used")).index)
    assert set(used[:2]) == {"Low Roofing", "Empty Roofing"}


def test_a_long_list_has_pages_and_the_page_is_in_the_url(
    console: Open, token_database: TestDatabase
) -> None:
    with token_database.connect() as owner:
        owner.execute(
            "insert into organizations (id, name, plan)"
            " select gen_random_uuid(), 'Many ' || to_char(n, 'FM000'), 'pro'"
            " from generate_series(1, 50) as n"
        )
        names = [
            row[0] for row in owner.execute("select name from organizations order by name, id")
        ]
    first = console(PAGE)
    assert list(listed(first).index) == names[:20]
    assert "57 organizations" in texts(first)
    assert list(listed(console(PAGE, list_page="3")).index) == names[40:]
    beyond = console(PAGE, list_page="9")
    assert not beyond.exception
    assert list(listed(beyond).index) == names[:20]


def test_a_filter_begins_at_the_first_page(console: Open, token_database: TestDatabase) -> None:
    with token_database.connect() as owner:
        owner.execute(
            "insert into organizations (id, name, plan)"
            " select gen_random_uuid(), 'Many ' || n, 'pro' from generate_series(1, 50) as n"
        )
    app = console(PAGE, list_page="2")
    app.selectbox(key="plan").set_value("starter").run()
    assert list(listed(app).index) == ["Starter Roofing"]
    app.selectbox(key="plan").set_value(None).run()
    assert "Empty Roofing" in listed(app).index


def test_the_figures_are_what_plain_sql_says(look: Open, kept_tokens: Tokens) -> None:
    rows = kept_tokens.database.rows(
        "select o.name, w.balance, w.total_allocated from ai_tokens w"
        " join organizations o on o.id = w.organization_id"
        " where token_type = 'forecast' and total_allocated > 0",
        {},
    )
    shown = listed(look(PAGE))["Forecast"]
    for row in rows:
        assert f" {row['balance']} of {row['total_allocated']}" in shown[row["name"]]


def test_no_role_no_list(look: Open) -> None:
    assert [warning.title for warning in look(PAGE, "member").warning] == ["Not for you"]
    app = open_alone(PAGE, persona="owner")
    assert [info.title for info in app.info] == ["Sign-in needed"]
    assert not app.dataframe
