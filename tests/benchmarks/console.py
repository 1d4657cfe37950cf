"""How fast the console is: `make bench-console` on a quiet machine.

One browser, one server on demo data in a folder of its own. Each page is timed from the click in
the menu to the last change of the page, and from a cold start (empty cache) to the last change,
beside a page of one line of text in the same browser. Then what somebody does on Organizations,
after 100,000 of them were added. Prints a table and writes build/bench-console.json; what the
figures mean stands in docs/performance.md.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.serving import ARGUMENTS, CHROMIUM, ROOT, served
from tokenlib.config import Settings
from tokenlib.tokens import connect

ROUNDS = 5
MANY = 100_000
QUIET = 600
"""Milliseconds without a change of the page, after which it counts as complete."""
WAIT = 60_000
CLICK_AIM, COLD_AIM = 2.0, 1.5
PROMISED = 300
"""Milliseconds from click to last element that operators were promised for a page."""
RESULT = ROOT / "build" / "bench-console.json"
VIEWS = {
    "overview": "Overview",
    "organizations": "Organizations",
    "usage": "Usage",
    "spenders": "Top spenders",
    "health": "Health",
    "settings": "Settings",
    "quests": "Quests",
    "features": "Other AI features",
}
START = "overview"
LINES = """
import streamlit as st
st.set_page_config(layout="wide")
def one(): st.title("One"); st.write("A line of text.")
def two(): st.title("Two"); st.write("Another line of text.")
st.navigation([st.Page(one, title="One", default=True), st.Page(two, title="Two")]).run()
"""
# Notes when somebody last did something, and when the page last changed. What stands inside a
# canvas is not seen: a table writes itself there for screen readers, 300 ms after it is drawn.
WATCH = """
window.lastChange = 0; window.lastAct = 0;
const unseen = ({target, type}) => target.tagName === "CANVAS" ? type === "childList"
    : Boolean(target.parentElement?.closest("canvas"));
new MutationObserver(changes => {
    if (!changes.every(unseen)) window.lastChange = performance.now();
}).observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
for (const kind of ["pointerdown", "input"])
    document.addEventListener(kind, () => { window.lastAct = performance.now(); }, true);
"""
# Wallets that are in their period: what is due, the server would refresh while it is measured.
ORGANIZATIONS = """
with made as (
    insert into organizations (id, name, plan)
    select gen_random_uuid(), 'Sample company ' || lpad(n::text, 6, '0'),
        (array['starter', 'pro', 'enterprise'])[1 + n %% 3]
    from generate_series(1, %s) n returning id, name, plan, right(name, 6)::integer as n
), people as (
    insert into user_profiles (id, organization_id, full_name, email)
    select gen_random_uuid(), id, 'Sample person',
        'person' || lpad(n::text, 6, '0') || '@example.org'
    from made
), wallets as (
    select made.*, t.token_type, (n * 7 + t.position * 13) %% 100 as used,
        now() + (1 + n %% 29) * interval '1 day' as due
    from made cross join ai_token_types t where t.token_type <> 'shared'
)
insert into ai_tokens (organization_id, token_type, balance, total_used, total_allocated,
    allowance, plan, refresh_date, due_at, last_used_at, event_number)
select id, token_type, 100 - used, used, 100, 100, plan, due, due,
    now() - n * interval '1 minute', 1
from wallets
"""


@contextmanager
def tab(browser: Browser) -> Iterator[Page]:
    """A tab with an empty cache that watches itself."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(WAIT)
    context.add_init_script(WATCH)
    yield context.new_page()
    context.close()


def complete(page: Page, title: str) -> float:
    """Wait until the page with this title is complete; when it last changed, in milliseconds."""
    expect(page.get_by_role("heading", name=title, exact=True, level=1)).to_be_visible(timeout=WAIT)
    page.wait_for_function(
        "quiet => document.querySelector('[data-testid=stApp][data-test-script-state=notRunning]')"
        " && !document.querySelector('[data-testid=stSkeleton]')"
        " && performance.now() - window.lastChange > quiet",
        arg=QUIET,
    )
    return float(page.evaluate("window.lastChange"))


def acted(page: Page, title: str, act: Callable[[], object]) -> float:
    """Milliseconds from what somebody does to the last change of the page that follows."""
    act()
    return complete(page, title) - float(page.evaluate("window.lastAct"))


def cold(browser: Browser, address: str, title: str) -> float:
    """Milliseconds from opening an address with an empty cache to the last change."""
    with tab(browser) as page:
        page.goto(address)
        return complete(page, title)


def menu(page: Page, title: str) -> Callable[[], None]:
    return page.get_by_test_id("stSidebarNav").get_by_text(title, exact=True).click


