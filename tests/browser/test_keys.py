"""API keys in Settings: from the dialog to a call with the key, to its end."""

from __future__ import annotations

import json
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import expect

from tests.browser.visiting import Visit
from tokenlib import demo
from tokenlib.tokens import Tokens

HEALTHY = demo.SCENARIOS["healthy"]
KEYS = "API keys, those that work first"

pytestmark = pytest.mark.usefixtures("fresh")


def spend(visit: Visit, secret: str, call: str) -> int:
    """The API's answer to a charge with this key: its status."""
    asked = Request(  # noqa: S310 - our own server
        f"{visit.address}/api/v1/organizations/{HEALTHY.organization_id}/charges",
        json.dumps({"userId": str(HEALTHY.user_id), "feature": "generate_goal"}).encode(),
        {
            "Authorization": f"Bearer {secret}",
            "Content-Type": "application/json",
            "Idempotency-Key": call,
        },
    )
    try:
        with urlopen(asked, timeout=30) as answer:  # noqa: S310 - the same
            return int(answer.status)
    except HTTPError as refused:
        return refused.code


def made(visit: Visit, reason: str, label: str) -> str:
    """Confirm, copy the secret that the next dialog shows, as a person does, and go on."""
    dialog = visit.page.get_by_role("dialog")
    dialog.get_by_role("textbox", name="Reason").fill(reason)
    dialog.get_by_role("button", name=label, exact=True).click()
    shown = dialog.get_by_test_id("stCode")
    expect(shown).to_be_visible()
    visit.drawn()
    visit.shoot("key-secret")
    shown.hover()
    shown.get_by_role("button", name="Copy to clipboard").click()
    secret: str = visit.page.evaluate("navigator.clipboard.readText()")
    assert secret in shown.inner_text()
    dialog.press("Escape")  # does not lose it
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="I have copied it").click()
    expect(dialog).to_have_count(0)
    return secret


def test_a_key_works_from_its_making_to_its_end(visit: Visit, tokens: Tokens) -> None:
    page = visit.open("settings?view=API+keys")
    visit.press("Create a key")
    dialog = visit.dialog()
    dialog.get_by_role("textbox", name="Name", exact=True).fill("A journey")
    dialog.get_by_role("searchbox", name="Find an organization").fill(str(HEALTHY.organization_id))
    expect(dialog.get_by_role("combobox", name="Organization")).to_have_value("Cedar Plumbing 01")
    visit.drawn()
    visit.shoot("key-create")
    secret = made(visit, "the product needs it", "Create the key")
    expect(page.get_by_test_id("stAlert").filter(has_text="A journey may call")).to_be_visible()
    expect(page.get_by_text(secret)).to_have_count(0)
    assert spend(visit, secret, "journey-1") == 201
    assert tokens.get_token_balance(HEALTHY.organization_id, "goal_generation").balance == 17
    visit.press("Refresh")
    visit.shoot("keys")

    visit.act(KEYS)
    rotated = made(visit, "as every month", "Give it a new secret")
    assert rotated != secret
    assert spend(visit, rotated, "journey-2") == 201
    assert spend(visit, secret, "journey-3") == 201  # the overlap

    visit.act(KEYS)
    visit.choose("Change", "Revoke")
    visit.shoot("key-revoke")
    visit.confirm("it leaked", "Revoke the key")
    assert spend(visit, rotated, "journey-4") == 401
    assert spend(visit, secret, "journey-5") == 401
    assert tokens.get_token_balance(HEALTHY.organization_id, "goal_generation").balance == 11
    expect(visit.cells(KEYS).filter(has_text="Revoked").first).to_be_attached()

    visit.view("Changes")
    changes = visit.cells("Changes, the latest first")
    for text in ("Create key", "Rotate key", "Revoke key", "it leaked", "Demo admin"):
        expect(changes.filter(has_text=text).first).to_be_attached()
    visit.shoot("key-changes")
