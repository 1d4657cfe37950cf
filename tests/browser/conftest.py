"""The real console in a real browser: one server with the demo data for all tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

from tests.serving import ARGUMENTS, CHROMIUM, ROOT, served

WAIT = 30_000
"""Milliseconds that an element may take to appear on a busy machine."""


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """`streamlit run app.py` on a free port and an empty data folder; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="tokenlib-browser-"))
    folder.chmod(0o711)  # when root runs, the database's user passes through
    try:
        with served(ROOT / "app.py", folder) as address:
            yield address
        left = [
            _command(found) for found in psutil.process_iter() if str(folder) in _command(found)
        ]
        assert left == []
        assert "Traceback" not in (folder / "app.log").read_text()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window. Its event loop ends with the module: others need theirs."""
    if not CHROMIUM.exists():
        pytest.fail(f"no browser at {CHROMIUM}; name one with TOKENLIB_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A tab, and what went wrong in it: requests that left the machine, errors of the page."""

    page: Page
    address: str
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, path: str = "") -> Page:
        """Go to a page of the console and wait until its script has run."""
        self.page.goto(f"{self.address}/{path}")
        self.settle()
        return self.page

    def settle(self) -> None:
        """Wait until the script that an action started has run."""
        self.page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")

    def asked(self, request: Request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.outside.append(request.url)


@pytest.fixture
def visit(server: str, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A new tab, `width` pixels wide; at its end nothing may have gone wrong in it."""
    width = getattr(request, "param", 1280)
    context = browser.new_context(
        viewport={"width": width, "height": 844}, timezone_id="Europe/Rome"
    )
    context.set_default_timeout(WAIT)
    visit = Visit(context.new_page(), server)
    visit.page.on("request", visit.asked)
    visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
    yield visit
    context.close()
    assert visit.outside == []
    assert visit.errors == []
