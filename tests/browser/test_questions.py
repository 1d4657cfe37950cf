"""The guide's questions: the clicks that it names are done, and the answer is on the screen.

Clicks are read from the tables of docs/guide.md, where each is in bold. What the answer is says the
library, on the same data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Literal
from uuid import UUID

import pytest
from playwright.sync_api import BrowserContext, Locator, expect

from tests.browser.conftest import Served
from tests.browser.visiting import Visit, visiting
from tests.serving import ROOT
from tokenlib import demo
from tokenlib.domain import Catalog, uses_left
from tokenlib.reports import Reports, Viewer
from tokenlib.tokens import Tokens

ROME = "Europe/Rome"
DAY = timedelta(days=1)
TYPES = {
    "lead_generation": "Lead generation",
    "goal_generation": "Goal generation",
    "strategy_analysis": "Strategy analysis",
    "forecast": "Forecast",
    "general": "General",
}
WHY = {
    "insufficient_tokens": "Not enough tokens",
    "feature_not_in_plan": "Not in the plan",
    "rate_limited": "Too many requests",
}
START = {"admin": "Overview", "support": "Overview", "member": "My tokens"}
MOST_CLICKS = 3
PAGES = {"Top spenders", "Health", "Settings", "Quests"}
VIEWS = {"Refusals", "Catalog", "Changes"}
RANGES = {"24h", "7d"}
LENGTH = {"width": 1280, "height": 3200}
"""Every page as a whole: a table that is out of sight has no rows yet."""


@dataclass(frozen=True)
class Question:
    """A row of the guide."""

    asked: str
    role: str
    way: str

    @property
    def clicks(self) -> list[str]:
        return re.findall(r"\*\*(.+?)\*\*", self.way)


@dataclass(frozen=True)
class Answering:
    """A tab in which the clicks were done, and the library's own view of the same data."""

    visit: Visit
    tokens: Tokens
    reports: Reports
    catalog: Catalog
    organization_id: UUID

    def row(self, table: str, *said: str) -> None:
        """A row of the table has each of these as a cell's text or a part of it."""
        rows = self._rows(table)
        for one in said:
            rows = rows.filter(has_text=one)
        expect(rows.first).to_be_attached()

    def first(self, table: str, *said: str) -> None:
        """So has the first row."""
        row = self._rows(table).first
        for one in said:
            expect(row).to_contain_text(one)

    def _rows(self, table: str) -> Locator:
        return self.visit.table(table).locator("tbody tr")

    def shows(self, text: str | re.Pattern[str]) -> None:
        expect(self.visit.page.get_by_test_id("stMain").get_by_text(text).first).to_be_visible()


def questions() -> Iterator[Question]:
    """The rows of both tables, one for each role that asks."""
    section = (ROOT / "docs" / "guide.md").read_text().split("\n## Find the answer\n")[1]
    for line in section.split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or cells[0] == "question":
            continue
        if len(cells) == 3:
            yield Question(cells[0], "member", cells[1])
        else:
            yield from (Question(cells[0], role, cells[2]) for role in cells[1].split(", "))


def run_outs(at: Answering) -> None:
    page = at.reports.run_outs(7 * DAY, 5)
    for row in page.rows:
        at.row("run out first", row.name, f"{row.balance} ")
    at.shows(f"of {page.total} wallets")


def refused(at: Answering) -> None:
    now = at.reports.now()
    rows = at.reports.refusals(now - 30 * DAY, now, at.organization_id)
    row = next(one for one in rows if one.rule == "insufficient_tokens")
    at.row("Refused requests", f"needed {row.needed:,}, had {row.available:,}", row.user)


def grew(at: Answering) -> None:
    now, since = at.reports.now(), at.reports.movers(ROME).since
    more: dict[str, int] = {}
    for sign, back in ((1, timedelta()), (-1, 7 * DAY)):
        for row in at.reports.usage_by_feature(since - back, now - back):
            more[row.feature] = more.get(row.feature, 0) + sign * row.tokens
    grown = max(more, key=lambda name: more[name])
    at.first("how much their use grew", at.catalog.features[grown].title)


def spent(at: Answering) -> None:
    now = at.reports.now().astimezone(UTC)
    row = at.reports.spenders(now - DAY, now)[0]
    assert row.unusual is not None
    verdict = "Unusual" if row.unusual > 3.5 else "its usual day"
    at.first("Who spent most", row.organization, verdict)


def books(at: Answering) -> None:
    at.shows("Every sum closes, every chain holds, no key was charged twice")
    last = at.reports.verifications(limit=1)[0]
    assert last.problems == 0
    at.shows(f"no problem in {last.entries:,} entries")


