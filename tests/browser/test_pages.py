"""Every page as a reader meets it: by its address, in light and dark, on a phone, by keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.browser.conftest import Served
from tests.browser.looking import faint, walk
from tests.browser.visiting import PHONE, Visit, visiting
from tokenlib import demo

LOW = demo.SCENARIOS["low"].organization_id
PAGES = {
    "overview": ("", "Overview"),
    "organizations": ("organizations", "Organizations"),
    "organization": (f"organization?id={LOW}", "Organization"),
    "organization-refusals": (f"organization?id={LOW}&view=Refusals", "Organization"),
    "organization-ledger": (f"organization?id={LOW}&view=Ledger", "Organization"),
    "organization-people": (f"organization?id={LOW}&view=People", "Organization"),
    "usage": ("usage?range=24h", "Usage"),
    "spenders": ("spenders", "Top spenders"),
    "health": ("health", "Health"),
    "settings": ("settings", "Settings"),
    "settings-limits": ("settings?view=Limits", "Settings"),
    "settings-switch": ("settings?view=Switch", "Settings"),
    "quests": ("quests?scenario=Low", "Quests"),
    "features": ("features", "Other AI features"),
    "tokens": ("", "My tokens"),
}
# Of what the others have too; for make test-thorough.
ALIKE = {
    "organization-refusals",
    "organization-people",
    "spenders",
    "health",
    "settings-limits",
    "settings-switch",
    "features",
}

# What Streamlit draws in colors that no setting of the theme reaches.
LEFT_LIGHT = {
    # The dots between the numbers of far pages, at 40 % of the text's color: 2.6 to 1, and black
    # itself would give 2.85. An ornament: the numbers beside it are the controls.
    "stPaginationEllipsis < stPagination < stElementContainer",
}
LEFT_DARK = {
    "stPaginationEllipsis < stPagination < stElementContainer",
    # The chosen option has the color of the primary button, whose text is always white. White has
    # 4.5 to 1 on a luminance up to 0.183; on the page, of 0.0073, a text has it from 0.208 on. The
    # best for both is 4.28, and only a page darker than #060606 would let a color reach 4.5. What
    # is chosen has a frame or a line below it as well.
    "stMarkdownContainer < stButtonGroup < stElementContainer",
    "stMarkdownContainer < stTab < stTabs",
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(page, marks=pytest.mark.thorough if page in ALIKE else (), id=page)
        for page in PAGES
    ],
)
def shown(
    somebody: BrowserContext, server: Served, request: pytest.FixtureRequest
) -> Iterator[Visit]:
    """A tab with one of the pages: each test of the page looks at the same one."""
    path, title = PAGES[request.param]
    with visiting(somebody, server.address) as tab:
        tab.open(path)
        if request.param == "tokens":
            tab.sign_in("member")
        tab.heading(title)
        yield tab


def test_it_opens_by_its_address(shown: Visit, request: pytest.FixtureRequest) -> None:
    page = shown.page
    expect(page.get_by_text("Demo mode: synthetic data, no sign-in")).to_be_visible()
    expect(page.get_by_test_id("stException")).to_have_count(0)
    expect(page.get_by_test_id("stAlertContentError")).to_have_count(0)
    shown.shoot(request.node.callspec.params["shown"])


def test_its_text_can_be_read(shown: Visit) -> None:
    light = faint(shown.page)
    shown.dark()
    dark = faint(shown.page)
    shown.light()
    assert [one for one in light if one["where"] not in LEFT_LIGHT] == []
    assert [one for one in dark if one["where"] not in LEFT_DARK] == []


def test_tab_reaches_each_control_in_its_order_and_shows_where_it_is(shown: Visit) -> None:
    wanted, stops = walk(shown.page)
    assert [stop.name for stop in stops if not stop.seen and not stop.name.startswith("MAIN")] == []
    places = [stop.place for stop in stops if stop.place >= 0]
    assert [wanted[place] for place in range(len(wanted)) if place not in places] == []
    assert places == sorted(places)


def test_what_it_draws_is_said_too(shown: Visit) -> None:
    """Charts have words and a figure, and no badge speaks by its color alone."""
    page = shown.page
    for chart in page.get_by_test_id("stVegaLiteChart").all():
        expect(chart).to_have_attribute("aria-label", re.compile(r"\w+ .*\d"))
    for badge in page.locator(".stMarkdownBadge").all():
        expect(badge).to_have_text(re.compile(r"\w"))


def test_it_fits_a_phone(shown: Visit) -> None:
    shown.fits(PHONE)
