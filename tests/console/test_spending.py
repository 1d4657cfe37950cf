"""Overview, Usage and Top spenders in each role and state, and what admins do from there."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

import pytest
from streamlit.testing.v1 import AppTest

from tests.console.conftest import copied
from tests.console.opening import Open, open_alone, open_page, press, texts
from tests.console.reading import figures, plain, table
from tokenlib import demo
from tokenlib.config import Settings
from tokenlib.console import actions, charts, heavy, process, ranges, shapes
from tokenlib.db import Database
from tokenlib.domain import Limits
from tokenlib.embedded import Embedded
from tokenlib.reports import Reports
from tokenlib.reports.series import SeriesPoint
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

PAGES = ("overview.py", "usage.py", "spenders.py")
HEALTHY = demo.SCENARIOS["healthy"]
ROME = ZoneInfo("Europe/Rome")
NOW = datetime(2026, 11, 20, 14, 30, tzinfo=UTC)
FEW = 3_000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def filled(token_server: Embedded) -> Iterator[Tokens]:
    """The whole demo with few charges, which the tests only look at."""
    with (
        copied(token_server, "tokenlib_template") as database,
        Tokens(Database(database.url())) as tokens,
    ):
        demo.load(database.url("tokenlib_owner"), tokens, charges=FEW)
        yield tokens


@pytest.fixture
def full(filled: Tokens, tmp_path: Path) -> Iterator[Open]:
    process.gate.use(filled, Settings(data_dir=tmp_path))
    yield open_page
    process.gate.forget()


@pytest.fixture(scope="module")
def unused(token_server: Embedded) -> Iterator[Tokens]:
    """A migrated database with an admin and nothing else."""
    with (
        copied(token_server, "tokenlib_template") as database,
        Tokens(Database(database.url())) as tokens,
    ):
        admin = demo.PERSONAS["admin"]
        with database.connect() as owner:
            owner.execute(
                "insert into tokenlib_staff (user_id, email, full_name, role)"
                " values (%s, %s, %s, 'admin')",
                (admin.user_id, admin.email, admin.name),
            )
        yield tokens


@pytest.fixture
def bare(unused: Tokens, tmp_path: Path) -> Iterator[Open]:
    process.gate.use(unused, Settings(data_dir=tmp_path))
    yield open_page
    process.gate.forget()


def drawn(app: AppTest) -> bool:
    return bool(app.metric or app.dataframe or app.get("vega_lite_chart"))


@pytest.mark.parametrize("persona", ["admin", "support"])
@pytest.mark.parametrize("page", PAGES)
def test_staff_see_every_part(full: Open, page: str, persona: str) -> None:
    app = full(page, persona)
    assert not app.exception
    assert not app.error
    assert drawn(app)
    assert "As of " in texts(app)
    assert any(button.label == "Refresh" for button in app.button)
    assert all(chart.proto.alt.strip() for chart in app.get("vega_lite_chart"))
    assert all(frame.proto.alt.strip() for frame in app.dataframe)


@pytest.mark.parametrize("page", PAGES)
def test_a_member_sees_none_of_it(full: Open, page: str) -> None:
    app = full(page, "member")
    assert [warning.title for warning in app.warning] == ["Not for you"]
    assert not drawn(app)
    assert not drawn(open_alone(page))


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("overview.py", ["No AI feature was used", "Nothing needs you now", "Nothing moved"]),
        ("usage.py", ["No AI feature was used in the last 30 days"]),
        ("spenders.py", ["Nobody used a token"]),
        ("spenders.py?list=Beyond a limit", ["Nobody went beyond"]),
        ("spenders.py?list=Often refused", ["Nobody was refused"]),
    ],
)
def test_an_empty_database_says_what_to_do(bare: Open, page: str, said: list[str]) -> None:
    page, _, chosen = page.partition("?list=")
    app = bare(page, **({"list": chosen} if chosen else {}))
    assert not app.exception
    assert not app.error
    for words in said:
        assert words in texts(app)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "query",
    [
        {"range": "1000y", "by": "By moon", "who": "Cats", "step": "Century"},
        {"range": "Custom", "dates": ["tomorrow", "never"]},
        {"organization": "x' or 1=1", "user": "x", "bar": "x_y", "before": "a_b_c"},
        {"organization": "00000000-0000-0000-0000-000000000000", "bar": "2026-01-01T00:00"},
    ],
)
def test_a_link_that_cannot_be_meant_breaks_nothing(
    full: Open, page: str, query: dict[str, str]
) -> None:
    app = full(page, **query)
    assert not app.exception
    assert not app.error


def test_what_needs_attention_is_counted_and_named(full: Open, filled: Tokens) -> None:
    found = Reports(filled.database, None).attention()
    app = full("overview.py")
    said = " ".join(link.proto.label for link in app.get("page_link"))
    assert found.at_80.total > 1
    assert f"{found.at_80.total} organizations with a wallet at 80 %" in said
    assert found.findings.total > 1
    assert f"{found.findings.total} findings open" in said
    assert "used up" not in said or found.at_100.total
    assert found.findings.rows[0].organization in texts(app)


def test_each_line_of_attention_opens_its_cause(full: Open, filled: Tokens) -> None:
    found = Reports(filled.database, None).attention()
    queries = {
        link.proto.label: dict(parse_qsl(link.proto.query_string))
        for link in full("overview.py").get("page_link")
        if link.proto.query_string
    }

    def cause(page: str, words: str) -> AppTest:
        (query,) = (query for label, query in queries.items() if words in label)
        return full(page, **query)

    near = cause("organizations.py", "at 80 %")
    listed = near.dataframe[0].value["Organization"]
    assert [row.name for row in found.at_80.rows] == list(listed)[: len(found.at_80.rows)]
    assert f"{found.at_80.total} organizations" in texts(near)
    beyond = table(cause("spenders.py", "beyond a limit"), "peak_hour_tokens")
    assert {row.user for row in found.abuse.rows} <= set(beyond["user"])
    (books,) = (query for label, query in queries.items() if "verified" in label)
    assert books == {"check": "books"}


def test_the_people_beyond_a_limit_are_those_of_the_list(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    # Neither the alert nor too many a minute: one request too large, and two too close.
    tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.user_id, "generate_insight", units=11)
    for _ in range(2):
        tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.colleague_id, "generate_insight")
    token_clock.advance(timedelta(minutes=1))
    (link,) = [
        link
        for link in console("overview.py").get("page_link")
        if "beyond a limit" in link.proto.label
    ]
    shown = console("spenders.py", **dict(parse_qsl(link.proto.query_string)))
    listed = table(shown, "peak_hour_tokens")
    assert {"healthy user", "healthy colleague"} <= set(listed["user"])
    assert link.proto.label.startswith(f":red[**{len(listed)} people beyond a limit")


def test_empty_wallets_lead_to_those_that_have_one(console: Open, tokens: Tokens) -> None:
    tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.user_id, "generate_insight", units=50)
    (link,) = [
        link for link in console("overview.py").get("page_link") if "used up" in link.proto.label
    ]
    shown = console("organizations.py", **dict(parse_qsl(link.proto.query_string)))
    assert shown.dataframe[0].value["Organization"].tolist() == ["Healthy Roofing"]
    assert link.proto.label.startswith(":red[**1 organization with a wallet used up")
    assert shown.selectbox(key="level").value == "used100"


def test_health_shows_first_what_a_link_asked_for(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    tokens.reserve(HEALTHY.organization_id, HEALTHY.user_id, "generate_leads")
    token_clock.advance(timedelta(days=31))
    for asked, title in (("holds", "Reservations past"), ("overdue", "Periods past")):
        details = [one.value for one in console("health.py", check=asked).markdown]
        first = next(text for text in details if text.startswith("**") and " · " in text)
        assert title in first


def test_support_reads_but_is_offered_no_action(full: Open) -> None:
    admin, support = full("spenders.py"), full("spenders.py", "support")
    assert "throttle" in table(admin, "unusual").columns
    assert not any("throttle" in frame.value.columns for frame in support.dataframe)


@pytest.mark.parametrize("persona", ["admin", "support"])
def test_only_an_admin_throttles_and_sees_the_entry(
    console: Open, tokens: Tokens, persona: str
) -> None:
    tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.user_id, "generate_leads")
    app = console("spenders.py", persona)
    app.session_state[actions.OPEN] = actions.Asked("throttle", HEALTHY.organization_id)
    app.run()
    app.number_input(key="throttle_requests_per_minute").set_value(2).run()
    app.number_input(key="throttle_failed_attempts").set_value(3).run()
    app.text_input(key=actions.REASON).set_value("A script runs wild").run()
    press(app, "Throttle")
    own = {row.organization_id: row.limits for row in Reports(tokens.database, None).limits()}
    if persona == "support":
        assert HEALTHY.organization_id not in own
        assert app.error
        return
    limits = own[HEALTHY.organization_id]
    assert isinstance(limits, Limits)
    assert (limits.requests_per_minute, limits.failed_attempts) == (2, 3)
    assert [done.title for done in app.success] == ["Done"]
    entry = table(app, "actor_name").iloc[0]
    assert entry["reason"] == "A script runs wild"
    assert entry["changed"].startswith("requests a minute 2")
    assert entry["actor_name"] == "Demo admin"


def test_an_admin_pauses_a_person_and_sees_the_entry(
    console: Open, tokens: Tokens, token_database: TestDatabase
) -> None:
    tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.user_id, "generate_leads")
    app = console("spenders.py", who="People")
    assert table(app, "unusual")["pause"].tolist() == ["Pause…"] * 3
    app.session_state[actions.OPEN] = actions.Asked(
        "user", HEALTHY.organization_id, HEALTHY.user_id
    )
    app.run()
    app.text_input(key=actions.REASON).set_value("Asked to").run()
    press(app, "Pause")
    assert plain(token_database, "select count(*) from ai_token_user_settings") == [(1,)]
    entries = table(app, "actor_name")[["reason", "changed"]].to_numpy().tolist()
    assert entries == [["Asked to", "AI paused"]]


def test_the_strip_shows_nothing_to_who_lost_the_role(
    console: Open, tokens: Tokens, token_database: TestDatabase
) -> None:
    tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.user_id, "generate_leads")
    app = console("overview.py")
    assert table(app, "remaining_balance")["tokens"].tolist()[0] == 5
    with token_database.connect() as owner:
        owner.execute("delete from tokenlib_staff")
    app.run()
    assert not app.exception
    assert not drawn(app)


def test_use_against_its_own_past_is_said_in_words(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    for _ in range(12):
        token_clock.advance(timedelta(days=2))
        tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.user_id, "analyze_efficiency")
    token_clock.advance(timedelta(days=2))
    for _ in range(5):
        tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.user_id, "analyze_strategy")
    rows = Reports(tokens.database, None).spenders(
        token_clock.now() - timedelta(days=1), token_clock.now()
    )
    words = table(console("spenders.py"), "unusual")["unusual"].tolist()
    assert words == [heavy.unusual(row) for row in rows]
    assert words[0].startswith("⚠ Unusual")
    assert figures(console("spenders.py"))["Unusual"] == "1 of 1"


def test_calendar_days_are_the_readers_and_end_now() -> None:
    window = ranges.between(date(2026, 11, 19), date(2026, 11, 20), NOW, ROME)
    assert window.since.isoformat() == "2026-11-19T00:00:00+01:00"
    assert window.until == NOW
    assert window.before.since.isoformat() == "2026-11-17T00:00:00+01:00"
    assert window.before.until == NOW - timedelta(days=2)
    fall = ranges.between(date(2026, 10, 25), date(2026, 10, 25), NOW, ROME)
    hours = fall.starts("hour", ROME)
    assert len(hours) == 25
    assert len({shapes.name(hour, "hour", fall, ROME) for hour in hours}) == 25


@pytest.mark.parametrize(
    ("name", "steps"),
    [("24h", ["hour"]), ("7d", ["day", "hour"]), ("30d", ["day", "week"])],
)
def test_a_window_is_drawn_in_steps_that_suit_it(name: str, steps: list[str]) -> None:
    words, length = ranges.RANGES[name]
    assert ranges.Window(NOW - length, NOW, words).steps == steps


def test_a_day_that_is_not_over_is_marked() -> None:
    window = ranges.Window(NOW - timedelta(days=2), NOW, "2 days")
    names = [shapes.name(day, "day", window, ROME) for day in window.starts("day", ROME)]
    assert names == ["18 Nov", "19 Nov", "20 Nov, so far"]
    cut = [shapes.partial(day, "day", window, ROME) for day in window.starts("day", ROME)]
    assert cut == ["from 18 Nov 15:30", "", "until 20 Nov 15:30"]


def test_what_may_have_been_among_the_rest_before_is_not_called_new() -> None:
    rows = [SeriesPoint(NOW, key, key or "Other", 1, 10, 0) for key in ("a", "b", None)]
    names = shapes.titles(rows)
    assert list(names.values())[-1] == "Other"
    known = shapes.compared(rows, rows[:1], names).set_index("group")["change"]
    assert known.to_dict() == {"a": "= 0 %", "b": "new", "Other": "—"}
    unknown = shapes.compared(rows, [rows[0], rows[2]], names).set_index("group")["change"]
    assert unknown["b"] == "—"


def test_a_charge_that_was_waived_or_refunded_says_so(console: Open, tokens: Tokens) -> None:
    admin = demo.PERSONAS["admin"].user_id
    who = HEALTHY.organization_id, HEALTHY.user_id
    tokens.refund(tokens.deduct_tokens(*who, "generate_leads"), "a test")
    until = tokens.database.rows("select tokenlib.clock() + interval '1 hour' as at")[0]["at"]
    tokens.staff_set_mode(admin, "log_only", until=until, reason="a test")
    tokens.deduct_tokens(*who, "generate_goal")
    app = console("usage.py", range="24h")
    rows = table(app, "became")[["feature", "tokens", "became"]].to_numpy().tolist()
    assert ["Generate leads", 5, "Refunded"] in rows
    assert ["Generate a quest", 0, "3 waived"] in rows
    assert "3 tokens more waived" in texts(app)
    assert "3 waived" in table(console("overview.py"), "became")["became"].tolist()


def test_a_feature_keeps_its_color_whatever_else_is_drawn() -> None:
    catalog = ["Leads", "Quest", "Insight"]
    assert charts.colors(["Insight", "Leads"], catalog) == [charts.COLORS[2], charts.COLORS[0]]
    assert charts.colors(["Insight"], catalog) == [charts.COLORS[2]]
    assert charts.colors(["New", "Other"], catalog) == [charts.COLORS[3], charts.REST]
    assert charts.colors(["Slate", "Amber", "Other"]) == [*charts.COLORS[:2], charts.REST]


@pytest.mark.parametrize("page", ["overview.py", "usage.py"])
def test_every_chart_draws_a_feature_in_its_color(full: Open, filled: Tokens, page: str) -> None:
    titles = [feature.title for feature in filled.catalog().features.values()]
    for span in ("24h", "90d"):
        drawn_as = json.loads(full(page, range=span).get("vega_lite_chart")[0].proto.spec)
        scale = drawn_as["encoding"]["color"]["scale"]
        shown = dict(zip(scale["domain"], scale["range"], strict=True))
        assert shown == {title: charts.COLORS[titles.index(title)] for title in scale["domain"]}


def test_chart_colors_stand_out_in_light_and_dark() -> None:
    theme = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())["theme"]
    for mode in ("light", "dark"):
        assert tuple(theme[mode]["chartCategoricalColors"]) == charts.COLORS
        for color in (*charts.COLORS, charts.REST):
            assert contrast(color, theme[mode]["backgroundColor"]) >= 3, (mode, color)
        assert contrast(theme[mode]["textColor"], theme[mode]["backgroundColor"]) >= 7
    assert len({*charts.COLORS, charts.REST}) == len(charts.COLORS) + 1


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it: from 1 to 21."""
    dark, light = sorted(luminance(color) for color in (one, other))
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
