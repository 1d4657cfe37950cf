"""API keys in Settings: made, shown once, rotated, revoked; each on record, and by admins alone."""

from __future__ import annotations

import hashlib
import hmac
from datetime import timedelta

import pytest
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open, press, texts
from tests.console.reading import table
from tests.console.test_settings import ADMIN, HEALTHY, WHY, ask, confirm, done, entry
from tokenlib.console import actions, keys, process
from tokenlib.domain import ApiKey
from tokenlib.reports import Reports
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

PEPPER = "a pepper of the tests, which nobody has but the test"


@pytest.fixture(autouse=True)
def _pepper(tokens: Tokens) -> None:
    tokens.pepper = PEPPER


@pytest.fixture
def key(tokens: Tokens) -> ApiKey:
    """A key that a page may change."""
    return tokens.staff_create_key(
        ADMIN, "The product", ["check", "spend"], HEALTHY.organization_id, reason=WHY
    )


def opened(console: Open, subject: object = keys.NEW) -> AppTest:
    return ask(console("settings.py", view="API keys"), keys.KEY, subject)


def shown(app: AppTest) -> str:
    """The secret in the dialog that shows it."""
    (code,) = [code.value for code in app.code]
    return str(code)


def test_a_key_is_made_shown_once_and_on_record(
    console: Open, tokens: Tokens, token_clock: TestClock, token_database: TestDatabase
) -> None:
    app = opened(console)
    assert "Give it a name" in texts(app)
    app.text_input(key="key_name").set_value("ERP *export*")
    app.text_input(key="key_organization_search").set_value("Healthy").run()
    app.number_input(key="key_minute").set_value(60)
    app.number_input(key="key_tokens").set_value(9)
    app.number_input(key="key_output").set_value(1_500).run()
    confirm(app, "Create the key")
    secret = shown(app)
    assert "Healthy Roofing until" in done(app)
    assert entry(tokens) == ("create_key", str(ADMIN), WHY)
    assert "none →" not in texts(app)
    found = tokens.key_of(secret)
    assert found is not None
    assert (found["name"], found["scopes"]) == ("ERP *export*", ["check", "spend"])
    assert found["organization_id"] == HEALTHY.organization_id
    (row,) = Reports(tokens.database).api_keys()
    assert row.expires_at is not None
    assert row.expires_at - token_clock.now() <= timedelta(days=90)
    with token_database.connect() as owner:
        limits = "requests_per_minute, seconds_between_requests, tokens_per_request,"
        limits += " output_units_per_request, limit_users"
        kept = f"select {limits}, digest from ai_token_api_keys"  # noqa: S608 - names only
        assert owner.execute(kept).fetchall() == [
            (
                60,
                None,
                9,
                1_500,
                False,
                hmac.digest(PEPPER.encode(), secret.encode(), hashlib.sha256),
            )
        ]
    # Once: neither after the dialog nor anywhere in what the session keeps.
    press(app, "I have copied it")
    assert not app.code
    assert secret not in texts(app)
    assert app.session_state[actions.DONE].secret is None
    app.run()
    assert secret not in texts(app)
    assert f"{row.start}…" in table(app, "start")["start"].tolist()
    limits = "60 requests a minute, 9 tokens a request, 1,500 output units a request"
    assert f"Limits: {limits}" in texts(opened(console, row.id))


def test_a_secret_does_not_outlive_its_page(console: Open) -> None:
    app = opened(console)
    app.text_input(key="key_name").set_value("ERP").run()
    confirm(app, "Create the key")
    assert app.code
    for page in ("health.py", "settings.py"):
        app.switch_page(str(process.pages_folder() / page)).run()
        assert not app.exception
        assert not app.code


def test_a_key_for_all_organizations_may_read_the_metrics(console: Open, tokens: Tokens) -> None:
    app = opened(console)
    assert "Metrics" not in app.pills(key="key_scopes_One organization").options
    app.text_input(key="key_name").set_value("Prometheus")
    app.segmented_control(key="key_reach").set_value("All organizations").run()
    assert "Metrics" in app.pills(key="key_scopes_All organizations").options
    app.pills(key="key_scopes_All organizations").set_value(["metrics"])
    app.segmented_control(key="key_life").set_value("No end").run()
    confirm(app, "Create the key")
    (row,) = Reports(tokens.database).api_keys()
    assert (row.organization_id, row.scopes, row.expires_at) == (None, ["metrics"], None)
    assert table(app, "for")["for"].tolist() == ["All organizations"]


