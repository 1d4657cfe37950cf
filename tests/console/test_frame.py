"""What stands around every page: the search, the banner, who is signed in."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open, texts
from tokenlib import demo
from tokenlib.config import Settings
from tokenlib.console import finder, process, session
from tokenlib.testing import TestClock
from tokenlib.tokens import Tokens

PAGES = ("overview.py", "organizations.py", "health.py", "settings.py", "quests.py", "features.py")
ADMIN = demo.PERSONAS["admin"].user_id
LOW = demo.SCENARIOS["low"].organization_id


def banners(app: object) -> list[str]:
    return [alert.value for alert in app.warning if alert.title == "Emergency switch"]  # type: ignore[attr-defined]


def turn(tokens: Tokens, organization: UUID | None = None) -> None:
    until = tokens.database.rows("select tokenlib.clock() + interval '1 hour' as at")[0]["at"]
    tokens.staff_set_mode(ADMIN, "log_only", organization, until=until, reason="A [night] shift")


@pytest.mark.parametrize("page", PAGES)
def test_the_banner_stands_on_every_page_until_the_switch_is_back(
    console: Open, tokens: Tokens, token_clock: TestClock, page: str
) -> None:
    app = console(page)
    assert banners(app) == []
    turn(tokens)
    (said,) = banners(app.run())
    (setting,) = tokens.switch_state().settings
    assert setting.until
    local = setting.until.astimezone(ZoneInfo("Europe/Rome"))
    assert f"Log only for everyone until {local.day} {local:%b %Y, %H:%M}" in said
    assert "set by Demo admin" in said
    assert r"A \[night\] shift" in said
    assert "No balance moves" in said
    token_clock.advance(timedelta(hours=2))
    assert banners(app.run()) == []


def test_a_member_hears_of_the_own_organization_alone(console: Open, tokens: Tokens) -> None:
    turn(tokens, LOW)
    assert banners(console("tokens.py", "member")) == []
    (said,) = banners(console("health.py", "support"))
    assert "On for 1 organization." in said
    turn(tokens, demo.SCENARIOS["healthy"].organization_id)
    (said,) = banners(console("tokens.py", "member"))
    assert "without taking tokens" in said
    assert "night" not in said


def test_the_environments_switch_is_said_too(
    console: Open, tokens: Tokens, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "override", "off")
    (said,) = banners(console("health.py"))
    assert "TOKENLIB_SWITCH is Off on this server" in said
    process.gate.use(tokens, replace(settings))
    (said,) = banners(console("tokens.py", "member"))
    assert "TOKENLIB_SWITCH" not in said


@pytest.mark.parametrize("search", ["Low Roof", str(LOW), str(LOW)[:8], "user.low@example.org"])
def test_an_organization_is_found_from_any_page(look: Open, search: str) -> None:
    app = look("health.py")
    app.text_input(key=finder.KEY).set_value(search).run()
    (link,) = [one.proto for one in app.get("page_link") if one.proto.label == "Low Roofing"]
    assert (link.page, link.query_string) == ("organization", f"id={LOW}")


def test_a_search_that_finds_nothing_says_so(look: Open) -> None:
    app = look("health.py")
    app.text_input(key=finder.KEY).set_value("nobody at all").run()
    assert "No organization matches" in texts(app)


def test_members_have_no_search(look: Open) -> None:
    app = look("tokens.py", "member")
    assert finder.KEY not in [field.key for field in app.text_input]


@pytest.mark.parametrize("persona", ["admin", "support", "member"])
def test_who_is_signed_in_is_said(look: Open, persona: str) -> None:
    app = look(persona=persona)
    name = app.session_state["persona"]
    assert any(caption.value.endswith(f"· {name}") for caption in app.caption)


@pytest.mark.parametrize(("asked", "role"), [("member", "member"), ("nobody", "admin")])
def test_the_address_says_which_persona_the_demo_begins_with(
    look: Open, asked: str, role: str
) -> None:
    app = AppTest.from_file(str(process.FRAME), default_timeout=30)
    app.query_params[session.AS] = asked
    app.run()
    assert not app.exception
    assert any(caption.value.endswith(f"· {role}") for caption in app.caption)
