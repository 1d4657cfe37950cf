"""A tab of the console, and what a person does in it: open, choose, fill, confirm, look."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import (
    BrowserContext,
    ConsoleMessage,
    Error,
    Locator,
    Page,
    Request,
    expect,
)

from tests.serving import ROOT

WAIT = 60_000
"""Milliseconds that something may take to appear on a busy machine."""
SCREENS = ROOT / "build" / "screens"
DESK = {"width": 1280, "height": 844}
PHONE = 390
ROW = 33
"""Pixels of a table's row. A table is one canvas, so a cell is clicked by its place."""
FIRST = 72
"""Pixels to the button or the name in the first column, after the box that chooses a row."""

# A deep link's path could be the console's own root: Streamlit's page asks there first, and is told
# that it is not. Nothing else may be missing.
_PROBES = re.compile(r"/\w+/_stcore/(health|host-config)$")
# Whether the server has answered what the page asked for last. A page asks with field 11 of a
# BackMsg; a run begins with field 4 of a ForwardMsg and ends with its field 6, where 2 says that
# another follows at once. What a timer asks for is not waited for, nor for long what never begins:
# the server drops what a part of the page asks for that is gone.
_ASKING = """(() => {
    const fields = function* (data) {
        const bytes = new Uint8Array(data);
        let at = 0;
        const number = () => {
            let value = 0;
            for (let shift = 1; ; shift *= 128) {
                value += (bytes[at] & 127) * shift;
                if (bytes[at++] < 128) return value;
            }
        };
        while (at < bytes.length) {
            const tag = number(), value = number();
            const inner = tag % 8 === 2 ? bytes.slice(at, at += value) : value;
            yield [Math.floor(tag / 8), inner];
        }
    };
    const by_timer = asked => [...fields(asked)].some(([field]) => field === 6);
    window.asked = '';
    window.ask = () => Object.assign(window, {asked: 'asked', asked_at: Date.now()});
    const heard = ({data}) => {
        for (const [field, value] of fields(data)) {
            if (field === 4 && window.asked === 'asked') window.asked = 'running';
            if (field === 6 && value !== 2 && window.asked === 'running') window.asked = '';
        }
    };
    window.WebSocket = class extends WebSocket {
        constructor(...where) {
            super(...where);
            this.addEventListener('message', heard);
        }
        send(data) {
            for (const [field, asked] of fields(data))
                if (field === 11 && !by_timer(asked)) window.ask();
            super.send(data);
        }
    };
    window.ask();  // as the page does first
})()"""
_DRAWN = """() => {
    const app = document.querySelector('[data-testid=stApp]');
    const shown = name => [...document.querySelectorAll(`[data-testid=${name}]`)].filter(
        one => one.checkVisibility());
    const has = part => one => one.querySelector(part) !== null;
    const answered = !window.asked || Date.now() - window.asked_at > 10_000;
    return answered && app?.dataset.testScriptState === 'notRunning'
        && shown('stSkeleton').length === 0
        && shown('stDataFrame').every(has('canvas'))
        && shown('stVegaLiteChart').every(has('canvas, svg'));
}"""
# Nothing moves any more, and the menu stands beside the page; out of sight where there is no room.
_STILL = """() => {
    const menu = document.querySelector('[data-testid=stSidebar]');
    return (innerWidth > 768) === (menu.getBoundingClientRect().right > 0)
        && document.getAnimations().every(one =>
            one.effect.getComputedTiming().endTime === Infinity || one.playState !== 'running');
}"""
_BACKGROUND = "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
_HEIGHT = "document.querySelector('[data-testid=stMain]').scrollHeight"
_FITS = """() => {
    const main = document.querySelector('[data-testid=stMain]');
    return innerWidth === main.clientWidth && main.scrollWidth <= main.clientWidth;
}"""

expect.set_options(timeout=WAIT)


