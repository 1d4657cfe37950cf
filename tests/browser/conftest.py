"""The real console in a real browser: one server with the demo data for all tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.browser.visiting import DESK, Visit, prepare, visiting
from tests.serving import ARGUMENTS, CHROMIUM, READY_SECONDS, ROOT, served, with_demo
from tokenlib import demo
from tokenlib.config import Settings
from tokenlib.embedded import Embedded
from tokenlib.tokens import Tokens, connect


@dataclass(frozen=True)
class Served:
    """The console, and the bundled database that it stands on."""

    address: str
    database: Embedded

    def owner(self) -> psycopg.Connection:
        """A connection as the owner of the tables, who alone may write who is staff."""
        return psycopg.connect(
            self.database.conninfo("tokenlib", "tokenlib_owner"), autocommit=True
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test waits for the server too, for as long as that may take."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(READY_SECONDS + 60))


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    """`streamlit run app.py` on a free port and the demo data; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="tokenlib-browser-"))
    folder.chmod(0o711)  # when root runs, the database's user passes through
    try:
        with_demo(folder)
        with served(ROOT / "app.py", folder, _pepper) as address:
            yield Served(address, Embedded(folder / "data"))
        left = [
            _command(found) for found in psutil.process_iter() if str(folder) in _command(found)
        ]
        assert left == []
        assert "Traceback" not in (folder / "app.log").read_text()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pepper(_address: str) -> dict[str, str]:
    return {"TOKENLIB_KEY_PEPPER": "a pepper of the tests, which nobody has but the test"}


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="session")
def tokens(server: Served) -> Iterator[Tokens]:
    """A gate of the test's own on the console's database, for what happens elsewhere."""
    with connect(settings=Settings(data_dir=server.database.data_dir)) as gate:
        yield gate


@pytest.fixture
def fresh(server: Served, tokens: Tokens) -> None:
    """The demo's scenarios as they start, whatever was done to them before."""
    demo.reset(server.database.url("tokenlib", "tokenlib_owner"), tokens)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium without a window. Its event loop ends with this folder: others need theirs."""
    if not CHROMIUM.exists():
        pytest.fail(f"no browser at {CHROMIUM}; name one with TOKENLIB_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def person(browser: Browser, server: Served) -> BrowserContext:
    """Somebody with a browser of their own, in Rome."""
    context = browser.new_context(
        viewport=DESK,  # type: ignore[arg-type]
        timezone_id="Europe/Rome",
        locale="en-US",
    )
    prepare(context)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.address)
    return context


@pytest.fixture(scope="package")
def somebody(browser: Browser, server: Served) -> Iterator[BrowserContext]:
    """The person whose tab the tests open one after another: what was loaded stays loaded."""
    context = person(browser, server)
    yield context
    context.close()


@pytest.fixture(scope="package")
def another(browser: Browser, server: Served) -> Iterator[BrowserContext]:
    """A person with another browser."""
    context = person(browser, server)
    yield context
    context.close()


@pytest.fixture
def visit(somebody: BrowserContext, server: Served) -> Iterator[Visit]:
    """A tab in which nothing was."""
    with visiting(somebody, server.address) as tab:
        yield tab


@pytest.fixture
def colleague(another: BrowserContext, server: Served) -> Iterator[Visit]:
    """A tab in another person's browser."""
    with visiting(another, server.address) as tab:
        yield tab
