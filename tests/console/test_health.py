"""Health: what staff can do about what it finds, and what it keeps."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open, press, texts
from tokenlib import demo, latency
from tokenlib.console import actions, checks, speed
from tokenlib.reports import Reports
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

HEALTHY = demo.SCENARIOS["healthy"]
ADMIN = demo.PERSONAS["admin"]
WHY = "The caller is gone"


def table(app: AppTest, column: str) -> object:
    return next(frame.value for frame in app.dataframe if column in frame.value.columns)


def ask(app: AppTest, action: str, subject: object) -> AppTest:
    """Open a dialog, as the click on its row does."""
    asked = actions.Asked(action, HEALTHY.organization_id, subject)  # type: ignore[arg-type]
    app.session_state[actions.OPEN] = asked
    return app.run()


def confirm(app: AppTest, label: str) -> AppTest:
    app.text_input(key=actions.REASON).set_value(WHY)
    press(app, label)
    assert not app.exception
    return app


@pytest.fixture
def finding(tokens: Tokens, token_database: TestDatabase) -> object:
    """An open finding, as adoption leaves one."""
    with token_database.connect() as owner:
        row = owner.execute(
            "insert into ai_token_findings (organization_id, token_type, kind, detail, found,"
            " found_at) values (%s, 'goal_generation', 'emergency_balance', 'balance 9999',"
            " '{\"balance\": 9999}', tokenlib.clock()) returning id",
            (HEALTHY.organization_id,),
        ).fetchone()
    assert row is not None
    return row[0]


def test_an_admin_settles_a_finding_and_sees_its_entry(
    console: Open, tokens: Tokens, finding: object
) -> None:
    app = console("health.py")
    assert table(app, "found_at")["action"].tolist() == ["Settle"]  # type: ignore[index]
    before = tokens.get_token_balance(HEALTHY.organization_id, "goal_generation").balance
    ask(app, checks.SETTLE, finding)
    assert "9999" in texts(app)
    confirm(app, "Settle")
    assert [alert.title for alert in app.success] == ["Done"]
    assert WHY in texts(app)
    (row,) = Reports(tokens.database).findings()
    assert (row.settled_by, row.settlement) == (str(ADMIN.user_id), WHY)
    assert before == tokens.get_token_balance(HEALTHY.organization_id, "goal_generation").balance
    assert tokens.verify().closed


@pytest.mark.parametrize("persona", ["admin", "support"])
def test_who_settled_a_finding_of_the_old_system_has_a_name(
    console: Open,
    tokens: Tokens,
    finding: object,
    persona: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def settled_by() -> list[object]:
        return list(table(console("health.py", persona), "settlement")["settled_by"])  # type: ignore[index]

    monkeypatch.setattr(demo, "loaded", lambda _tokens: True)
    monkeypatch.setattr(demo.legacy, "figures", lambda _url: [])
    assert settled_by() == [None]
    by = {"actor": str(ADMIN.user_id), "reason": WHY}
    tokens.settle_finding(HEALTHY.organization_id, str(finding), **by)
    assert settled_by() == [ADMIN.name]


def test_support_may_look_at_a_finding_and_not_settle_it(
    console: Open, tokens: Tokens, finding: object
) -> None:
    app = console("health.py", "support")
    assert "action" not in table(app, "found_at")  # type: ignore[operator]
    confirm(ask(app, checks.SETTLE, finding), "Settle")
    assert "Only admin may do this" in app.error[0].value
    (row,) = Reports(tokens.database).findings()
    assert row.settled_at is None


def test_an_expired_hold_is_released(console: Open, tokens: Tokens, token_clock: TestClock) -> None:
    held = tokens.reserve(HEALTHY.organization_id, HEALTHY.user_id, "generate_leads")
    app = console("health.py", "support")
    assert "Reservations past their expiry** ·" not in texts(app)
    ask(app, checks.RELEASE, held.id)
    confirm(app, "Release")
    assert [alert.title for alert in app.success] == ["Done"]
    assert tokens.get_token_balance(HEALTHY.organization_id, "lead_generation").balance == 50
    second = tokens.reserve(HEALTHY.organization_id, HEALTHY.user_id, "generate_leads")
    token_clock.advance(timedelta(minutes=11))
    app = console("health.py", "support")
    assert table(app, "expires_at")["action"].tolist() == ["Release"]  # type: ignore[index]
    confirm(ask(app, checks.RELEASE, second.id), "Release")
    assert not app.error
    assert [alert.title for alert in app.success] == ["Done"]
    assert "expires_at" not in {name for frame in app.dataframe for name in frame.value.columns}
    assert tokens.get_token_balance(HEALTHY.organization_id, "lead_generation").balance == 50


def test_verifications_are_kept_and_grow_old(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    app = console("health.py")
    assert "Never verified yet" in texts(app)
    press(app, "Verify now")
    assert "no problem in" in texts(app)
    assert [box.label for box in app.expander] == ["History · 1 verification"]
    token_clock.advance(timedelta(days=2))
    assert "That is more than a day ago" in texts(app.run())


def test_speed_has_a_history_with_words_beside_each_chart(
    console: Open, token_clock: TestClock
) -> None:
    app = console("health.py")
    assert not app.get("vega_lite_chart")
    for _ in range(2):
        press(app, "Measure now")
        token_clock.advance(timedelta(minutes=1))
    charts = [chart for chart in app.get("vega_lite_chart") if "Console" not in chart.proto.alt]
    assert len(charts) == 3
    for chart, target in zip(charts, (5, 20, 15), strict=True):
        assert "in 2 measurements" in chart.proto.alt
        assert f"the target is {target} ms" in chart.proto.alt


def test_figures_of_speed_are_written_as_the_reader_does(
    console: Open, token_clock: TestClock
) -> None:
    app = console("health.py")
    app.context = {"timezone": "Europe/Berlin", "locale": "de-DE"}
    for _ in range(2):
        press(app, "Measure now")
        token_clock.advance(timedelta(minutes=1))
    charts = app.get("vega_lite_chart")
    for chart in charts:
        assert re.search(r"from \d+,\d to \d+,\d ms, \d+,\d ms last", chart.proto.alt)
        spec = json.loads(chart.proto.spec)
        assert spec["config"]["locale"]["number"]["decimal"] == ","
    assert charts


def test_pages_are_timed_as_they_are_used_and_slow_work_is_not(
    console: Open, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = latency.Pace()
    monkeypatch.setattr(speed, "pace", seen)
    # AppTest runs the frame as a script of its own, which takes what latency has.
    monkeypatch.setattr(latency, "pace", seen)
    app = press(console("health.py").run(), "Verify now")
    assert len(seen._seen["page"]) == 1  # neither the first, cold one, nor the verification
    press(app, "Measure now")
    rows = table(app, "grade").set_index("operation")  # type: ignore[attr-defined]
    assert rows["now"]["Console page, on the server"] > 0
    assert rows["grade"]["API response"] == "Not measured yet"
    assert not seen._seen
    for _ in range(2):
        seen.add("api", 700.0)
    rows = table(press(app, "Measure now"), "grade").set_index("operation")  # type: ignore[attr-defined]
    assert rows["grade"]["API response"] == "✕ Alert"


def test_the_page_says_as_of_when_it_speaks(look: Open) -> None:
    app = look("health.py")
    assert any(caption.value.startswith("As of ") for caption in app.caption)
    assert [button.label for button in app.button if button.key == "refresh"] == ["Refresh"]
