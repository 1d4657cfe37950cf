"""An organization's page: what it has, why it was refused, what moved its balance."""

from __future__ import annotations

import uuid
from contextlib import suppress
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tests.console.opening import Open, of, open_alone, open_page, texts
from tests.console.reading import parameter, table
from tokenlib import demo
from tokenlib.console import refused
from tokenlib.errors import Refused
from tokenlib.reports import Reports
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

PAGE = "organization.py"
HEALTHY = demo.SCENARIOS["healthy"]
EMPTY = demo.SCENARIOS["empty"]
LOW = demo.SCENARIOS["low"]


@pytest.mark.parametrize("persona", ["admin", "support"])
def test_staff_see_an_organization_by_its_link(seen: TestDatabase, persona: str) -> None:
    app = of(HEALTHY, persona)
    said = texts(app)
    assert "Healthy Roofing" in said
    assert str(HEALTHY.organization_id) in said
    assert "19 of 25" in said  # 20 - 3 used - 3 held + 5
    assert "3 used, 3 held in this period" in said
    assert "Gift: 2 of 5 left, until" in said
    assert "Purchase: 500 of 500 left, until" in said


def test_a_member_sees_nothing_of_it_also_of_their_own(seen: TestDatabase) -> None:
    app = open_page(PAGE, "member", id=str(HEALTHY.organization_id))
    assert [warning.title for warning in app.warning] == ["Not for you"]
    assert not app.dataframe
    assert not app.tabs


@pytest.mark.parametrize(
    "asked",
    ["", "x", "' or 1=1 --", str(uuid.UUID(int=0)), "é" * 300, "[a](https://example.org)"],
)
def test_a_link_that_names_none_says_so(seen: TestDatabase, asked: str) -> None:
    app = open_page(PAGE, id=asked)
    assert not app.exception
    assert [info.title for info in app.info] == ["Which organization?"]
    assert not app.tabs
    assert "](http" not in app.info[0].value


def test_the_file_alone_and_a_forged_session_show_nothing(seen: TestDatabase) -> None:
    for state in ({}, {"persona": "owner", "role": "admin"}):
        app = open_alone(PAGE, **state)
        assert [info.title for info in app.info] == ["Sign-in needed"]
        assert not app.tabs


def test_a_tab_outlives_its_role_and_then_shows_nothing(
    console: Open, token_database: TestDatabase
) -> None:
    app = of(HEALTHY, "support")
    with token_database.connect() as owner:
        owner.execute("delete from tokenlib_staff where role = 'support'")
    app.run()
    assert not app.exception
    assert not app.tabs
    assert "Healthy Roofing" not in texts(app)


@pytest.mark.parametrize(
    "view", ["Story", "Refusals", "Usage", "Holds and grants", "Ledger", "People"]
)
@pytest.mark.parametrize("name", demo.SCENARIOS)
def test_every_view_of_every_state_opens(seen: TestDatabase, name: str, view: str) -> None:
    app = of(demo.SCENARIOS[name], view=view)
    assert not app.error or name in ("paused", "payment_failed")
    assert [tab.label for tab in app.tabs if tab.children] == [view]  # hidden ones ask nothing
    assert all(frame.proto.alt for frame in app.dataframe)


def test_the_story_adds_up_now_and_at_a_past_moment(seen: TestDatabase) -> None:
    app = of(HEALTHY, story="Goal generation")
    (story,) = app.table
    lines = story.value.iloc[:, 0].tolist()
    assert [line.strip("*") for line in lines] == ["20", "+5", "-3", "-3", "19"]
    assert [line.split(" on ")[0] for line in story.value.index] == [
        "The wallet was opened",
        "Added: gift",
        "Used for Generate a quest",
        "Held by 1 request that run",
        "**The balance stands at**",
    ]
    assert "Used in this period: 3 tokens of 25" in texts(app)


