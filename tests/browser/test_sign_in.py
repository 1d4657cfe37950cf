"""People sign in through a real OpenID Connect provider on this machine, in a real browser."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psycopg
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect
from playwright.sync_api import Request as Requested
from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

from tests.browser.visiting import DESK, WAIT, Visit, empty_tab, leave, prepare
from tests.serving import ROOT, served, with_demo
from tokenlib import demo
from tokenlib.embedded import Embedded

ADMIN = demo.PERSONAS["admin"]
MEMBER = "user.healthy@example.org"
ORGANIZATION = demo.SCENARIOS["healthy"].organization_id
CLIENT, CLIENT_SECRET = "tokenlib-console", "a secret of the client"
COOKIE_SECRET = "a cookie secret of the tests, long enough"
COOKIE = "_streamlit_user"
# The provider's own pages want a stylesheet from elsewhere. It is not fetched.
STYLESHEET = "https://cdn.jsdelivr.net/npm/@picocss/pico@2/css/pico.min.css"
STAFF_PAGES = ["Overview", "Organizations", "Usage", "Top spenders", "Health"]
AI_PAGES = ["Quests", "Other AI features"]
LASTS = 4
"""Seconds that a short identity token lasts beside the time that it takes to sign in with it."""


@dataclass
class Served:
    """The console with a sign-in, its provider, and the database it stands on."""

    address: str
    issuer: str
    database: Embedded
    log: Path

    def owner(self) -> psycopg.Connection:
        return psycopg.connect(
            self.database.conninfo("tokenlib", "tokenlib_owner"), autocommit=True
        )

    def account(self, name: str, /, **claims: Any) -> None:
        """Give somebody an account at the provider."""
        request = Request(  # noqa: S310 - our own
            f"{self.issuer}/users/{name}",
            json.dumps(claims).encode(),
            {"Content-Type": "application/json"},
            method="PUT",
        )
        urlopen(request, timeout=10).close()  # noqa: S310 - our own


@dataclass
class Person:
    """Somebody with a browser of their own, and what it asked of other machines."""

    context: BrowserContext
    served: Served
    outside: set[str] = field(default_factory=set)

    def tab(self, path: str = "") -> Visit:
        visit = Visit(empty_tab(self.context), self.served.address)
        visit.open(path)
        return visit

    def sign_in(self, name: str, path: str = "") -> Visit:
        """Open a page, sign in at the provider, and come back."""
        visit = self.tab(path)
        visit.heading("Sign-in needed")
        visit.press("Sign in")
        at_provider(visit.page, name)
        visit.page.wait_for_url(f"{self.served.address}/**")
        expect(visit.page.get_by_role("heading", name="Sign-in needed")).to_have_count(0)
        visit.drawn()
        return visit

    def asked(self, request: Requested) -> None:
        if urlsplit(request.url).hostname not in ("127.0.0.1", "localhost"):
            self.outside.add(request.url)


def at_provider(page: Page, name: str) -> None:
    page.locator("input[name=sub]").fill(name)
    page.locator("input[name=sub]").press("Enter")


@contextmanager
def provider(folder: Path) -> Iterator[str]:
    """An OpenID Connect provider in a process of its own; its issuer, once it answers."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = folder / "provider.log"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "oidc_provider_mock", "--port", str(port)],
            stdout=output,
            stderr=output,
            process_group=0,
        )
    try:
        issuer = f"http://localhost:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                urlopen(f"{issuer}/.well-known/openid-configuration", timeout=5).close()  # noqa: S310
                break
            except (URLError, OSError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no provider:\n{said.read_text()}") from None
                time.sleep(0.1)  # between two looks, until the deadline
        yield issuer
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def served_with() -> Iterator[Served]:
    """Both servers on this machine, with accounts for who may come in and who may not."""
    folder = Path(tempfile.mkdtemp(prefix="tokenlib-sign-in-"))
    folder.chmod(0o711)  # when root runs, the database's user passes through
    try:
        with_demo(folder)
        with provider(folder) as issuer:

            def settings(address: str) -> dict[str, str]:
                return {
                    "TOKENLIB_OIDC_ISSUER": issuer,
                    "TOKENLIB_OIDC_CLIENT_ID": CLIENT,
                    "TOKENLIB_OIDC_CLIENT_SECRET": CLIENT_SECRET,
                    "TOKENLIB_OIDC_REDIRECT_URI": f"{address}/oauth2callback",
                    "TOKENLIB_OIDC_COOKIE_SECRET": COOKIE_SECRET,
                }

            with served(ROOT / "app.py", folder, settings) as address:
                found = Served(address, issuer, Embedded(folder / "data"), folder / "app.log")
                with found.owner() as owner:
                    owner.execute(
                        "insert into public.tokenlib_staff_claims"
                        " values (%s, '{groups}', 'token admins', 'admin')",
                        (issuer,),
                    )
                for name, email in [
                    ("admin", ADMIN.email),
                    ("support", demo.PERSONAS["support"].email),
                    ("member", MEMBER),
                    ("stranger", "stranger@example.org"),
                ]:
                    found.account(name, email=email, email_verified=True)
                found.account("claimant", email=ADMIN.email, email_verified=False)
                with found.owner() as owner:
                    owner.execute(
                        "update public.user_profiles set email = %s where id = %s",
                        (MEMBER, demo.SCENARIOS["healthy"].user_id),
                    )
                yield found
            said = found.log.read_text()
            assert "Traceback" not in said, said
            assert CLIENT_SECRET not in said
            assert COOKIE_SECRET not in said
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def used() -> Iterator[list[BrowserContext]]:
    """Browsers that somebody has left: what was loaded once stays loaded, and nothing else."""
    left: list[BrowserContext] = []
    yield left
    for context in left:
        context.close()


Enter = Callable[[], AbstractContextManager[Person]]


@pytest.fixture
def enter(browser: Browser, served_with: Served, used: list[BrowserContext]) -> Enter:
    """Somebody who was never here comes, each time another."""

    @contextmanager
    def entered() -> Iterator[Person]:
        if used:
            context = used.pop()
        else:
            context = browser.new_context(viewport=DESK, locale="en-US")  # type: ignore[arg-type]
            prepare(context)
        person = Person(context, served_with)
        context.on("request", person.asked)
        yield person
        for page in context.pages:
            leave(page)
        for page in context.pages[1:]:
            page.close()
        context.remove_listener("request", person.asked)
        context.clear_cookies()
        used.append(context)
        assert person.outside <= {STYLESHEET}

    return entered


@pytest.fixture
def person(enter: Enter) -> Iterator[Person]:
    """Somebody who was never here."""
    with enter() as somebody:
        yield somebody


def menu(visit: Visit) -> list[str]:
    links = visit.page.get_by_test_id("stSidebarNavLink")
    return [text.rpartition("\n")[2] for text in links.all_inner_texts()]


def shows_no_data(visit: Visit) -> None:
    main = visit.page.get_by_test_id("stMain")
    for name in ("stMetric", "stDataFrame", "stVegaLiteChart", "stForm"):
        expect(main.get_by_test_id(name)).to_have_count(0)
    expect(visit.page.get_by_test_id("stSidebarNavLink")).to_have_count(0)


@pytest.mark.parametrize(
    ("name", "start", "pages", "not_theirs"),
    [
        ("admin", "Overview", [*STAFF_PAGES, "Settings", *AI_PAGES], None),
        ("support", "Overview", [*STAFF_PAGES, *AI_PAGES], "settings"),
        ("member", "My tokens", ["My tokens", *AI_PAGES], "organizations"),
    ],
)
def test_each_sees_exactly_what_is_theirs(
    person: Person, name: str, start: str, pages: list[str], not_theirs: str | None
) -> None:
    visit = person.sign_in(name)
    visit.heading(start)
    assert menu(visit) == pages
    expect(visit.page.get_by_test_id("stSidebar").get_by_text(f"· {name}")).to_be_visible()
    expect(visit.page.get_by_role("radiogroup", name="Signed in as")).to_have_count(0)
    expect(visit.page.get_by_text("Demo mode")).to_have_count(0)
    visit.shoot(f"sign-in-{name}")
    if not_theirs:
        other = person.tab(not_theirs).page
        expect(other.get_by_test_id("stAlert").filter(has_text="Not for you")).to_be_visible()


@pytest.mark.parametrize(
    ("name", "title"),
    [("stranger", "No access yet"), ("claimant", "E-mail address not verified")],
)
def test_whom_nobody_knows_is_told_what_to_do(person: Person, name: str, title: str) -> None:
    visit = person.sign_in(name, "health")
    visit.heading(title)
    shows_no_data(visit)
    expect(visit.page.get_by_test_id("stMain")).to_contain_text("@example.org")
    visit.shoot(f"sign-in-{name}")
    visit.press("Use another account")
    visit.page.get_by_role("button", name="End session").click()
    visit.heading("Sign-in needed")


def test_a_link_leads_to_its_page_after_the_sign_in(person: Person) -> None:
    path = f"organization?id={ORGANIZATION}&view=Ledger"
    visit = person.sign_in("support", path)
    visit.heading("Organization")
    assert visit.page.url == f"{person.served.address}/{path}"
    expect(visit.page.get_by_role("tab", name="Ledger")).to_have_attribute("aria-selected", "true")


def test_signing_out_in_one_tab_ends_every_other(
    person: Person, enter: Enter, served_with: Served
) -> None:
    first = person.sign_in("admin")
    second = person.tab(f"organization?id={ORGANIZATION}")
    second.press("Grant tokens")
    dialog = second.dialog()
    dialog.get_by_role("textbox", name="Reason").fill("after the sign-out")
    second.drawn()
    copied = person.context.cookies()
    first.press("Sign out")
    first.page.get_by_role("button", name="End session").click()
    first.heading("Sign-in needed")
    shows_no_data(first)
    dialog.get_by_role("button", name="Grant 10 tokens", exact=True).click()
    with served_with.owner() as owner:
        reason = "select 1 from public.ai_token_events where reason = 'after the sign-out'"
        assert owner.execute(reason).fetchall() == []
    with enter() as thief:
        thief.context.add_cookies(copied)  # type: ignore[arg-type]
        stolen = thief.tab("organizations")
        stolen.heading("Your session has ended")
        shows_no_data(stolen)
    second.heading("Your session has ended")  # within a quarter of a minute
    shows_no_data(second)


@pytest.mark.thorough  # it waits for a while to be over
def test_a_tab_that_nobody_touches_closes_when_its_identity_ends(
    person: Person, enter: Enter
) -> None:
    began = time.monotonic()
    with enter() as another:
        another.sign_in("support", "health").heading("Health")
    took = time.monotonic() - began
    end = int(time.time() + LASTS + 2 * took)
    person.served.account("brief", email=ADMIN.email, email_verified=True, exp=end)
    visit = person.sign_in("brief", "health")
    visit.heading("Health")
    assert time.time() < end + 1
    ended = visit.page.get_by_role("heading", name="Your session has ended", exact=True)
    ended.wait_for(timeout=(end - time.time()) * 1000 + 2 * WAIT)
    assert time.time() >= end
    shows_no_data(visit)
    visit.shoot("sign-in-ended")


def test_whoever_is_staff_no_more_sees_nothing_from_the_next_click(
    person: Person, served_with: Served
) -> None:
    served_with.account("temp", email="temp@example.org", email_verified=True)
    with served_with.owner() as owner:
        owner.execute(
            "insert into public.tokenlib_staff (user_id, email, full_name, role)"
            " values (gen_random_uuid(), 'temp@example.org', 'Temp', 'support')"
        )
        visit = person.sign_in("temp", "organizations")
        visit.heading("Organizations")
        owner.execute("delete from public.tokenlib_staff where email = 'temp@example.org'")
    visit.press("Refresh")
    visit.heading("No access yet")
    shows_no_data(visit)


def test_a_group_that_the_owner_names_makes_staff_until_an_admin_ends_it(
    person: Person, served_with: Served
) -> None:
    verified = {"email": "group@example.org", "email_verified": True, "name": "Grace"}
    served_with.account("group", **verified, groups=["people", "token admins"])
    with served_with.owner() as owner:
        visit = person.sign_in("group", "settings")
        visit.heading("Settings")
        expect(visit.page.get_by_text("Grace · admin")).to_be_visible()
        visit.shoot("sign-in-claim")
        owner.execute(
            "select tokenlib.staff_set_staff(%s, user_id, null, null, null, null, 'left')"
            " from public.tokenlib_staff where full_name = 'Grace'",
            (ADMIN.user_id,),
        )
        visit.open("settings")
        visit.heading("No access yet")
        shows_no_data(visit)


@pytest.mark.parametrize(
    ("secret", "title"), [(COOKIE_SECRET, "Health"), ("another secret, as long" * 2, None)]
)
def test_a_cookie_that_the_console_did_not_sign_is_none(
    person: Person, secret: str, title: str | None
) -> None:
    now = int(time.time())
    claims = {
        "is_logged_in": True,
        "origin": person.served.address,
        "provider": "default",
        "iss": person.served.issuer,
        "aud": CLIENT,
        "sub": "forged",
        "email": ADMIN.email,
        "email_verified": True,
        "iat": now,
        "exp": now + 3600,
    }
    signed = create_signed_value(secret, COOKIE, json.dumps(claims)).decode()
    person.context.add_cookies(
        [{"name": COOKIE, "value": signed, "url": person.served.address, "httpOnly": True}]
    )
    visit = person.tab("health")
    visit.heading(title or "Sign-in needed")
    if title is None:
        shows_no_data(visit)