@dataclass
class Visit:
    """A tab, and what went wrong in it: requests that left the machine, errors of the page."""

    page: Page
    address: str
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, path: str = "") -> Page:
        """Go to a page of the console and wait until it is drawn."""
        self.page.goto(f"{self.address}/{path}")
        self.drawn()
        return self.page

    def drawn(self) -> None:
        """Wait until the script has run and everything that it put on the page is there."""
        self.page.wait_for_function(_DRAWN)

    def heading(self, title: str) -> None:
        """The page is the one with this title."""
        expect(self.page.get_by_role("heading", name=title, exact=True, level=1)).to_be_visible()

    def choose(self, group: str, option: str) -> None:
        """Take one of the options of a segmented control that has this label."""
        control = self.page.get_by_role("radiogroup", name=group, exact=True)
        control.get_by_text(option, exact=True).click()
        expect(control.get_by_role("radio", name=option, exact=True)).to_be_checked()
        self.drawn()

    def sign_in(self, role: str) -> Page:
        """Become the admin, the support person or the member of the demo."""
        self.choose("Signed in as", role.capitalize())
        expect(self.page.get_by_text(f"Demo {role} · {role}")).to_be_visible()
        self.drawn()
        return self.page

    def view(self, name: str) -> None:
        """Turn to a tab of the page."""
        self.page.get_by_role("tab", name=name, exact=True).click()
        expect(self.page.get_by_role("tab", name=name, exact=True)).to_have_attribute(
            "aria-selected", "true"
        )
        self.drawn()

    def press(self, label: str) -> None:
        """Press the button with this label."""
        self.page.get_by_role("button", name=label, exact=True).click()

    def pick(self, label: str, option: str, within: Locator | None = None) -> None:
        """Choose an option of a list by typing it, as a person in a hurry does.

        What is drawn anew while somebody types closes the list, and so does what scrolls: the field
        is brought into sight before.
        """
        self.drawn()
        field = (within or self.page).get_by_role("combobox", name=label, exact=True)
        field.click()
        field.fill(option)
        self.page.get_by_role("option", name=option, exact=True).click()
        expect(field).to_have_value(option)
        self.drawn()

    def dialog(self) -> Locator:
        """The dialog that opens."""
        dialog = self.page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        self.drawn()
        return dialog

    def go(self, title: str) -> None:
        """Follow the menu to a page."""
        self.page.get_by_test_id("stSidebarNav").get_by_text(title, exact=True).click()
        self.heading(title)
        self.drawn()

    def find(self, search: str, name: str) -> None:
        """Search for an organization from any page, and open it."""
        self.page.get_by_role("searchbox", name="Find an organization").fill(search)
        self.found(name)

    def found(self, name: str) -> None:
        """Open the organization of this name, which a search has found."""
        side = self.page.get_by_test_id("stSidebar")
        side.get_by_role("link", name=name, exact=True).click()
        self.heading("Organization")
        self.drawn()

    def act(self, table: str, row: int = 0) -> None:
        """Click the button or the name in the first column of a table's row."""
        canvas = self.table(table).get_by_test_id("data-grid-canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        self.page.mouse.click(box["x"] + FIRST, box["y"] + ROW * (row + 1.5))

    def table(self, description: str) -> Locator:
        """The table that is described so to who cannot see it."""
        return self.page.get_by_role("region", name=re.compile(description))

    def cells(self, table: str) -> Locator:
        """What a table says, cell after cell. Of a large one, what is in sight."""
        return self.table(table).locator("td")

    def confirm(self, reason: str, label: str) -> Locator:
        """Give the reason in the open dialog and confirm; the dialog is gone, its entry shown."""
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_role("textbox", name="Reason").fill(reason)
        dialog.get_by_role("button", name=label, exact=True).click()
        expect(dialog).to_have_count(0)
        done = self.page.get_by_test_id("stAlert").filter(has_text="Done")
        expect(done).to_be_visible()
        self.drawn()
        return done

    def shoot(self, name: str) -> None:
        """For `make screens`: what is on the page as `name`-light, -dark and -phone, to its end."""
        if "TOKENLIB_SCREENS" not in os.environ:
            return
        SCREENS.mkdir(parents=True, exist_ok=True)
        self._shot(f"{name}-light", DESK["width"])
        self.dark()
        self._shot(f"{name}-dark", DESK["width"])
        self.light()
        self._shot(f"{name}-phone", PHONE)
        self.page.set_viewport_size(DESK)  # type: ignore[arg-type]

    def dark(self) -> None:
        """As a reader in the dark sees it."""
        self._scheme("dark")

    def light(self) -> None:
        """As everybody else sees it."""
        self._scheme("light")

    def fits(self, width: int) -> None:
        """At this width, with the menu folded, nothing has to be scrolled sideways."""
        self.page.set_viewport_size({"width": width, "height": DESK["height"]})
        self.page.wait_for_function(_FITS)
        self.page.set_viewport_size(DESK)  # type: ignore[arg-type]

    def _scheme(self, scheme: str) -> None:
        before = self.page.evaluate(_BACKGROUND)
        self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        self.page.wait_for_function(f"before => {_BACKGROUND} !== before", arg=before)
        self.page.wait_for_function(_STILL)

    def _shot(self, name: str, width: int) -> None:
        self.page.set_viewport_size({"width": width, "height": DESK["height"]})
        self.page.wait_for_function(_STILL)
        self.drawn()
        height = max(DESK["height"], self.page.evaluate(_HEIGHT))
        self.page.set_viewport_size({"width": width, "height": height})
        self.drawn()
        self.page.screenshot(path=SCREENS / f"{name}.png")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.outside.append(request.url)

    def _broke(self, error: Error) -> None:
        self.errors.append(str(error))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not _PROBES.search(message.location.get("url", "")):
            self.errors.append(message.text)


def prepare(context: BrowserContext) -> None:
    """Make a new browser one whose tabs can be visited."""
    context.set_default_timeout(WAIT)
    context.add_init_script(_ASKING)


def empty_tab(context: BrowserContext) -> Page:
    """A tab in which nothing was, as far as a page can tell: the one that was left, if any.

    What it has loaded of the console it need not load and compile again, as a new one would.
    """
    left = [page for page in context.pages if page.url == "about:blank"]
    return left[0] if left else context.new_page()


def leave(page: Page) -> None:
    """Leave an empty tab behind: nothing stored, nowhere to go back to, as wide and light."""
    if page.url != "about:blank":
        page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
        page.goto("about:blank")
    page.set_viewport_size(DESK)  # type: ignore[arg-type]
    page.emulate_media(color_scheme="light")
    history = page.context.new_cdp_session(page)
    history.send("Page.resetNavigationHistory")
    history.detach()


@contextmanager
def visiting(context: BrowserContext, address: str) -> Iterator[Visit]:
    """An empty tab; at its end nothing may have gone wrong in it."""
    page = empty_tab(context)
    visit = Visit(page, address)
    page.on("request", visit._asked)
    page.on("pageerror", visit._broke)
    page.on("console", visit._said)
    yield visit
    leave(page)
    page.remove_listener("request", visit._asked)
    page.remove_listener("pageerror", visit._broke)
    page.remove_listener("console", visit._said)
    assert visit.outside == []
    assert visit.errors == []


__all__ = ["PHONE", "WAIT", "Visit", "visiting"]