def test_the_story_of_a_past_moment_is_that_of_the_entries(seen: TestDatabase) -> None:
    past = TestClock(seen).now() - timedelta(hours=2)  # between the charges and the gift
    app = of(HEALTHY, story="Goal generation")
    local = past.astimezone(ZoneInfo("Europe/Rome"))
    app.datetime_input[0].set_value(local.replace(tzinfo=None)).run()
    assert not app.exception
    assert app.table[0].value.iloc[-1, 0] == "**17**"


def test_a_moment_before_the_books_says_so(seen: TestDatabase) -> None:
    app = of(HEALTHY, story="Goal generation")
    app.datetime_input[0].set_value(datetime(2026, 1, 1)).run()  # noqa: DTZ001 - as the widget has it
    assert "this wallet was not open yet" in texts(app)


def test_a_moment_in_the_link_is_that_of_the_reader(seen: TestDatabase) -> None:
    past = TestClock(seen).now() - timedelta(hours=2)
    local = past.astimezone(ZoneInfo("Europe/Rome"))
    app = of(HEALTHY, story="Goal generation", at=f"{local:%Y-%m-%dT%H:%M}")
    assert app.table[0].value.iloc[-1, 0] == "**17**"


def test_refusals_name_the_rule_and_its_numbers(seen: TestDatabase) -> None:
    app = of(EMPTY, view="Refusals")
    rows = table(app, "because")
    assert rows[["user", "feature", "rule", "because", "count"]].to_numpy().tolist() == [
        ["empty user", "Generate a quest", "Not enough tokens", "needed 3, had 2", 1]
    ]