def upgrades(at: Answering) -> None:
    now = at.reports.now()
    for row in at.reports.upgrade_candidates(at.reports.movers(ROME).since, now, 5)[:1]:
        at.first("for an upgrade", row.organization, str(row.refusals))


def stuck(at: Answering) -> None:
    rows = at.reports.reservations(expired_only=True)
    for row in rows:
        at.row("Reservations past their expiry", row.organization, row.user, str(row.tokens))
    if not rows:  # its wallet was used since: then it says so
        expect(at.visit.table("Reservations past their expiry")).to_have_count(0)
        at.shows("Reservations past their expiry")


def buys(at: Answering) -> None:
    wallets = at.reports.wallets(at.organization_id)
    for feature in at.catalog.features.values():
        wallet = next(one for one in wallets if one.token_type == feature.token_type)
        at.shows(f"{feature.title}: {uses_left(wallet.balance, feature.cost)} left")


def did(at: Answering) -> None:
    row = at.reports.changes(actor=str(demo.PERSONAS["support"].user_id), limit=1)[0]
    at.row("Changes, the latest first", row.actor_name, row.reason or "")


def preview(at: Answering) -> None:
    feature = next(iter(at.catalog.features.values()))
    dialog = at.visit.dialog()
    dialog.get_by_role("spinbutton", name="Tokens a use").fill(str(feature.cost + 1))
    dialog.press("Tab")
    found = at.reports.preview_cost(feature.feature, feature.cost + 1)
    expect(dialog).to_contain_text(f"{found.tokens:,} → {found.new_tokens:,} tokens")
    expect(dialog).to_contain_text(f"{found.run_outs:,} of them would have run out")


def could(at: Answering) -> None:
    at.shows("Could this person do this now?")
    user_id = at.reports.members(at.organization_id)[0].user_id
    feature = next(iter(at.catalog.features))
    found = at.tokens.can_use(at.organization_id, user_id, feature, limits=True)
    at.shows("Yes, it would run" if found.allowed else f"No: {WHY[found.rule or ''].lower()}")


def gift(at: Answering) -> None:
    staff = at.reports.staff()
    row = next(one for one in staff if one.user_id == demo.PERSONAS["support"].user_id)
    at.shows(f"{row.left_today:,} of {row.grants_per_day:,} tokens left today")


def lasts(at: Answering) -> None:
    rows = at.reports.run_outs(30 * DAY).rows
    at.shows("At the pace of the last 7 days:" if rows else "nothing runs out before its refresh")
    for row in rows:
        at.shows(f"{TYPES[row.token_type]} {'is empty' if row.balance <= 0 else 'runs out'}")


def why(at: Answering) -> None:
    now = at.reports.now()
    row = at.reports.refusals(now - 30 * DAY, now)[0]
    at.first("Refused requests", WHY[row.rule], at.catalog.features[row.feature].title)


def most_used(at: Answering) -> None:
    now = at.reports.now()
    row = at.reports.usage_by_feature(now - 30 * DAY, now)[0]
    at.first("Uses and tokens by feature", at.catalog.features[row.feature].title, str(row.tokens))


def who(at: Answering) -> None:
    now = at.reports.now()
    row = at.reports.top_users(now - 7 * DAY, now, 1)[0]
    at.first("Tokens by person", row.user, str(row.tokens))


def add_up(at: Answering) -> None:
    for row in at.reports.wallets():
        assert row.balance + row.reserved + row.total_used == row.total_allocated
    at.shows("Left, held and used add up to what was given, in every wallet.")


def refreshes(at: Answering) -> None:
    for row in at.reports.wallets():
        if row.token_type in TYPES:
            days = (row.refresh_date - at.reports.now()).days
            at.shows(re.compile(f"Refresh in ({days}|{days + 1}) days"))


def latest(at: Answering) -> None:
    row = at.reports.latest_charges(1)[0]
    assert row.organization_id == demo.PERSONAS["member"].organization_id
    at.row("Entries of the books", at.catalog.features[row.feature].title)


def costs(at: Answering) -> None:
    at.shows(f"{at.catalog.features['generate_goal'].cost} tokens")


def plan(at: Answering) -> None:
    row = at.reports.organization(demo.SCENARIOS["healthy"].organization_id)
    assert row is not None
    assert (row.plan, row.status) == ("pro", "active")
    at.shows(re.compile("^(sell )?Pro$"))
    at.shows(re.compile("^(check_circle )?Active$"))


