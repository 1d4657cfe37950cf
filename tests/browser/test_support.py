"""What support does all day: find out why, answer the customer, give goodwill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Served
from tests.browser.visiting import Visit
from tokenlib import demo
from tokenlib.reports import Reports, Viewer
from tokenlib.tokens import Tokens

SUPPORT = demo.PERSONAS["support"].user_id
YESTERDAY = """
    select distinct on (o.id) o.name, r.needed, r.available, r.rule,
        to_char(r.last_at at time zone 'America/New_York', 'HH24:MI')
    from public.ai_token_refusals r join public.organizations o on o.id = r.organization_id
    where r.last_at at time zone 'Europe/Rome' >= (now() at time zone 'Europe/Rome')::date - 1
    order by o.id, r.last_at desc
"""
LIMIT = "update public.tokenlib_staff set grants_per_day = %s where user_id = %s"


def test_yesterdays_refusal_is_answered(visit: Visit, server: Served) -> None:
    with server.owner() as owner:
        rows = owner.execute(YESTERDAY).fetchall()
    name, needed, had, _, clock = next(row for row in rows if row[3] == "insufficient_tokens")
    visit.open()
    page = visit.sign_in("support")
    visit.find(name, name)
    visit.view("Refusals")
    refused = visit.cells("Refused requests")
    expect(refused.filter(has_text=f"needed {needed:,}, had {had:,}").first).to_be_attached()
    visit.act("Refused requests")
    page.wait_for_url("**refusal=**")
    visit.pick("The customer's time zone", "America/New_York")
    answer = page.get_by_test_id("stCode").first
    expect(answer).to_contain_text(f"at {clock} (America/New York)")
    expect(answer).to_contain_text(f"It needs {needed} tokens, and {had} were left")
    expect(answer).to_contain_text("Nothing was charged.")
    visit.shoot("refusal-answered")
    answer.hover()
    answer.get_by_role("button", name="Copy to clipboard").click()
    page.wait_for_function("async () => (await navigator.clipboard.readText()).length > 40")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.split() == (answer.locator("code").text_content() or "").split()


@pytest.fixture
def twelve_left(server: Served, tokens: Tokens) -> Iterator[None]:
    """Support may give 12 more tokens today."""
    staff = Reports(tokens.database, Viewer(SUPPORT, "tokenlib_reader")).staff()
    row = next(one for one in staff if one.user_id == SUPPORT)
    with server.owner() as owner:
        owner.execute(LIMIT, (row.granted_today + 12, SUPPORT))
        yield
        owner.execute(LIMIT, (row.grants_per_day, SUPPORT))


@pytest.mark.usefixtures("fresh", "twelve_left")
def test_goodwill_ends_at_the_limit_of_the_day(
    visit: Visit, server: Served, tokens: Tokens
) -> None:
    organization = demo.SCENARIOS["empty"].organization_id
    visit.open()
    page = visit.sign_in("support")
    with server.owner() as owner:
        named = "select name from public.organizations where id = %s"
        (name,) = owner.execute(named, (organization,)).fetchone() or ("",)
    visit.find(str(organization), name)
    expect(page.get_by_text("12 of ")).to_contain_text("tokens left today")
    for forbidden in ("Change plan", "Pause"):
        expect(page.get_by_role("button", name=forbidden, exact=True)).to_have_count(0)
    visit.press("Give goodwill tokens")
    visit.confirm("the report was late", "Grant 10 tokens")
    expect(page.get_by_text("2 of ").first).to_contain_text("tokens left today")
    visit.press("Give goodwill tokens")
    dialog = visit.dialog()
    expect(dialog.get_by_test_id("stAlert")).to_contain_text("2 are left today")
    expect(dialog.get_by_role("button", name="Grant 10 tokens")).to_have_count(0)
    visit.shoot("goodwill-refused")
    amount = dialog.get_by_role("spinbutton", name="Tokens", exact=True)
    amount.fill("2")
    amount.press("Enter")
    visit.confirm("the report was late", "Grant 2 tokens")
    expect(page.get_by_text("0 of ").first).to_contain_text("tokens left today")
    assert tokens.get_token_balance(organization, "lead_generation").balance == 62
