"""Settings: each change with its preview, its reason and its entry; nobody but an admin."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open, press, texts
from tests.console.reading import parameter, table
from tokenlib import demo
from tokenlib.console import actions, limiting, pricing, process, request_limits, staffing, switch
from tokenlib.reports import Reports
from tokenlib.testing import TestClock, TestDatabase
from tokenlib.tokens import Tokens

ADMIN = demo.PERSONAS["admin"].user_id
SUPPORT = demo.PERSONAS["support"].user_id
HEALTHY = demo.SCENARIOS["healthy"]
WHY = "Agreed with finance"


def ask(app: AppTest, action: str, subject: object = None) -> AppTest:
    """Open a dialog, as the click on its row does."""
    app.session_state[actions.OPEN] = actions.Asked(action, None, subject)  # type: ignore[arg-type]
    return app.run()


def confirm(app: AppTest, label: str) -> AppTest:
    app.text_input(key=actions.REASON).set_value(WHY)
    press(app, label)
    assert not app.exception
    return app


def entry(tokens: Tokens) -> tuple[str, str, str | None]:
    """What, by whom and why the last change was."""
    (row,) = Reports(tokens.database).changes(limit=1)
    return row.action, row.actor, row.reason


def done(app: AppTest) -> str:
    """What the page says after a change."""
    assert [alert.title for alert in app.success] == ["Done"]
    assert WHY in texts(app)
    assert actions.OPEN not in app.session_state
    return str(app.success[0].value)


@pytest.mark.parametrize("view", ["Catalog", "Limits", "Switch", "Staff", "Changes"])
def test_each_view_opens_by_its_address_and_says_what_its_tables_are(look: Open, view: str) -> None:
    app = look("settings.py", view=view)
    assert not app.exception
    assert app.dataframe
    assert all(frame.proto.alt for frame in app.dataframe)
    assert "As of" in texts(app)


def test_a_cost_shows_what_it_would_have_meant_and_then_its_entry(
    console: Open, tokens: Tokens
) -> None:
    for _ in range(4):
        tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.user_id, "generate_goal")
    app = ask(console("settings.py"), pricing.COST, "generate_goal")
    assert "Choose another cost" in texts(app)
    app.number_input(key="cost_generate_goal").set_value(6).run()
    preview = Reports(tokens.database).preview_cost("generate_goal", 6)
    said = texts(app)
    assert f"{preview.tokens} → **{preview.new_tokens} tokens** (+100%)" in said
    assert f"**{preview.run_outs}** of them would have run out" in said
    assert "Healthy Roofing" in {row.name for row in preview.organizations[: preview.run_outs]}
    confirm(app, "Set to 6 tokens")
    assert "costs 6 tokens" in done(app)
    assert entry(tokens) == ("set_cost", str(ADMIN), WHY)
    assert tokens.catalog().features["generate_goal"].cost == 6
    assert "generate_goal · cost: 3 → 6" in texts(app)


def test_a_feature_can_cost_by_the_size_of_its_answer(console: Open, tokens: Tokens) -> None:
    app = ask(console("settings.py"), pricing.SIZE, "generate_goal")
    assert "3 tokens for a use" in texts(app)
    app.number_input(key="size_generate_goal").set_value(500).run()
    confirm(app, "Set to 500 output units")
    assert "3 tokens for 500 output units" in done(app)
    assert entry(tokens) == ("set_unit_size", str(ADMIN), WHY)
    assert tokens.catalog().features["generate_goal"].unit_size == 500


def test_an_allowance_can_become_unlimited(console: Open, tokens: Tokens) -> None:
    app = ask(console("settings.py"), pricing.ALLOWANCE, "pro/forecast")
    assert "Nothing yet" in texts(app)
    app.toggle(key="allowance_pro_forecast_unlimited").set_value(True).run()
    confirm(app, "Set to unlimited")
    done(app)
    assert entry(tokens) == ("set_allowance", str(ADMIN), WHY)
    assert tokens.catalog().allowances["pro", "forecast"] is None


def test_limits_of_everyone_and_of_one_organization(console: Open, tokens: Tokens) -> None:
    app = ask(console("settings.py", view="Limits"), limiting.LIMITS, "everyone")
    app.number_input(key="limits_None_requests_per_minute").set_value(60)
    app.number_input(key="limits_None_tokens_per_request").set_value(None).run()
    confirm(app, "Set for everyone")
    done(app)
    assert entry(tokens) == ("set_limits", str(ADMIN), WHY)
    everyone = Reports(tokens.database).limits()[0]
    assert everyone.limits.requests_per_minute == 60
    assert everyone.limits.tokens_per_request is None  # emptied
    assert everyone.limits.seconds_between_requests == 3

    ask(app, limiting.LIMITS, "organization")
    app.text_input(key="limits_organization_search").set_value("Healthy").run()
    key = f"limits_{HEALTHY.organization_id}_tokens_per_request"
    app.number_input(key=key).set_value(20).run()
    confirm(app, "Set for Healthy Roofing")
    done(app)
    own = Reports(tokens.database).limits()[1]
    assert own.organization == "Healthy Roofing"
    assert own.limits.tokens_per_request == 20

    ask(app, limiting.LIMITS, HEALTHY.organization_id)
    app.toggle(key="limits_lift").set_value(True).run()
    confirm(app, "Set for Healthy Roofing")
    assert "Taken away" in texts(app)
    assert len(Reports(tokens.database).limits()) == 1


def test_request_limits_of_everyone_and_of_one_organization(console: Open, tokens: Tokens) -> None:
    def limits() -> list[tuple[str | None, int | None]]:
        rows = Reports(tokens.database).request_limits()
        return [(row.organization, row.requests_per_minute) for row in rows]

    ((_, before),) = limits()
    app = ask(console("settings.py", view="Limits"), request_limits.LIMIT, "everyone")
    assert "Nothing yet" in texts(app)
    app.number_input(key="request_limit_None").set_value(600).run()
    confirm(app, "Set for each organization")
    done(app)
    assert before != 600
    assert entry(tokens) == ("set_request_limit", str(ADMIN), WHY)
    assert limits() == [(None, 600)]

    press(app, "Request limit for one organization")
    app.text_input(key="request_limit_organization_search").set_value("Healthy").run()
    app.number_input(key=f"request_limit_{HEALTHY.organization_id}").set_value(60).run()
    confirm(app, "Set for Healthy Roofing")
    done(app)
    assert limits() == [(None, 600), ("Healthy Roofing", 60)]
    assert table(app, "requests_per_minute")["who"].tolist()[0] == "Everyone"
    lines = [frame.value for frame in app.dataframe if "who" in frame.value][1]
    assert lines[["who", "requests_per_minute"]].to_numpy().tolist() == [
        ["Each", 600],
        ["Healthy Roofing", 60],
    ]

    ask(app, request_limits.LIMIT, HEALTHY.organization_id)
    app.toggle(key="request_limit_lift").set_value(True).run()
    confirm(app, "Set for Healthy Roofing")
    assert limits() == [(None, 600)]
    ask(app, request_limits.LIMIT, "everyone")
    app.number_input(key="request_limit_None").set_value(None).run()
    confirm(app, "Set for each organization")
    assert limits() == [(None, None)]


def test_parameters(console: Open, tokens: Tokens) -> None:
    app = press(console("settings.py", view="Limits"), "Change parameters")
    assert not [button for button in app.button if button.label == "Set parameters"]
    app.number_input(key="parameter_hold").set_value(5.0)
    app.number_input(key="parameter_cents").set_value(1.25).run()
    confirm(app, "Set parameters")
    done(app)
    assert entry(tokens) == ("set_parameters", str(ADMIN), WHY)
    found = Reports(tokens.database).parameters()
    assert (found.hold_life, found.token_cost_cents) == (timedelta(minutes=5), Decimal("1.25"))


def test_the_switch_says_who_why_and_until_when_and_ends_by_itself(
    console: Open, tokens: Tokens, token_clock: TestClock
) -> None:
    app = ask(console("settings.py", view="Switch"), switch.MODE, switch.EVERYONE)
    confirm(app, "Set to log only")
    done(app)
    assert entry(tokens) == ("set_mode", str(ADMIN), WHY)
    line = next(frame.value for frame in app.dataframe if "mode" in frame.value).iloc[0]
    assert line[["who", "mode", "by", "reason"]].tolist() == [
        "Everyone",
        "△ Log only",
        "Demo admin",
        WHY,
    ]
    (setting,) = tokens.switch_state().settings
    assert setting.until is not None
    assert setting.until - token_clock.now() <= timedelta(hours=1)
    token_clock.advance(timedelta(hours=2))
    app.run()
    assert "✓ Enforce" in texts(app)
    assert not app.warning


def test_the_switch_for_one_organization_and_back(console: Open, tokens: Tokens) -> None:
    app = press(console("settings.py", view="Switch"), "Switch one organization")
    app.text_input(key="mode_organization_search").set_value("Low Roof").run()
    app.segmented_control(key="mode_to").set_value("off").run()
    confirm(app, "Set to off")
    (setting,) = tokens.switch_state().settings
    low = demo.SCENARIOS["low"].organization_id
    assert (setting.organization_id, setting.mode) == (low, "off")
    ask(app, switch.MODE, low)
    confirm(app, "Set to enforce")
    assert tokens.switch_state().settings == ()
    # Its own mode is gone, and does not keep it out of everyone's.
    tokens.set_mode("log_only", actor="on call", reason=WHY)
    assert [each.organization_id for each in tokens.switch_state().settings] == [None]


def test_whose_claim_makes_somebody_staff_stands_beside_their_role(
    console: Open, token_database: TestDatabase, token_clock: TestClock
) -> None:
    assert "issuer" not in table(console("settings.py", view="Staff"), "role")
    with token_database.connect() as owner:
        owner.execute(
            "insert into tokenlib_staff (user_id, email, full_name, role, issuer, until, signed_at)"
            " values (gen_random_uuid(), 'grace@example.org', 'Grace', 'support',"
            " 'https://id.example.org/realms/product', %s, %s)",
            (token_clock.now() + timedelta(minutes=5), token_clock.now()),
        )
    found = table(console("settings.py", view="Staff"), "role")
    shown = found.set_index("full_name")
    assert shown["issuer"]["Grace"] == "id.example.org/realms/product"
    assert list(found).index("issuer") == list(found).index("role") + 1


def test_staff_are_added_changed_and_removed(console: Open, tokens: Tokens) -> None:
    person = uuid4()
    app = press(console("settings.py", view="Staff"), "Add a person")
    assert "Fill in user id, name and e-mail first" in texts(app)
    app.text_input(key="staff_user").set_value(str(person))
    app.text_input(key="staff_name").set_value("Second Support")
    app.text_input(key="staff_email").set_value("second@example.org")
    app.number_input(key="staff_new_gifts").set_value(40).run()
    confirm(app, "Add")
    done(app)
    rows = {row.user_id: row for row in Reports(tokens.database).staff()}
    assert (rows[person].role, rows[person].grants_per_day) == ("support", 40)
    ask(app, staffing.PERSON, person)
    app.segmented_control(key=f"staff_{person}_role").set_value("nobody").run()
    confirm(app, "Take the rights away")
    assert entry(tokens) == ("set_staff", str(ADMIN), WHY)
    assert person not in {row.user_id for row in Reports(tokens.database).staff()}


def test_the_last_admin_cannot_leave(console: Open, tokens: Tokens) -> None:
    app = ask(console("settings.py", view="Staff"), staffing.PERSON, ADMIN)
    app.segmented_control(key=f"staff_{ADMIN}_role").set_value("support").run()
    confirm(app, "Change")
    assert "The last admin stays" in app.error[0].value
    assert not app.success


def test_a_change_needs_a_reason(console: Open, tokens: Tokens) -> None:
    app = ask(console("settings.py", view="Switch"), switch.MODE, switch.EVERYONE)
    press(app, "Set to log only")
    assert "reason" in app.error[0].value
    assert not app.success
    assert tokens.switch_state().settings == ()


def test_the_database_refuses_who_is_no_admin_any_more(
    console: Open, tokens: Tokens, token_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = ask(console("settings.py", view="Switch"), switch.MODE, switch.EVERYONE)
    original = tokens.staff_set_mode

    def after_the_removal(*given: object, **named: object) -> None:
        # The rights go between the page's own check and the action.
        with token_database.connect() as owner:
            owner.execute("update tokenlib_staff set role = 'support'")
        original(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(tokens, "staff_set_mode", after_the_removal)
    confirm(app, "Set to log only")
    assert r"Only admin may do this" in app.error[0].value
    assert not app.success
    assert tokens.switch_state().settings == ()
    app.run()
    assert [warning.title for warning in app.warning] == ["Not for you"]


@pytest.mark.parametrize("persona", ["support", "member"])
def test_a_forged_dialog_opens_for_no_other_role(
    console: Open, tokens: Tokens, persona: str
) -> None:
    app = ask(console("settings.py", persona), switch.MODE, switch.EVERYONE)
    assert [warning.title for warning in app.warning] == ["Not for you"]
    assert not [button for button in app.button if "Set to" in button.label]
    assert not app.dataframe


def test_changes_are_narrowed_by_the_url_and_paged(console: Open, tokens: Tokens) -> None:
    for number in range(30):
        tokens.staff_set_cost(ADMIN, "generate_goal", 4 + number % 2, reason=f"change {number}")
    app = console("settings.py", view="Changes", action_filter="Set cost")
    table = app.dataframe[0].value
    assert len(table) == 25
    assert table["reason"].iloc[0] == "change 29"
    press(app, "Older")
    assert app.dataframe[0].value["reason"].tolist() == [f"change {n}" for n in range(4, -1, -1)]
    linked = console(
        "settings.py",
        view="Changes",
        action_filter="Set cost",
        before=parameter(app, "before"),
        actor=str(ADMIN),
    )
    assert linked.dataframe[0].value["reason"].tolist()[0] == "change 4"
    press(app, "Latest")
    assert len(app.dataframe[0].value) == 25
    assert "No change matches" in texts(console("settings.py", view="Changes", actor=str(SUPPORT)))


def test_what_was_done_is_not_said_again_on_another_page(console: Open, tokens: Tokens) -> None:
    app = ask(console("settings.py"), switch.MODE, switch.EVERYONE)
    confirm(app, "Set to log only")
    done(app)
    for page in ("health.py", "settings.py"):
        app.switch_page(str(process.pages_folder() / page)).run()
        assert not app.exception
        assert not app.success
