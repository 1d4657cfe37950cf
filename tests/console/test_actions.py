"""What staff do on an organization's page: what it shows before, who may, and its entry after."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open, open_page, press, texts
from tokenlib import demo
from tokenlib.console import actions
from tokenlib.testing import TestDatabase
from tokenlib.tokens import Tokens

PAGE = "organization.py"
HEALTHY = demo.SCENARIOS["healthy"]
ADMIN = str(demo.PERSONAS["admin"].user_id)
SUPPORT = str(demo.PERSONAS["support"].user_id)
WHY = "=a customer's call"


def opened(action: str, subject: Any = None, persona: str = "admin", **query: str) -> AppTest:
    """The page of the healthy organization with a dialog open, as a button leaves it."""
    app = open_page(PAGE, persona, id=str(HEALTHY.organization_id), **query)
    app.session_state[actions.OPEN] = actions.Asked(action, HEALTHY.organization_id, subject)
    app.run()
    assert not app.exception
    return app


def confirm(app: AppTest, reason: str = WHY) -> AppTest:
    """Give the reason and confirm."""
    app.text_input(key=actions.REASON).set_value(reason)
    app.button(key="action_confirm").click().run()
    assert not app.exception
    return app


def said(app: AppTest) -> str:
    """The first error, as it is read."""
    return app.error[0].value.replace("\\", "")


def books(database: TestDatabase) -> list[tuple[Any, ...]]:
    """Every entry and change that a person caused, with who and why."""
    with database.connect() as owner:
        return owner.execute(
            "select kind, actor, reason from ai_token_events where actor in (%(a)s, %(s)s)"
            " union all"
            " select action, actor, reason from ai_token_changes where actor in (%(a)s, %(s)s)",
            {"a": ADMIN, "s": SUPPORT},
        ).fetchall()


def support_may_give(database: TestDatabase, tokens: int) -> None:
    with database.connect() as owner:
        owner.execute(
            "update tokenlib_staff set grants_per_day = %s where role = 'support'", (tokens,)
        )


@pytest.mark.parametrize("amount", [0, -5, 9_999_999])
def test_a_number_beyond_the_bounds_is_refused_and_never_replaced(
    console: Open, token_database: TestDatabase, amount: int
) -> None:
    """The browser kept it, once, and the button granted the number before it."""
    app = open_page(PAGE, id=str(HEALTHY.organization_id))
    press(app, "Grant tokens")
    field = app.number_input(key="grant_amount")
    assert field.proto.has_min is field.proto.has_max is False
    field.set_value(amount).run()
    assert said(app) == "Tokens: from 1 to 1,000,000."
    assert not [button for button in app.button if button.key == "action_confirm"]
    assert books(token_database) == []


def test_a_grant_is_previewed_and_its_entry_shown(
    console: Open, token_database: TestDatabase, tokens: Tokens
) -> None:
    app = open_page(PAGE, id=str(HEALTHY.organization_id))
    press(app, "Grant tokens")
    app.selectbox(key="grant_type").set_value("forecast")
    app.number_input(key="grant_amount").set_value(7).run()
    preview = next(f.value for f in app.dataframe if "then" in f.value.columns)
    assert preview.to_numpy().tolist() == [["Forecast", "30 of 30", "37 of 37"]]
    assert books(token_database) == []  # a preview leaves nothing
    confirm(app)
    assert books(token_database) == [("grant", ADMIN, WHY)]
    assert tokens.get_token_balance(HEALTHY.organization_id, "forecast").balance == 37
    assert [done.title for done in app.success] == ["Done"]
    shown = next(f.value for f in app.dataframe if "effect" in f.value.columns)
    assert shown[["action", "actor_name", "reason", "effect"]].to_numpy().tolist() == [
        ["Grant", "Demo admin", WHY, "Forecast: +7, balance 37"]
    ]
    app.run()
    assert books(token_database) == [("grant", ADMIN, WHY)]
    assert tokens.verify().closed


def test_an_action_needs_a_reason(console: Open, token_database: TestDatabase) -> None:
    app = confirm(opened("grant"), "  ")
    assert "reason" in said(app)
    assert books(token_database) == []


def test_support_gives_up_to_the_limit_of_the_day(
    console: Open, token_database: TestDatabase, tokens: Tokens
) -> None:
    support_may_give(token_database, 12)
    app = opened("grant", persona="support")
    assert "12 of 12 tokens left today" in texts(app)
    with pytest.raises(KeyError):
        app.segmented_control(key="grant_kind")  # a gift, and nothing else to choose
    confirm(app)
    assert books(token_database) == [("grant", SUPPORT, WHY)]
    assert "2 of 12 tokens left today" in texts(app)
    again = opened("grant", persona="support")
    assert "You may give 12 tokens a day; 2 are left today" in said(again)
    assert not [button for button in again.button if button.key == "action_confirm"]
    assert len(books(token_database)) == 1


def test_a_forged_kind_of_grant_is_not_taken(console: Open, token_database: TestDatabase) -> None:
    support_may_give(token_database, 1000)
    app = opened("grant", persona="support")
    app.session_state["grant_kind"] = "purchase"
    app.run()
    confirm(app)
    with token_database.connect() as owner:
        kinds = owner.execute(
            "select kind from ai_token_grants where source like 'console%%'"
        ).fetchall()
    assert kinds == [("gift",)]


def test_a_plan_change_shows_every_wallet_before_it_is_made(
    console: Open, token_database: TestDatabase, tokens: Tokens
) -> None:
    app = opened("plan")
    app.segmented_control(key="plan_to").set_value("enterprise").run()
    preview = next(f.value for f in app.dataframe if "then" in f.value.columns)
    assert ["Goal generation", "20 of 20", "200 of 200"] in preview.to_numpy().tolist()
    confirm(app)
    assert ("change_plan", ADMIN, WHY) in books(token_database)
    assert tokens.get_token_balance(HEALTHY.organization_id, "goal_generation").balance == 200
    assert "plan: pro → enterprise" in texts(app)


def test_an_organization_is_paused_and_resumed(
    console: Open, token_database: TestDatabase, tokens: Tokens
) -> None:
    app = confirm(opened("status"))
    assert books(token_database) == [("set_status", ADMIN, WHY)]
    assert "AI is paused" in texts(app)
    verdict = tokens.can_use(HEALTHY.organization_id, HEALTHY.user_id, "generate_goal")
    assert verdict.rule == "organization_paused"
    confirm(opened("status"), "back again")
    assert tokens.can_use(HEALTHY.organization_id, HEALTHY.user_id, "generate_goal").allowed


def test_a_person_is_paused_alone(
    console: Open, token_database: TestDatabase, tokens: Tokens
) -> None:
    app = confirm(opened("user", HEALTHY.user_id, view="People"))
    assert books(token_database) == [("pause_user", ADMIN, WHY)]
    states = next(f.value for f in app.dataframe if "state" in f.value.columns).set_index("user")
    assert states["state"]["healthy user"] == "AI paused"
    assert not tokens.can_use(HEALTHY.organization_id, HEALTHY.user_id, "generate_goal").allowed
    assert tokens.can_use(HEALTHY.organization_id, HEALTHY.colleague_id, "generate_goal").allowed


def test_a_charge_is_given_back_once(
    console: Open, token_database: TestDatabase, tokens: Tokens
) -> None:
    usage = tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.user_id, "generate_leads")
    app = opened("refund", usage.id, view="Ledger")
    preview = next(f.value for f in app.dataframe if "then" in f.value.columns)
    assert preview.to_numpy().tolist() == [["Lead generation", "45 of 50", "50 of 50"]]
    confirm(app)
    assert books(token_database) == [("refund", ADMIN, WHY)]
    assert tokens.get_token_balance(HEALTHY.organization_id, "lead_generation").balance == 50
    again = opened("refund", usage.id)
    assert "already refunded" in said(again)


@pytest.mark.parametrize("persona", ["admin", "support"])
def test_a_hold_is_released(
    console: Open, token_database: TestDatabase, tokens: Tokens, persona: str
) -> None:
    held = tokens.reserve(HEALTHY.organization_id, HEALTHY.user_id, "generate_goal")
    confirm(opened("release", held.id, persona, view="Holds and grants"))
    actor = ADMIN if persona == "admin" else SUPPORT
    assert ("release", actor, WHY) in books(token_database)
    assert tokens.get_token_balance(HEALTHY.organization_id, "goal_generation").balance == 20


@pytest.mark.parametrize("action", ["plan", "status", "user", "refund"])
def test_what_is_for_admins_support_cannot_do_with_a_forged_dialog(
    console: Open, token_database: TestDatabase, tokens: Tokens, action: str
) -> None:
    usage = tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.user_id, "generate_leads")
    subject = {"user": HEALTHY.user_id, "refund": usage.id}.get(action)
    app = opened(action, subject, "support")
    if any(button.key == "action_confirm" for button in app.button):
        confirm(app)
    assert "Only admin may do this; your role is support" in said(app)
    assert books(token_database) == []


@pytest.mark.parametrize("action", ["grant", "plan", "status"])
def test_an_open_dialog_outlives_the_role_and_does_nothing(
    console: Open, token_database: TestDatabase, action: str
) -> None:
    app = opened(action)
    app.text_input(key=actions.REASON).set_value(WHY)
    with token_database.connect() as owner:
        owner.execute("delete from tokenlib_staff where user_id = %s", (ADMIN,))
    app.button(key="action_confirm").click().run()
    assert not app.exception
    assert books(token_database) == []
    assert not app.success


def test_a_role_removed_between_page_and_click_ends_in_the_database(
    console: Open, token_database: TestDatabase, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page still believes in the role: the verb does not."""
    app = opened("status")
    verb = tokens.staff_set_status

    def late(*args: Any, **kwargs: Any) -> None:
        with token_database.connect() as owner:
            owner.execute("delete from tokenlib_staff where user_id = %s", (ADMIN,))
        verb(*args, **kwargs)

    monkeypatch.setattr(tokens, "staff_set_status", late)
    confirm(app)
    assert "Only staff may do this" in said(app)
    assert books(token_database) == []


@pytest.mark.parametrize(
    "asked", ["grant", {"action": "grant"}, actions.Asked("drop", HEALTHY.organization_id), None]
)
def test_nonsense_in_the_session_opens_nothing(console: Open, asked: object) -> None:
    app = open_page(PAGE, id=str(HEALTHY.organization_id))
    app.session_state[actions.OPEN] = asked
    app.run()
    assert not app.exception
    assert not [button for button in app.button if button.key == "action_confirm"]


def test_a_dialog_of_another_organization_stays_closed(console: Open) -> None:
    app = open_page(PAGE, id=str(HEALTHY.organization_id))
    other = demo.SCENARIOS["low"].organization_id
    app.session_state[actions.OPEN] = actions.Asked("grant", other)
    app.run()
    assert not [button for button in app.button if button.key == "action_confirm"]
