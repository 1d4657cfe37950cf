"""Links: what the address says is what the page shows, to a colleague too, and Back goes back."""

from __future__ import annotations

import json
import re
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.conftest import Served
from tests.browser.visiting import Visit
from tokenlib import demo

LIST = "Balances of each organization"


def first_ones(visit: Visit) -> list[Locator]:
    """The names of the first organizations of the list."""
    names = visit.table(LIST).locator("td[aria-colindex='1']")
    return [names.nth(place) for place in range(5)]


def test_a_link_shows_a_colleague_the_same_and_back_goes_back(
    visit: Visit, colleague: Visit
) -> None:
    page = visit.open("organizations")
    visit.pick("Plan", "Enterprise")
    visit.pick("Sort by", "Most used")
    page.wait_for_url(re.compile("[?&]plan=.*sort="))
    theirs = colleague.open(page.url.removeprefix(f"{visit.address}/"))
    expect(theirs.get_by_role("combobox", name="Plan")).to_have_value("Enterprise")
    expect(theirs.get_by_role("combobox", name="Sort by")).to_have_value("Most used")
    shown = [name.text_content() or "" for name in first_ones(colleague)]
    assert len(set(shown)) == 5
    for name, text in zip(first_ones(visit), shown, strict=True):
        expect(name).to_have_text(text)
    colleague.shoot("link-shared")
    visit.act(LIST)
    visit.heading("Organization")
    visit.drawn()
    page.go_back()
    visit.heading("Organizations")
    expect(page.get_by_role("combobox", name="Plan")).to_have_value("Enterprise")
    expect(page.get_by_role("combobox", name="Sort by")).to_have_value("Most used")
    for name, text in zip(first_ones(visit), shown, strict=True):
        expect(name).to_have_text(text)


def test_each_page_of_the_menu_is_one_step_back_with_its_range(visit: Visit) -> None:
    page = visit.open("usage")
    visit.choose("Time range", "7d")
    visit.pick("Feature", "Forecast revenue")
    page.wait_for_url("**feature=**")
    steps = page.evaluate("history.length")
    visit.go("Top spenders")
    page.wait_for_url("**/spenders?range=7d")
    visit.go("Organizations")
    visit.go("Usage")
    page.wait_for_url("**/usage?*feature=*")
    assert page.evaluate("history.length") == steps + 3
    for title in ("Organizations", "Top spenders", "Usage"):
        page.go_back()
        visit.heading(title)
        visit.drawn()
    page.wait_for_url("**/usage?*feature=*")
    assert "range=7d" in page.url
    expect(page.get_by_role("radio", name="7d", exact=True)).to_be_checked()
    expect(page.get_by_role("combobox", name="Feature")).to_have_value("Forecast revenue")


def test_each_older_page_of_a_list_is_a_step_back(visit: Visit) -> None:
    page = visit.open("settings?view=Changes")
    steps = page.evaluate("history.length")
    visit.press("Older")
    page.wait_for_url("**before=**")
    visit.drawn()
    assert page.evaluate("history.length") == steps + 1
    page.go_back()
    page.wait_for_url("**/settings?view=Changes")
    visit.drawn()
    expect(page.get_by_role("button", name="Latest", exact=True)).to_have_count(0)


def test_every_choice_of_use_is_in_the_link(visit: Visit, colleague: Visit) -> None:
    page = visit.open("usage")
    visit.choose("Time range", "90d")
    visit.choose("Divided by", "By plan")
    visit.pick("Feature", "Forecast revenue")
    page.wait_for_url("**feature=**")
    theirs = colleague.open(page.url.removeprefix(f"{visit.address}/"))
    for name in ("90d", "By plan"):
        expect(theirs.get_by_role("radio", name=name, exact=True)).to_be_checked()
    expect(theirs.get_by_role("combobox", name="Feature")).to_have_value("Forecast revenue")
    page.reload()
    expect(page.get_by_role("radio", name="90d", exact=True)).to_be_checked()


def test_a_found_organization_is_as_on_any_page_when_another_is_on_screen(visit: Visit) -> None:
    page = visit.open(f"organization?id={demo.SCENARIOS['healthy'].organization_id}")
    here = page.url
    page.get_by_role("searchbox", name="Find an organization").fill("Cedar")
    found = page.get_by_test_id("stSidebar").get_by_role("link", name=re.compile("^Cedar"))
    expect(found.nth(1)).to_be_visible()
    visit.drawn()
    for link in found.all():  # none is marked as the page on screen
        expect(link).to_have_css("background-color", "rgba(0, 0, 0, 0)")
        expect(link.get_by_text("Cedar").first).to_have_css("font-weight", "400")
    for place in (0, 1):
        there = found.nth(place).get_attribute("href")
        name = found.nth(place).get_by_text("Cedar").inner_text()
        found.nth(place).click()
        page.wait_for_url(f"**/{there}")
        expect(page.get_by_test_id("stMain").get_by_text(name, exact=True)).to_be_visible()
        visit.drawn()
    page.go_back()
    page.go_back()
    page.wait_for_url(here)
    expect(page.get_by_test_id("stMain").get_by_text("Cedar Plumbing 01")).to_be_visible()


def test_the_api_answers_beside_the_console(server: Served) -> None:
    with pytest.raises(HTTPError) as caught:
        urlopen(f"{server.address}/api/v1/tokens/stats?organizationId=x", timeout=10)  # noqa: S310
    with caught.value as answer:
        assert answer.status == 401
        assert "error" in json.load(answer)


def status(address: str) -> int:
    try:
        with urlopen(address, timeout=10) as answer:  # noqa: S310
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


def test_a_path_that_does_not_exist_is_a_404_that_leads_to_the_console(
    server: Served, visit: Visit
) -> None:
    with urlopen(server.address, timeout=10) as answer:  # noqa: S310
        assets = re.findall(r'(?:src|href)="\./(static/[^"]+)"', answer.read().decode())
    assert assets
    pages = ["", "overview", "organization?id=7", "settings?view=Changes", "tokens", "usage/"]
    for path in (*pages, *assets, "favicon.png", "_stcore/health", "api/v1/docs"):
        assert status(f"{server.address}/{path}") == 200, path
    nothing = ["nothing", "v1/health", "robots.txt", "API/v1/health", "settings/x", "static/x.js"]
    for path in (*nothing, "settings.py", "_stcore/nothing", "app/static/x"):
        assert status(f"{server.address}/{path}") == 404, path
    with visit.page.context.new_page() as page:  # which may say that something is a 404
        page.goto(f"{server.address}/settings/x")
        page.get_by_role("link", name="Go to its start").click()
        expect(page.get_by_role("heading", name="Overview", exact=True, level=1)).to_be_visible()


def test_a_reload_keeps_the_persona_of_the_demo(visit: Visit) -> None:
    page = visit.open("usage")
    visit.sign_in("support")
    page.wait_for_url("**/usage?as=support")
    visit.choose("Time range", "7d")
    visit.go("Top spenders")
    page.reload()
    visit.heading("Top spenders")
    expect(page.get_by_text("Demo support · support")).to_be_visible()
    visit.sign_in("member")
    visit.heading("My tokens")
    page.reload()
    expect(page.get_by_text("Demo member · member")).to_be_visible()
    visit.drawn()
    visit.sign_in("admin")
    visit.heading("Overview")
    page.wait_for_url(re.compile(r"/(?!.*as=)"))
    page.reload()
    expect(page.get_by_text("Demo admin · admin")).to_be_visible()
