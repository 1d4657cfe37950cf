"""What an admin does to an organization: its preview, its reason, its confirmation, its entry."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.visiting import Visit
from tokenlib import demo
from tokenlib.tokens import Tokens

HEALTHY = demo.SCENARIOS["healthy"]
ORGANIZATION = HEALTHY.organization_id
EFFECT = "Balances before and after the action"
ENTRY = "The entry of what was just done"
LEDGER = "Entries of the books"
PEOPLE = "The people of this organization"
HOLDS = "Tokens held by requests"

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.fixture
def desk(visit: Visit) -> Visit:
    """An admin at the page of the healthy organization."""
    visit.open(f"organization?id={ORGANIZATION}")
    visit.heading("Organization")
    return visit


def entry(visit: Visit, kind: str, effect: str, reason: str) -> None:
    """The entry that is shown after an action: what, who, why."""
    shown = visit.cells(ENTRY)
    for text in (kind, effect, "Demo admin", reason):
        expect(shown.filter(has_text=text).first).to_be_attached()


def test_tokens_are_granted(desk: Visit, tokens: Tokens) -> None:
    desk.press("Grant tokens")
    dialog = desk.dialog()
    desk.pick("Token type", "Forecast", dialog)
    amount = dialog.get_by_role("spinbutton", name="Tokens", exact=True)
    amount.fill("7")
    amount.press("Enter")
    expect(desk.cells(EFFECT)).to_have_text(["Forecast", "30 of 30", "37 of 37"])
    assert tokens.get_token_balance(ORGANIZATION, "forecast").balance == 30
    desk.shoot("grant-preview")
    desk.confirm("they lost a day", "Grant 7 tokens")
    entry(desk, "Grant", "Forecast: +7, balance 37", "they lost a day")
    assert tokens.get_token_balance(ORGANIZATION, "forecast").balance == 37
    desk.shoot("grant-entry")
    desk.view("Ledger")
    expect(desk.cells(LEDGER).filter(has_text="they lost a day").first).to_be_attached()


def test_nothing_is_granted_without_a_reason(desk: Visit, tokens: Tokens) -> None:
    desk.press("Grant tokens")
    dialog = desk.dialog()
    dialog.get_by_role("button", name="Grant 10 tokens").click()
    expect(dialog.get_by_test_id("stAlert").filter(has_text="reason")).to_be_visible()
    assert tokens.get_token_balance(ORGANIZATION, "lead_generation").balance == 50


def test_the_plan_is_changed(desk: Visit, tokens: Tokens) -> None:
    desk.press("Change plan")
    expect(desk.cells(EFFECT).filter(has_text="200 of 200").first).to_be_attached()
    desk.confirm("a new contract", "Change to Enterprise")
    entry(desk, "Change plan", "plan: pro → enterprise", "a new contract")
    assert tokens.get_token_balance(ORGANIZATION, "goal_generation").balance == 200


def test_the_organization_is_paused_and_resumed(desk: Visit, tokens: Tokens) -> None:
    paused = desk.page.get_by_test_id("stAlert").filter(has_text="AI is paused")
    desk.press("Pause")
    desk.confirm("a chargeback", "Set to paused")
    entry(desk, "Set status", "status: active → suspended", "a chargeback")
    expect(paused).to_be_visible()
    verdict = tokens.can_use(ORGANIZATION, HEALTHY.user_id, "generate_goal")
    assert verdict.rule == "organization_paused"
    desk.press("Resume")
    desk.confirm("it was paid", "Set to active")
    entry(desk, "Set status", "status: suspended → active", "it was paid")
    expect(paused).to_have_count(0)
    assert tokens.can_use(ORGANIZATION, HEALTHY.user_id, "generate_goal").allowed


def test_a_person_is_paused_and_resumed(desk: Visit) -> None:
    desk.view("People")
    desk.act(PEOPLE)
    desk.confirm("a stolen password", "Pause")
    entry(desk, "Pause user", "paused", "a stolen password")
    expect(desk.cells(PEOPLE).filter(has_text="AI paused")).to_have_count(1)
    desk.act(PEOPLE)
    desk.confirm("a new password", "Resume")
    entry(desk, "Pause user", "paused", "a new password")
    expect(desk.cells(PEOPLE).filter(has_text="AI paused")).to_have_count(0)


def test_a_charge_is_given_back(desk: Visit, tokens: Tokens) -> None:
    tokens.deduct_tokens(ORGANIZATION, HEALTHY.user_id, "generate_leads")
    desk.view("Ledger")
    desk.act(LEDGER)
    expect(desk.cells(EFFECT)).to_have_text(["Lead generation", "45 of 50", "50 of 50"])
    desk.confirm("it came out empty", "Refund")
    entry(desk, "Refund", "Lead generation: +5, balance 50", "it came out empty")
    assert tokens.get_token_balance(ORGANIZATION, "lead_generation").balance == 50


def test_a_hold_is_released(desk: Visit, tokens: Tokens) -> None:
    tokens.reserve(ORGANIZATION, HEALTHY.user_id, "generate_goal")
    desk.view("Holds and grants")
    desk.act(HOLDS)
    desk.confirm("its server is gone", "Release")
    entry(desk, "Release", "Goal generation: +3, balance 20", "its server is gone")
    assert tokens.get_token_balance(ORGANIZATION, "goal_generation").balance == 20
