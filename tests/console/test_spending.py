"""Overview, Usage and Top spenders in each role and state, and what admins do from there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from streamlit.testing.v1 import AppTest

from tests.console.conftest import copied
from tests.console.opening import Open, open_alone, open_page, press, texts
from tests.console.reading import figures, plain, table
from tokenlib import demo
from tokenlib.config import Settings
from tokenlib.console import actions, heavy, process, ranges, shapes
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
        ("spenders.py", ["Nobody used a token", "Nobody went beyond", "Nobody was refused"]),
    ],
)
def test_an_empty_database_says_what_to_do(bare: Open, page: str, said: list[str]) -> None:
    app = bare(page)
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
    said = " ".join(link.proto.label for link in full("overview.py").get("page_link"))
    assert found.at_80.total > 1
    assert f"{found.at_80.total} wallets at 80 %" in said
    assert found.findings.total > 1
    assert f"{found.findings.total} findings open" in said
    assert "used up" not in said or found.at_100.total


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
    app.text_input(key=actions.REASON).set_value("A script runs wild").run()
    press(app, "Throttle")
    own = {row.organization_id: row.limits for row in Reports(tokens.database, None).limits()}
    if persona == "support":
        assert HEALTHY.organization_id not in own
        assert app.error
        return
    limits = own[HEALTHY.organization_id]
    assert isinstance(limits, Limits)
    assert limits.requests_per_minute == 2
    assert [done.title for done in app.success] == ["Done"]
    entry = table(app, "actor_name").iloc[0]
    assert entry["reason"] == "A script runs wild"
    assert entry["actor_name"] == "Demo admin"


def test_an_admin_pauses_a_person_and_sees_the_entry(
    console: Open, tokens: Tokens, token_database: TestDatabase
) -> None:
    tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.user_id, "generate_leads")
    app = console("spenders.py", who="People")
    assert table(app, "unusual")["pause"].tolist() == ["Pause or resume"] * 3
    app.session_state[actions.OPEN] = actions.Asked(
        "user", HEALTHY.organization_id, HEALTHY.user_id
    )
    app.run()
    app.text_input(key=actions.REASON).set_value("Asked to").run()
    press(app, "Pause")
    assert plain(token_database, "select count(*) from ai_token_user_settings") == [(1,)]
    assert table(app, "actor_name")["reason"].tolist() == ["Asked to"]


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
    assert figures(console("spenders.py"))["Unusual for themselves"] == "1 of 1"


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