def test_a_new_secret_works_at_once_and_the_old_one_until_its_end(
    console: Open, tokens: Tokens, token_clock: TestClock, key: ApiKey
) -> None:
    assert key.secret is not None
    app = opened(console, key.id)
    app.segmented_control(key=f"key_{key.id}_overlap").set_value("1 hour").run()
    confirm(app, "Give it a new secret")
    secret = shown(app)
    assert entry(tokens) == ("rotate_key", str(ADMIN), WHY)
    assert tokens.key_of(secret)
    assert tokens.key_of(key.secret)
    (row,) = Reports(tokens.database).api_keys()
    assert row.old_until is not None
    assert table(app, "old_until")["old_until"].tolist() == [row.old_until]
    token_clock.advance(timedelta(hours=1))
    assert tokens.key_of(secret)
    assert tokens.key_of(key.secret) is None


def test_a_revoked_key_ends_at_once(console: Open, tokens: Tokens, key: ApiKey) -> None:
    assert key.secret is not None
    app = opened(console, key.id)
    app.segmented_control(key=f"key_{key.id}_what").set_value("Revoke").run()
    assert tokens.key_of(key.secret)
    confirm(app, "Revoke the key")
    assert "is revoked" in done(app)
    assert not app.code
    assert entry(tokens) == ("revoke_key", str(ADMIN), WHY)
    assert tokens.key_of(key.secret) is None
    line = table(app, "state").iloc[0]
    assert (line["state"], line["action"]) == ("✕ Revoked", None)
    assert "revoked already" in texts(ask(app, keys.KEY, key.id))


def test_without_a_pepper_it_says_what_to_set_and_keys_can_still_be_revoked(
    console: Open, tokens: Tokens, key: ApiKey
) -> None:
    tokens.pepper = None
    app = console("settings.py", view="API keys")
    assert "Set TOKENLIB_KEY_PEPPER" in texts(app)
    assert "Create a key" not in [button.label for button in app.button]
    ask(app, keys.KEY, key.id)
    confirm(app, "Revoke the key")
    assert Reports(tokens.database).api_keys()[0].state == "revoked"


def test_without_any_key_the_page_says_what_one_is_for(console: Open) -> None:
    assert "No API key yet" in texts(console("settings.py", view="API keys"))


def test_the_changes_say_who_made_and_ended_it(console: Open, tokens: Tokens, key: ApiKey) -> None:
    tokens.staff_revoke_key(ADMIN, key.id, reason="it leaked")
    app = console("settings.py", view="Changes")
    lines = table(app, "effect")[["action", "actor_name", "organization", "effect", "reason"]]
    assert lines.to_numpy().tolist()[:2] == [
        [
            "Revoke key",
            "Demo admin",
            "Healthy Roofing",
            f"Taken away: name The product, start {key.start}, scopes check, spend",
            "it leaked",
        ],
        [
            "Create key",
            "Demo admin",
            "Healthy Roofing",
            f"name The product, start {key.start}, scopes check, spend, expires at none",
            WHY,
        ],
    ]
    only = console("settings.py", view="Changes", action_filter="Revoke key")
    assert table(only, "effect")["reason"].tolist() == ["it leaked"]


@pytest.mark.parametrize("persona", ["support", "member"])
def test_no_other_role_sees_or_makes_a_key(
    console: Open, tokens: Tokens, key: ApiKey, persona: str
) -> None:
    for subject in (keys.NEW, key.id):
        app = ask(console("settings.py", persona, view="API keys"), keys.KEY, subject)
        assert [warning.title for warning in app.warning] == ["Not for you"]
        assert not app.dataframe
        assert key.start not in texts(app)
        labels = {button.label for button in app.button}
        assert not labels & {"Create the key", "Revoke the key", "Give it a new secret"}


@pytest.mark.parametrize("verb", ["staff_create_key", "staff_rotate_key", "staff_revoke_key"])
def test_the_database_refuses_who_is_no_admin_any_more(
    console: Open,
    tokens: Tokens,
    token_database: TestDatabase,
    key: ApiKey,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    original = getattr(tokens, verb)

    def after_the_removal(*given: object, **named: object) -> object:
        # The rights go between the page's own check and the action.
        with token_database.connect() as owner:
            owner.execute("update tokenlib_staff set role = 'support'")
        return original(*given, **named)

    monkeypatch.setattr(tokens, verb, after_the_removal)
    app = opened(console, keys.NEW if verb == "staff_create_key" else key.id)
    if verb == "staff_create_key":
        app.text_input(key="key_name").set_value("Mine").run()
        confirm(app, "Create the key")
    elif verb == "staff_rotate_key":
        confirm(app, "Give it a new secret")
    else:
        app.segmented_control(key=f"key_{key.id}_what").set_value("Revoke").run()
        confirm(app, "Revoke the key")
    assert "Only admin may do this" in app.error[0].value
    assert not app.success
    assert not app.code
    (row,) = Reports(tokens.database).api_keys()
    assert (row.name, row.state, row.start) == ("The product", "good", key.start)
    assert tokens.key_of(str(key.secret))
