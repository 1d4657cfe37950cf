"""What a person does with the console, from the first page to the tokens that come back."""

from __future__ import annotations

import json
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import WAIT, Visit

expect.set_options(timeout=WAIT)

STAFF_PAGES = {
    "": "Overview",
    "organizations": "Organizations",
    "usage": "Usage",
    "usage?range=24h": "Usage",
    "spenders": "Top spenders",
    "health": "Health",
    "settings": "Settings",
    "settings?view=Switch": "Settings",
    "quests": "Quests",
    "features": "Other AI features",
}


def heading(page: Page, title: str) -> None:
    expect(page.get_by_role("heading", name=title, exact=True, level=1)).to_be_visible()


def choose(visit: Visit, group: str, option: str) -> None:
    """One of the options of a segmented control."""
    controls = visit.page.get_by_test_id("stButtonGroup").filter(has_text=group)
    controls.get_by_text(option, exact=True).click()
    visit.settle()


@pytest.mark.parametrize("path", STAFF_PAGES)
def test_each_page_opens_by_its_address(visit: Visit, path: str) -> None:
    page = visit.open(path)
    heading(page, STAFF_PAGES[path])
    expect(page.get_by_text("Demo mode: synthetic data, no sign-in")).to_be_visible()
    expect(page.get_by_test_id("stException")).to_have_count(0)
    expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)


@pytest.mark.parametrize("visit", [390], indirect=True)
def test_every_page_fits_a_phone(visit: Visit) -> None:
    for path, title in STAFF_PAGES.items():
        page = visit.open(path)
        heading(page, title)
        width = page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
        assert width <= 390, path


def test_a_quest_takes_20_to_17(visit: Visit) -> None:
    page = visit.open("quests")
    expect(page.get_by_text("20 of 20")).to_be_visible()
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_text("Used 3 tokens for generate_goal. 17 left.")).to_be_visible()
    expect(page.get_by_text("17 of 20")).to_be_visible()
    expect(page.get_by_text("Build the base")).to_be_visible()
    visit.open("quests")
    expect(page.get_by_text("17 of 20")).to_be_visible()


def test_a_failing_model_costs_nothing(visit: Visit) -> None:
    page = visit.open("quests?scenario=Low")
    expect(page.get_by_text("3 of 21")).to_be_visible()
    page.get_by_text("Make the model fail").click()
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_text("went back to the balance")).to_be_visible()
    expect(page.get_by_text("3 of 21")).to_be_visible()


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
    page = visit.open("quests")
    choose(visit, "Starter", scenario)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_test_id("stAlert").get_by_text(way_out)).to_be_visible()


def test_a_member_sees_their_own_tokens_and_no_staff_page(visit: Visit) -> None:
    page = visit.open("health")
    choose(visit, "Admin", "Member")
    heading(page, "My tokens")
    navigation = page.get_by_test_id("stSidebarNav")
    expect(navigation.get_by_text("My tokens")).to_be_visible()
    expect(navigation.get_by_text("Health")).to_have_count(0)
    expect(page.get_by_text("Goal generation").first).to_be_visible()
    navigation.get_by_text("Quests").click()
    heading(page, "Quests")
    visit.settle()
    expect(page.get_by_role("radio", name="Member")).to_be_checked()
    expect(navigation.get_by_text("Health")).to_have_count(0)


def test_the_time_range_lives_in_the_url(visit: Visit) -> None:
    page = visit.open("usage")
    choose(visit, "90d", "90d")
    page.wait_for_url("**/usage?range=90d")
    page.reload()
    visit.settle()
    expect(page.get_by_test_id("stCaptionContainer").get_by_text("Times of")).to_be_visible()
    assert page.url.endswith("/usage?range=90d")


def test_the_demo_can_be_reset(visit: Visit) -> None:
    page = visit.open("quests?scenario=Empty")
    expect(page.get_by_text("2 of 20")).to_be_visible()
    page.get_by_role("button", name="Reset demo").click()
    page.get_by_role("button", name="Reset now").click()
    expect(page.get_by_text("The demo data are as new.")).to_be_visible()
    expect(page.get_by_text("2 of 20")).to_be_visible()


def test_the_api_answers_beside_the_console(server: str) -> None:
    with pytest.raises(HTTPError) as caught:
        urlopen(f"{server}/api/v1/tokens/stats?organizationId=x", timeout=10)  # noqa: S310
    with caught.value as answer:
        assert answer.status == 401
        assert "error" in json.load(answer)