def test_the_refusal_that_is_answered_stands_in_the_url(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    for feature in ("generate_goal", "forecast_revenue"):
        with suppress(Refused):
            tokens.deduct_tokens(EMPTY.organization_id, EMPTY.user_id, feature, 99)
        token_clock.advance(timedelta(minutes=2))
    reports = Reports(tokens.database)
    now = reports.now()
    rows = reports.refusals(now - timedelta(hours=1), now, EMPTY.organization_id)
    assert len(rows) == 2
    for row in rows:
        app = of(EMPTY, view="Refusals", refusal=refused.name(row))
        assert tokens.catalog().features[row.feature].title in app.code[0].value
    latest = of(EMPTY, view="Refusals", refusal="x").code[0].value
    assert tokens.catalog().features[rows[0].feature].title in latest


def test_the_reply_is_plain_and_in_the_customers_time_zone(seen: TestDatabase) -> None:
    with seen.connect() as owner:
        row = owner.execute("select last_at from ai_token_refusals").fetchone()
    assert row is not None
    for zone in ("Europe/Rome", "Asia/Tokyo"):
        app = of(EMPTY, view="Refusals", customer_zone=zone)
        reply = app.code[0].value
        local = row[0].astimezone(ZoneInfo(zone))
        assert f"On {local.day} {local:%B %Y} at {local:%H:%M} ({zone})" in reply
        assert "It needs 3 tokens, and 2 were left." in reply
        assert "insufficient_tokens" not in reply


@pytest.mark.parametrize(
    ("scenario", "feature", "said"),
    [
        (HEALTHY, "analyze_strategy", "Yes, it would run"),
        (EMPTY, "generate_goal", "No: not enough tokens"),
        (demo.SCENARIOS["starter"], "generate_goal", "No: not in the plan"),
        (demo.SCENARIOS["paused"], "generate_goal", "No: organization paused"),
    ],
)
def test_could_this_person_do_this_now(
    seen: TestDatabase, scenario: demo.Scenario, feature: str, said: str
) -> None:
    app = of(scenario, view="Refusals")
    app.selectbox(key="who_choice").set_value(scenario.user_id)
    app.selectbox(key="what").set_value(feature).run()
    assert said in texts(app)
    assert parameter(app, "who") == str(scenario.user_id)
    again = of(scenario, view="Refusals", who=str(scenario.user_id), what="Analyze strategy")
    assert again.selectbox(key="who_choice").value == scenario.user_id
    assert again.selectbox(key="what").value == "analyze_strategy"
    with seen.connect() as owner:
        row = owner.execute("select count(*) from ai_token_refusals").fetchone()
    assert row == (1,)  # to ask leaves no trace


@pytest.mark.parametrize(
    ("scenario", "units", "said"),
    [
        (HEALTHY, 1, "Needs 3 tokens; 19 available."),
        (HEALTHY, 100, "Needs 300 tokens. Goal generation has 19, so the purchased packs pay."),
        (
            demo.SCENARIOS["unlimited"],
            1000,
            "Needs 3,000 tokens. Goal generation is unlimited here.",
        ),
        (HEALTHY, 1000, "Needs 3,000 tokens; 19 available."),
    ],
)
def test_the_verdict_says_what_pays(
    seen: TestDatabase, scenario: demo.Scenario, units: int, said: str
) -> None:
    app = of(
        scenario,
        view="Refusals",
        what="Generate a quest",
        units=str(units),
        with_limits="false",
    )
    assert said in texts(app)


@pytest.mark.parametrize(
    ("language", "said"), [("de-DE", "3.000"), ("fr-FR", "3\N{NARROW NO-BREAK SPACE}000")]
)
def test_numbers_in_sentences_are_the_readers(seen: TestDatabase, language: str, said: str) -> None:
    app = of(HEALTHY, view="Refusals", what="Generate a quest", units="1000", with_limits="false")
    app.context = {"timezone": "Europe/Rome", "locale": language}
    assert f"Needs {said} tokens" in texts(app.run())


def test_the_verdict_says_that_the_switch_lets_it_through(console: Open, tokens: Tokens) -> None:
    tokens.set_mode("off", actor="on call", reason="a test")
    app = of(EMPTY, view="Refusals", what="Generate a quest")
    assert "Goal generation has 2, and the emergency switch lets it through." in texts(app)


def test_use_is_what_plain_sql_says(seen: TestDatabase) -> None:
    app = of(HEALTHY, view="Usage", range="7d")
    with seen.connect() as owner:
        by_user = owner.execute(
            "select u.full_name, count(*), sum(tokens_deducted) from ai_token_usage_log l"
            " join user_profiles u on u.id = l.user_id where l.organization_id = %s group by 1",
            (HEALTHY.organization_id,),
        ).fetchall()
        by_feature = owner.execute(
            "select f.title, count(*), sum(tokens_deducted) from ai_token_usage_log l"
            " join ai_token_features f on f.feature = l.feature_used"
            " where l.organization_id = %s group by 1",
            (HEALTHY.organization_id,),
        ).fetchall()
    people = table(app, "calls")[["user", "calls", "tokens"]].to_numpy().tolist()
    assert sorted(map(tuple, people)) == sorted(by_user)
    features = table(app, "net")[["feature", "uses", "tokens"]].to_numpy().tolist()
    assert sorted(map(tuple, features)) == sorted(by_feature)


def test_holds_and_grants(seen: TestDatabase) -> None:
    app = of(HEALTHY, "support", view="Holds and grants")
    holds = table(app, "age")
    assert holds[["user", "feature", "tokens", "action"]].to_numpy().tolist() == [
        ["healthy user", "Generate a quest", 3, "Release"]
    ]
    assert (holds["age"] >= 0).all()
    grants = table(app, "remaining")
    gift = grants[grants["kind"] == "Gift"]
    assert gift[["amount", "remaining", "reason"]].to_numpy().tolist() == [
        [5, 2, "sorry"]
    ]  # the hold draws on what expires first


def test_only_an_admin_is_offered_what_only_an_admin_may(seen: TestDatabase) -> None:
    labels = {button.label for button in of(HEALTHY).button}
    assert {"Grant tokens", "Change plan", "Pause"} <= labels
    app = of(HEALTHY, "support", view="Ledger")
    labels = {button.label for button in app.button}
    assert "Give goodwill tokens" in labels
    assert not {"Change plan", "Pause"} & labels
    assert "action" not in table(app, "balance_after").columns
