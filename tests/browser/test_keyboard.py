"""The main actions with the keyboard alone."""

from __future__ import annotations

from typing import Literal

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.looking import faint, walk
from tests.browser.visiting import Visit
from tokenlib import demo
from tokenlib.errors import InsufficientTokens
from tokenlib.tokens import Tokens

HEALTHY = demo.SCENARIOS["healthy"]
ORGANIZATION = HEALTHY.organization_id
Role = Literal["button", "link", "searchbox", "spinbutton", "textbox"]
NAME = "Cedar Plumbing 01"
MOST = 150
"""Times that Tab is pressed at most. A table takes one for each column."""
_FOCUSED = "one => one === document.activeElement"
_CELL = "grid => grid.querySelector('canvas:focus, canvas :focus') !== null"
_STOP = """() => {
    const one = document.activeElement;
    return `${one.tagName} ${(one.ariaLabel || one.innerText || one.id).slice(0, 40)}`;
}"""

pytestmark = pytest.mark.usefixtures("fresh")


def tab_to(visit: Visit, role: Role, name: str, within: Locator | None = None) -> Locator:
    """Press Tab until the control with this name has the focus."""
    control = (within or visit.page).get_by_role(role, name=name, exact=True)
    tab_until(visit, control, _FOCUSED)
    return control


def choose_row(visit: Visit, table: str) -> None:
    """Tab to a table and choose its first row, as a grid is used."""
    grid = visit.table(table)
    tab_until(visit, grid, _CELL)
    visit.page.keyboard.press("Control+Home")
    visit.page.keyboard.press("Shift+Space")
    expect(grid.locator("tr[aria-selected=true]")).to_have_count(1)


def tab_until(visit: Visit, one: Locator, reached: str) -> None:
    """Press Tab until it is reached. It is there before the first time, and the page at rest."""
    expect(one).to_be_visible()
    visit.drawn()
    stops: list[str] = []
    while len(stops) < MOST:
        visit.page.keyboard.press("Tab")
        if one.evaluate(reached):
            return
        stops.append(visit.page.evaluate(_STOP))
    pytest.fail(f"Tab does not come to {one}, but to {stops}")


def test_a_dialog_keeps_the_focus_and_gives_it_back(visit: Visit) -> None:
    page = visit.open(f"organization?id={ORGANIZATION}")
    tab_to(visit, "button", "Grant tokens")
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
    tab_to(visit, "searchbox", "Find an organization")
    page.keyboard.type(str(ORGANIZATION))
    tab_to(visit, "link", NAME)
    page.keyboard.press("Enter")
    visit.heading("Organization")
    tab_to(visit, "button", "Grant tokens")
    page.keyboard.press("Enter")
    dialog = visit.dialog()
    tab_to(visit, "spinbutton", "Tokens", dialog)
    page.keyboard.press("Control+A")
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("button", name="Grant 7 tokens")).to_be_visible()
    tab_to(visit, "textbox", "Reason", dialog)
    page.keyboard.type("by keyboard")
    tab_to(visit, "button", "Grant 7 tokens", dialog)
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("stAlert").filter(has_text="7 tokens granted")).to_be_visible()


@pytest.mark.thorough
def test_a_quest_is_generated_without_a_mouse(visit: Visit) -> None:
    page = visit.open("quests?scenario=Low")
    tab_to(visit, "button", "Generate")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("stAlert").filter(has_text="Used 3 tokens")).to_be_visible()


@pytest.mark.thorough
def test_a_charge_is_given_back_without_a_mouse(visit: Visit, tokens: Tokens) -> None:
    tokens.deduct_tokens(ORGANIZATION, HEALTHY.user_id, "generate_leads")
    page = visit.open(f"organization?id={ORGANIZATION}&view=Ledger")
    choose_row(visit, "Entries of the books")
    tab_to(visit, "button", "Refund")
    page.keyboard.press("Enter")
    dialog = visit.dialog()
    tab_to(visit, "textbox", "Reason", dialog)
    page.keyboard.type("by keyboard")
    tab_to(visit, "button", "Refund", dialog)
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("stAlert").filter(has_text="Charge given back")).to_be_visible()
    assert tokens.get_token_balance(ORGANIZATION, "lead_generation").balance == 50


def test_an_organization_is_opened_from_a_table_without_a_mouse(visit: Visit) -> None:
    page = visit.open(f"organizations?search={ORGANIZATION}")
    choose_row(visit, "Balances of each organization")
    name = visit.cells("Balances of each organization").first.text_content()
    tab_to(visit, "button", f"Organization: {name}")
    page.keyboard.press("Enter")
    visit.heading("Organization")
    page.wait_for_url(f"**id={ORGANIZATION}")


@pytest.mark.thorough
def test_a_refusal_is_answered_without_a_mouse(visit: Visit, tokens: Tokens) -> None:
    with pytest.raises(InsufficientTokens):
        tokens.deduct_tokens(ORGANIZATION, HEALTHY.user_id, "generate_insight", units=100)
    page = visit.open(f"organization?id={ORGANIZATION}&view=Refusals")
    choose_row(visit, "Refused requests")
    tab_to(visit, "button", "Reply")
    page.keyboard.press("Enter")
    page.wait_for_url("**refusal=**")
    expect(page.get_by_test_id("stCode").first).to_contain_text("Nothing was charged.")