def switched(browser: Browser, address: str, start: str, titles: list[str]) -> dict[str, float]:
    """For each page, the median from a click in the menu to the last element, warm."""
    times: dict[str, list[float]] = {title: [] for title in titles}
    with tab(browser) as page:
        page.goto(address)
        complete(page, start)
        for number in range(ROUNDS + 1):
            for title in titles:
                if title == page.get_by_role("heading", level=1).first.inner_text():
                    other = next(name for name in [start, *titles] if name != title)
                    acted(page, other, menu(page, other))
                taken = acted(page, title, menu(page, title))
                if number:  # the first round warms up
                    times[title].append(taken)
    return {title: median(taken) for title, taken in times.items()}


def many(browser: Browser, address: str) -> dict[str, float]:
    """What somebody does on Organizations, in milliseconds."""
    title = "Organizations"
    with tab(browser) as page:
        page.goto(f"{address}/organizations")
        complete(page, title)
        search = page.get_by_test_id("stMain").get_by_placeholder("Name, member e-mail or id")
        anywhere = page.get_by_placeholder("Name, e-mail or id")

        def sort(by: str) -> Callable[[], None]:
            def act() -> None:
                page.get_by_test_id("stSelectbox").filter(has_text="Sort by").locator(
                    "input"
                ).click()
                page.get_by_role("option", name=by, exact=True).click()

            return act

        steps: dict[str, Callable[[], object]] = {
            "search by name": lambda: search.fill("company 0777"),
            "search by e-mail": lambda: search.fill("person012345@example"),
            "clear the search": lambda: search.fill(""),
            "next page": lambda: (
                page.get_by_test_id("stPagination").get_by_text("2", exact=True).click()
            ),
            "sort by lowest level": sort("Lowest level"),
            "sort by most used": sort("Most used"),
            "sort by runs out first": sort("Runs out first"),
            "find from the sidebar": lambda: anywhere.fill("company 04242"),
        }
        return {name: acted(page, title, act) for name, act in steps.items()}


def load(folder: Path) -> None:
    """Add the organizations as the owner, past the gate: figures to list, not books to close."""
    with connect(settings=Settings(data_dir=folder / "data")) as tokens:
        owner = tokens.database.url.set(drivername="postgresql", username="tokenlib_owner")
        with psycopg.connect(owner.render_as_string(hide_password=False), autocommit=True) as db:
            db.execute(ORGANIZATIONS, (MANY,))
            db.execute("analyze")


def report(result: dict[str, Any]) -> str:
    """The figures as a table, and what falls short."""
    line = result["one_line"]
    lines = [
        f"Load average {result['load_average']:.1f} on {os.cpu_count()} cores.\n",
        f"{'page':24}{'click':>10}{'ratio':>8}{'cold':>10}{'ratio':>8}",
        f"{'one line of text':24}{line['click']:>7.0f} ms{'':8}{line['cold']:>7.0f} ms",
    ]
    short, slow = [], []
    for title, found in result["pages"].items():
        click, start = found["click"] / line["click"], found["cold"] / line["cold"]
        lines.append(
            f"{title:24}{found['click']:>7.0f} ms{click:>7.1f}x"
            f"{found['cold']:>7.0f} ms{start:>7.1f}x"
        )
        slow += [f"{title}, {found['click']:.0f} ms"] if found["click"] > PROMISED else []
        short += [f"{title}, click: {click:.1f}x"] if click > CLICK_AIM else []
        short += [f"{title}, cold: {start:.1f}x"] if start > COLD_AIM else []
    lines += [
        f"\nPromised: {PROMISED} ms for a click. Over: {'; '.join(slow) or 'none'}.",
        f"Aims: click {CLICK_AIM}x, cold {COLD_AIM}x. Short: {'; '.join(short) or 'none'}.",
        f"\nOrganizations with {MANY:,} of them (a search field waits 300 ms for more letters):",
        *(f"  {name:24}{taken:>7.0f} ms" for name, taken in result["many"].items()),
        f"\nWritten to {RESULT.relative_to(ROOT)}.\n",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, keep."""
    result: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    folder = Path(tempfile.mkdtemp(prefix="tokenlib-bench-"))
    folder.chmod(0o711)  # when root runs, the database's user passes through
    (folder / "lines.py").write_text(LINES)
    try:
        with (
            sync_playwright() as playwright,
            served(folder / "lines.py", folder) as lines,
            served(ROOT / "app.py", folder) as console,
        ):
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            clicks = switched(browser, lines, "One", ["Two"])
            starts = [cold(browser, lines, "One") for _ in range(ROUNDS)]
            result["one_line"] = {"click": clicks["Two"], "cold": median(starts)}
            clicks = switched(browser, console, VIEWS[START], list(VIEWS.values()))
            result["pages"] = {
                title: {
                    "click": clicks[title],
                    "cold": median(
                        cold(browser, f"{console}/{'' if path == START else path}", title)
                        for _ in range(ROUNDS)
                    ),
                }
                for path, title in VIEWS.items()
            }
            load(folder)
            steps = [many(browser, console) for _ in range(ROUNDS)]
            result["many"] = {name: median(step[name] for step in steps) for name in steps[0]}
            browser.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(report(result))


if __name__ == "__main__":
    main()