ANSWERS: dict[str, Callable[[Answering], None]] = {
    "Who will run out this week?": run_outs,
    "Why was this customer's request refused?": refused,
    "Which feature grew most?": grew,
    "Who spent most in the last day, and is that unusual?": spent,
    "Are the books right?": books,
    "Who should be offered an upgrade?": upgrades,
    "Is anybody's hold stuck?": stuck,
    "What can this customer still buy with what is left?": buys,
    "What did support do, and why?": did,
    "What would a new cost have meant last month?": preview,
    "Could this person do this now?": could,
    "How much may I still give today?": gift,
    "Will we run out before the refresh?": lasts,
    "Why was I refused?": why,
    "Which feature do we use most?": most_used,
    "Who used most this week?": who,
    "Do our figures add up?": add_up,
    "How many quests can we still make?": buys,
    "When do new tokens come?": refreshes,
    "What took the last tokens?": latest,
    "What does a quest cost?": costs,
    "Which plan are we on, and is AI on?": plan,
}


def customer(reports: Reports, role: str) -> tuple[UUID, str]:
    """The member's organization; for staff, who was last refused for an empty wallet."""
    if role == "member":
        return demo.SCENARIOS["healthy"].organization_id, ""
    now = reports.now()
    rows = reports.refusals(now - 30 * DAY, now)
    row = next(one for one in rows if one.rule == "insufficient_tokens")
    return row.organization_id, row.organization


def click(visit: Visit, word: str, name: str) -> None:
    """One click on what the guide calls so."""
    if word in PAGES:
        visit.go(word)
    elif word in VIEWS:
        visit.view(word)
    elif word in RANGES:
        visit.choose("Time range", word)
    elif word == "its name":
        visit.found(name)
    elif word == "Change":  # a button in a table, which is a canvas
        visit.act("What each feature costs")
    elif word == "Verify now":
        visit.press(word)
    else:
        main = visit.page.get_by_test_id("stMain")
        main.get_by_test_id("stExpander").get_by_text(word, exact=True).click()
    visit.drawn()


QUESTIONS = sorted(questions(), key=lambda one: list(START).index(one.role))
ADMINS = {one.asked for one in QUESTIONS if one.role == "admin"}


@pytest.fixture(scope="module")
def tabs(
    somebody: BrowserContext, server: Served, tokens: Tokens
) -> Iterator[Callable[[str], Visit]]:
    """The tab of who has a role. The scenarios are fresh, and support gave a token.

    One at a time: a browser lets the one that is not in front starve.
    """
    demo.reset(server.database.url("tokenlib", "tokenlib_owner"), tokens)
    tokens.staff_grant(
        demo.PERSONAS["support"].user_id,
        demo.SCENARIOS["empty"].organization_id,
        "forecast",
        1,
        reason="the report was late",
    )
    found: dict[str, Visit] = {}
    with ExitStack() as opened:

        def tab(role: str) -> Visit:
            if role not in found:
                found.clear()
                opened.close()
                visit = opened.enter_context(visiting(somebody, server.address))
                visit.page.set_viewport_size(LENGTH)  # type: ignore[arg-type]
                visit.open()
                if role != "admin":
                    visit.sign_in(role)
                found[role] = visit
            return found[role]

        yield tab


def test_each_role_has_ten_questions() -> None:
    assert {one.asked for one in QUESTIONS} == set(ANSWERS)
    for role in START:
        assert len([one for one in QUESTIONS if one.role == role]) == 10


@pytest.mark.parametrize(
    "question",
    [
        pytest.param(
            one,
            id=f"{one.role}: {one.asked}",
            # What support asks too leads over the same clicks.
            marks=pytest.mark.thorough if one.role == "support" and one.asked in ADMINS else (),
        )
        for one in QUESTIONS
    ],
)
def test_the_clicks_of_the_guide_lead_to_the_answer(
    tabs: Callable[[str], Visit], question: Question, tokens: Tokens
) -> None:
    role, visit = question.role, tabs(question.role)
    reader: Literal["authenticated", "tokenlib_reader"]
    reader = "authenticated" if role == "member" else "tokenlib_reader"
    reports = Reports(tokens.database, Viewer(demo.PERSONAS[role].user_id, reader))
    organization_id, name = customer(reports, role)
    visit.go(START[role])
    if "type its name" in question.way:
        visit.page.get_by_role("searchbox", name="Find an organization").fill(name)
    assert len(question.clicks) <= MOST_CLICKS
    for one in question.clicks:
        click(visit, one, name)
    ANSWERS[question.asked](Answering(visit, tokens, reports, tokens.catalog(), organization_id))
