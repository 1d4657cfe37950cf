"""A tab that outlives its rights: what was open stays on the screen and can do nothing."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Served
from tests.browser.visiting import Visit
from tokenlib import demo
from tokenlib.tokens import Tokens

ADMIN = demo.PERSONAS["admin"].user_id
ORGANIZATION = demo.SCENARIOS["healthy"].organization_id
REASON = "before the role was gone"
KEPT = """
    insert into public.tokenlib_staff select (jsonb_populate_record(
        null::public.tokenlib_staff, %s::jsonb)).*
    on conflict (user_id) do update set role = excluded.role
"""
BOOKS = """
    select count(*) from public.ai_token_events where reason = %(why)s
    union all select count(*) from public.ai_token_changes where reason = %(why)s
"""


@pytest.fixture
def owner(server: Served) -> Iterator[psycopg.Connection]:
    """Who alone writes who is staff; afterwards the admin is an admin again."""
    with server.owner() as connection:
        row = "select to_jsonb(s)::text from public.tokenlib_staff s where user_id = %s"
        (kept,) = connection.execute(row, (ADMIN,)).fetchone() or ("",)
        yield connection
        connection.execute(KEPT, (kept,))


def remove(owner: psycopg.Connection) -> None:
    owner.execute("delete from public.tokenlib_staff where user_id = %s", (ADMIN,))


def demote(owner: psycopg.Connection) -> None:
    owner.execute("update public.tokenlib_staff set role = 'support' where user_id = %s", (ADMIN,))


def nothing_was_done(owner: psycopg.Connection) -> None:
    assert owner.execute(BOOKS, {"why": REASON}).fetchall() == [(0,), (0,)]


def shows_no_data(visit: Visit) -> None:
    for name in ("stMetric", "stDataFrame", "stVegaLiteChart", "stForm"):
        expect(visit.page.get_by_test_id("stMain").get_by_test_id(name)).to_have_count(0)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("action", "label"),
    [
        ("Grant tokens", "Grant 10 tokens"),
        pytest.param("Change plan", "Change to Enterprise", marks=pytest.mark.thorough),
        pytest.param("Pause", "Set to paused", marks=pytest.mark.thorough),
    ],
)
def test_an_open_dialog_does_nothing_once_the_role_is_gone(
    visit: Visit, owner: psycopg.Connection, tokens: Tokens, action: str, label: str
) -> None:
    visit.open(f"organization?id={ORGANIZATION}")
    visit.press(action)
    dialog = visit.dialog()
    reason = dialog.get_by_role("textbox", name="Reason")
    reason.fill(REASON)
    visit.drawn()
    remove(owner)
    dialog.get_by_role("button", name=label, exact=True).click()
    expect(dialog.get_by_test_id("stAlert")).to_contain_text("Only staff may do this")
    nothing_was_done(owner)
    assert tokens.get_token_balance(ORGANIZATION, "lead_generation").balance == 50
    dialog.press("Escape")
    shows_no_data(visit)
    visit.shoot(f"rights-removed-{action.split()[0].lower()}")


@pytest.mark.usefixtures("fresh")
def test_an_admin_made_support_keeps_no_admins_action(
    visit: Visit, owner: psycopg.Connection
) -> None:
    page = visit.open(f"organization?id={ORGANIZATION}")
    visit.press("Change plan")
    dialog = visit.dialog()
    dialog.get_by_role("textbox", name="Reason").fill(REASON)
    visit.drawn()
    demote(owner)
    dialog.get_by_role("button", name="Change to Enterprise").click()
    expect(dialog.get_by_test_id("stAlert")).to_contain_text("Only admin may do this")
    dialog.press("Escape")
    expect(page.get_by_role("button", name="Change plan", exact=True)).to_have_count(0)
    nothing_was_done(owner)


def test_an_open_page_of_admins_closes_at_the_next_click(
    visit: Visit, owner: psycopg.Connection
) -> None:
    page = visit.open("settings")
    visit.heading("Settings")
    demote(owner)
    visit.press("Refresh")
    expect(page.get_by_test_id("stAlert").filter(has_text="Not for you")).to_be_visible()
    shows_no_data(visit)


@pytest.mark.parametrize(
    "path",
    [
        "",
        *(
            pytest.param(path, marks=pytest.mark.thorough)
            for path in ("organizations", "usage", "spenders", "health")
        ),
    ],
)
def test_an_open_page_of_staff_closes_at_the_next_click(
    visit: Visit, owner: psycopg.Connection, path: str
) -> None:
    visit.open(path)
    remove(owner)
    visit.press("Refresh")
    shows_no_data(visit)
    visit.heading("No role any more")
    expect(visit.page.get_by_test_id("stAlert")).to_contain_text("under Signed in as")
