"""The pictures of the documents: `make pictures` takes them anew.

One server on demo data in a folder of its own, one browser. They are written to docs/images; look
at each before it is committed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, sync_playwright

from tests.browser.visiting import DESK, PHONE, Visit, prepare, visiting
from tests.serving import ARGUMENTS, CHROMIUM, ROOT, served

STILL = """() => document.getAnimations().every(one =>
    one.effect.getComputedTiming().endTime === Infinity || one.playState !== 'running')"""
IMAGES = ROOT / "docs" / "images"
CUSTOMER = "Amber Cleaning 11"
"""Out of tokens and refused, in every demo database."""


@contextmanager
def tab(browser: Browser, address: str, **options: Any) -> Iterator[Visit]:
    """A tab of somebody in New York."""
    context = browser.new_context(
        **{"viewport": DESK, "timezone_id": "America/New_York", "locale": "en-US", **options}
    )
    prepare(context)
    with visiting(context, address) as visit:
        yield visit
    context.close()


def take(visit: Visit, name: str, last: Locator | None, below: int = 40) -> None:
    """The page until a little below this element, or all of it."""
    page = visit.page
    size = page.viewport_size
    assert size is not None
    page.mouse.move(0, 0)
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    for _ in range(2):  # a page that is all in sight may be drawn anew, and lower
        page.set_viewport_size({"width": size["width"], "height": round(height)})
        visit.drawn()
        page.wait_for_function(STILL)
        box = last.bounding_box() if last else None
        height = box["y"] + box["height"] + below if box else height
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    sys.stdout.write(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KB\n")


def pictures(browser: Browser, address: str) -> None:
    """Every picture of README.md and docs/guide.md."""
    with tab(browser, address) as visit:
        visit.open()
        take(visit, "console", visit.page.get_by_text("Weaker bars are cut"))
        visit.open("spenders")
        take(visit, "spenders", visit.table("Who spent most"))
    with tab(browser, address) as visit:
        visit.open()
        visit.find(CUSTOMER, CUSTOMER)
        visit.view("Refusals")
        visit.page.get_by_text("Could this person do this now?").wait_for()
        take(visit, "refusals", None)
    with tab(browser, address, color_scheme="dark") as visit:
        visit.open("health")
        visit.press("Verify now")
        visit.page.get_by_text("Every sum closes").wait_for()
        take(visit, "health", visit.page.get_by_text("Plans changed from outside").first, 72)
    with tab(browser, address) as visit:
        visit.open()
        visit.sign_in("member")
        visit.page.set_viewport_size({"width": PHONE, "height": DESK["height"]})
        take(visit, "tokens", visit.page.get_by_text("Left, held and used"))


def main() -> int:
    """Take the pictures; 0 when they are all there."""
    folder = Path(tempfile.mkdtemp(prefix="tokenlib-pictures-"))
    folder.chmod(0o711)  # when root runs, the database's user passes through
    try:
        with served(ROOT / "app.py", folder) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            pictures(browser, address)
            browser.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
