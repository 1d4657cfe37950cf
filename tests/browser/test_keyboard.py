"""The main actions with the keyboard alone."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.looking import faint, walk
from tests.browser.visiting import Visit
from tokenlib import demo
from tokenlib.errors import InsufficientTokens
from tokenlib.tokens import Tokens

HEALTHY = demo.SCENARIOS["healthy"]
ORGANIZATION = HEALTHY.organization_id
_AT = """() => {
    const one = document.activeElement;
    if (['MAIN', 'BODY', 'TD'].includes(one.tagName)) return '';
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


def choose_row(visit: Visit, table: str) -> None:
    """Tab to a table and choose its first row, as a grid is used."""
    grid = visit.table(table)
    for _ in range(150):
        visit.page.keyboard.press("Tab")
        if grid.locator("canvas:focus, canvas :focus").count():
            break
    else:
        pytest.fail(f"Tab does not come to {table}")
    visit.page.keyboard.press("Control+Home")
    visit.page.keyboard.press("Shift+Space")
    expect(grid.locator("tr[aria-selected=true]")).to_have_count(1)
    visit.drawn()


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


def test_a_charge_is_given_back_without_a_mouse(visit: Visit, tokens: Tokens) -> None:
    tokens.deduct_tokens(ORGANIZATION, HEALTHY.user_id, "generate_leads")
    page = visit.open(f"organization?id={ORGANIZATION}&view=Ledger")
    choose_row(visit, "Entries of the books")
    tab_to(page, "Refund")
    page.keyboard.press("Enter")
    visit.dialog()
    tab_to(page, "Reason")
    page.keyboard.type("by keyboard")
    tab_to(page, "Refund")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("stAlert").filter(has_text="Charge given back")).to_be_visible()
    assert tokens.get_token_balance(ORGANIZATION, "lead_generation").balance == 50


def test_an_organization_is_opened_from_a_table_without_a_mouse(visit: Visit) -> None:
    page = visit.open(f"organizations?search={ORGANIZATION}")
    choose_row(visit, "Balances of each organization")
    name = visit.cells("Balances of each organization").first.text_content()
    tab_to(page, f"Organization: {name}")
    page.keyboard.press("Enter")
    visit.heading("Organization")
    page.wait_for_url(f"**id={ORGANIZATION}")


def test_a_refusal_is_answered_without_a_mouse(visit: Visit, tokens: Tokens) -> None:
    with pytest.raises(InsufficientTokens):
        tokens.deduct_tokens(ORGANIZATION, HEALTHY.user_id, "generate_insight", units=1000)
    page = visit.open(f"organization?id={ORGANIZATION}&view=Refusals")
    choose_row(visit, "Refused requests")
    tab_to(page, "Reply")
    page.keyboard.press("Enter")
    page.wait_for_url("**refusal=**")
    expect(page.get_by_test_id("stCode").first).to_contain_text("Nothing was charged.")
