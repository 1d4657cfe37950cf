"""Who may open which page, and what the database shows them whatever a page does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open, open_alone, open_page, texts
from tokenlib import demo
from tokenlib.config import Settings
from tokenlib.console import process, session
from tokenlib.testing import TestDatabase
from tokenlib.tokens import Tokens

STAFF = ("admin", "support")
PAGES = {
    "overview.py": ("Overview", STAFF),
    "organizations.py": ("Organizations", STAFF),
    "organization.py": ("Organization", STAFF),
    "usage.py": ("Usage", STAFF),
    "spenders.py": ("Top spenders", STAFF),
    "health.py": ("Health", STAFF),
    "settings.py": ("Settings", ("admin",)),
    "tokens.py": ("My tokens", ("member",)),
    "quests.py": ("Quests", (*STAFF, "member")),
    "features.py": ("Other AI features", (*STAFF, "member")),
}


def shows_data(app: AppTest) -> bool:
    """Whether anything that could hold a figure was drawn."""
    drawn = [*app.metric, *app.dataframe, *app.progress, *app.get("vega_lite_chart")]
    return bool(drawn or app.get("form_submit_button"))


@pytest.mark.parametrize("persona", ["admin", "support", "member"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_for_its_roles_and_for_nobody_else(
    look: Open, page: str, persona: str
) -> None:
    title, roles = PAGES[page]
    app = look(page, persona)
    assert not app.exception
    assert not app.error
    assert [heading.value for heading in app.title] == [title]
    if persona in roles:
        assert not any(warning.title == "Not for you" for warning in app.warning)
        assert shows_data(app) or app.info
    else:
        assert [warning.title for warning in app.warning] == ["Not for you"]
        assert not shows_data(app)


def test_every_page_file_is_in_the_menu() -> None:
    assert {path.name for path in process.pages_folder().glob("*.py")} == set(PAGES)


@pytest.mark.parametrize("persona", ["admin", "support", "member"])
def test_the_start_page_is_the_first_of_the_role(look: Open, persona: str) -> None:
    app = look(persona=persona)
    assert app.title[0].value == ("My tokens" if persona == "member" else "Overview")
    assert shows_data(app)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_file_opened_without_the_frame_shows_nothing(look: Open, page: str) -> None:
    app = open_alone(page)
    assert not app.exception
    assert [info.title for info in app.info] == ["Sign-in needed"]
    assert not shows_data(app)


@pytest.mark.parametrize("page", PAGES)
def test_a_forged_session_gives_no_role(look: Open, page: str) -> None:
    somebody = session.Person(demo.PERSONAS["member"].user_id, "admin", "Somebody", None)
    app = open_alone(page, persona="owner", role="admin", person=somebody)
    assert not app.exception
    assert [info.title for info in app.info] == ["Sign-in needed"]
    assert not shows_data(app)


def test_an_unknown_persona_in_the_frame_is_nobody(look: Open) -> None:
    app = look(persona="owner")
    assert not app.exception
    assert app.title[0].value == "Sign-in needed"
    assert not shows_data(app)


def test_the_role_is_read_again_in_every_run(console: Open, token_database: TestDatabase) -> None:
    app = console("health.py")
    assert shows_data(app)
    with token_database.connect() as owner:
        owner.execute("update tokenlib_staff set role = 'support' where role = 'admin'")
    assert shows_data(app.run())
    with token_database.connect() as owner:
        owner.execute("delete from tokenlib_staff")
    app.run()
    assert not app.exception
    assert not shows_data(app)


def test_the_database_hides_from_a_member_who_claims_to_be_staff(look: Open) -> None:
    member = session.known(demo.PERSONAS["member"].user_id)
    assert member is not None
    assert member.role == "member"
    assert {row.name for row in member.reports.wallets()} == {"Healthy Roofing"}
    claims_staff = replace(member, role="admin")
    assert claims_staff.viewer.reader == "tokenlib_reader"
    assert claims_staff.reports.wallets() == []
    assert claims_staff.reports.organizations().rows == ()


def test_a_member_sees_no_other_organization(look: Open, kept_tokens: Tokens) -> None:
    app = look("tokens.py", "member")
    everything = texts(app)
    assert "Healthy Roofing" in everything
    for scenario in demo.SCENARIOS.values():
        if scenario.title != "Healthy":
            assert f"{scenario.title} Roofing" not in everything
            assert str(scenario.organization_id) not in everything


@pytest.mark.parametrize("page", ["", *PAGES])
def test_demo_mode_is_named_on_every_page(look: Open, page: str) -> None:
    app = look(page)
    assert any("Demo mode" in element.value for element in app.markdown)


@pytest.mark.parametrize("page", ["", *PAGES])
def test_a_database_of_their_own_needs_a_sign_in(
    kept_tokens: Tokens, page: str, tmp_path: Path
) -> None:
    own = Settings(data_dir=tmp_path, database_url="postgresql://db.example.org/product")
    process.gate.use(kept_tokens, own)
    try:
        if page:
            app = open_alone(page, persona="admin")
            assert [info.title for info in app.info] == ["Sign-in needed"]
        else:
            app = open_page(persona="admin")
            assert app.title[0].value == "Sign-in is not set up"
            assert "TOKENLIB_OIDC_" in app.info[0].value
            assert not app.get("segmented_control")
            assert not app.button
    finally:
        process.gate.forget()
    assert not app.exception
    assert not shows_data(app)


def test_a_persona_that_may_not_stay_is_taken_to_its_start_page(look: Open) -> None:
    app = look("health.py")
    app.segmented_control[0].set_value("member").run()
    assert not app.exception
    assert app.title[0].value == "My tokens"
    assert app.session_state["persona"] == "member"
    assert shows_data(app)
