"""The main actions with the keyboard alone."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.looking import faint, walk
from tests.browser.visiting import Visit
from tokenlib import demo

ORGANIZATION = demo.SCENARIOS["healthy"].organization_id
_AT = """() => {
    const one = document.activeElement;
    if (['MAIN', 'BODY'].includes(one.tagName)) return '';
    return one.ariaLabel || one.labels?.[0]?.innerText || one.innerText || '';
}"""

pytestmark = pytest.mark.usefixtures("fresh")


def tab_to(page: Page, name: str, most: int = 150) -> None:
    """Press Tab until the control with this name has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if name in page.evaluate(_AT).split("\n"):
            return
    pytest.fail(f"Tab does not come to {name}")


def test_a_dialog_keeps_the_focus_and_gives_it_back(visit: Visit) -> None:
    page = visit.open(f"organization?id={ORGANIZATION}")
    tab_to(page, "Grant tokens")
    page.keyboard.press("Enter")
    visit.dialog()
    assert faint(page) == []
    wanted, stops = walk(page)
    assert [stop.name for stop in stops if not stop.within] == []
    assert {stop.place for stop in stops if stop.place >= 0} == set(range(len(wanted)))
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Grant tokens")).to_be_focused()


def test_tokens_are_granted_without_a_mouse(visit: Visit) -> None:
    page = visit.open()
    tab_to(page, "Find an organization")
    page.keyboard.type(str(ORGANIZATION))
    expect(page.get_by_test_id("stSidebar").get_by_test_id("stBaseButton-tertiary")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    visit.heading("Organization")
    visit.drawn()
    tab_to(page, "Grant tokens")
    page.keyboard.press("Enter")
    visit.dialog()
    tab_to(page, "Tokens")
    page.keyboard.press("Control+A")
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    confirm = page.get_by_role("dialog").get_by_role("button", name="Grant 7 tokens")
    expect(confirm).to_be_visible()
    visit.drawn()
    tab_to(page, "Reason")
    page.keyboard.type("by keyboard")
    tab_to(page, "Grant 7 tokens")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("stAlert").filter(has_text="7 tokens granted")).to_be_visible()


def test_a_quest_is_generated_without_a_mouse(visit: Visit) -> None:
    page = visit.open("quests?scenario=Low")
    tab_to(page, "Generate")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("stAlert").filter(has_text="Used 3 tokens")).to_be_visible()
