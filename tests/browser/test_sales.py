"""The salesperson's demo, and the member who runs out: what AI costs, and what a failure costs."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.visiting import Visit
from tokenlib import demo
from tokenlib.domain import Limits
from tokenlib.tokens import Tokens

HEALTHY = demo.SCENARIOS["healthy"]
ADMIN = demo.PERSONAS["admin"].user_id
UNHURRIED = Limits(None, None, None, None, None, None)

pytestmark = pytest.mark.usefixtures("fresh")


@pytest.fixture
def unhurried(fresh: None, tokens: Tokens) -> None:
    """The healthy organization's people may ask again at once; the next reset ends that."""
    organization = HEALTHY.organization_id
    tokens.staff_set_limits(ADMIN, organization, UNHURRIED, reason="a test asks fast")


def says(page: Page, text: str) -> None:
    expect(page.get_by_test_id("stAlert").filter(has_text=text)).to_be_visible()


@pytest.mark.usefixtures("unhurried")
def test_a_quest_costs_tokens_and_a_failure_none(visit: Visit) -> None:
    page = visit.open("quests")
    expect(page.get_by_text("20 of 20")).to_be_visible()
    visit.press("Generate")
    says(page, "Used 3 tokens for generate_goal. 17 left.")
    expect(page.get_by_text("17 of 20")).to_be_visible()
    expect(page.get_by_text("Build the base")).to_be_visible()
    visit.shoot("demo-generated")
    page.get_by_text("Make the model fail").click()
    visit.press("Generate")
    says(page, "went back to the balance")
    expect(page.get_by_text("17 of 20")).to_be_visible()
    visit.shoot("demo-model-failed")
    visit.open("quests")
    expect(page.get_by_text("17 of 20")).to_be_visible()


@pytest.mark.parametrize(
    ("scenario", "way_out"),
    [
        ("Empty", "To go on now: upgrade the plan, or buy a pack of tokens."),
        ("Starter", "Upgrade to use it."),
        ("Paused", "Contact support to resume it."),
        ("Payment failed", "Update the payment method to go on."),
    ],
)
def test_a_refusal_shows_its_way_out(visit: Visit, scenario: str, way_out: str) -> None:
    page = visit.open(f"quests?scenario={scenario}")
    visit.press("Generate")
    says(page, way_out)


def test_the_demo_can_be_reset(visit: Visit, tokens: Tokens) -> None:
    tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.colleague_id, "generate_goal")
    page = visit.open("quests")
    expect(page.get_by_text("17 of 20")).to_be_visible()
    visit.press("Reset demo")
    visit.press("Reset now")
    expect(page.get_by_text("The demo data are as new.")).to_be_visible()
    expect(page.get_by_text("20 of 20")).to_be_visible()


@pytest.mark.usefixtures("unhurried")
def test_a_member_runs_out_and_sees_why(visit: Visit, tokens: Tokens) -> None:
    for _ in range(5):
        tokens.deduct_tokens(HEALTHY.organization_id, HEALTHY.colleague_id, "generate_goal")
    page = visit.open()
    visit.sign_in("member")
    visit.heading("My tokens")
    expect(page.get_by_test_id("stSidebarNav").get_by_text("Health")).to_have_count(0)
    visit.go("Quests")
    visit.press("Generate")
    says(page, "2 left.")
    visit.press("Generate")
    says(page, "needs 3 tokens, and 2 are left")
    says(page, "To go on now: upgrade the plan, or buy a pack of tokens.")
    visit.shoot("member-refused")
    visit.go("My tokens")
    says(page, "Goal generation: 2 of 20 left")
    page.get_by_text("What was refused").click()
    refused = visit.cells("Refused requests")
    expect(refused.filter(has_text="Not enough tokens").first).to_be_attached()
    visit.shoot("member-ran-out")
