"""Ways through the console: back with every filter, start pages by name, no unsafe download."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from tests.console.opening import Open
from tokenlib.console import links, process
from tokenlib.reports import Reports
from tokenlib.tokens import Tokens

ROOT = Path(__file__).parents[2]


def go(app: AppTest, page: str, **query: str | list[str]) -> AppTest:
    """To another page as the browser does it: the address is the new one's."""
    app.query_params.clear()
    for name, value in query.items():
        app.query_params[name] = value
    return app.switch_page(str(process.pages_folder() / page)).run()


def address(app: AppTest) -> dict[str, list[str]]:
    return {
        name: [value] if isinstance(value, str) else list(value)
        for name, value in app.query_params.items()
    }


@pytest.mark.parametrize("left", [{}, {links.ID: str(uuid4())}])
def test_a_page_comes_back_with_its_filters(look: Open, left: dict[str, str]) -> None:
    dates = ["2026-01-01", "2026-01-05"]
    app = look("usage.py", range="Custom", dates=dates, by="By plan")
    go(app, "spenders.py", who="People")
    go(app, "usage.py", **left)
    assert address(app) == {"range": ["Custom"], "dates": dates, "by": ["By plan"]}
    go(app, "spenders.py", **left)
    assert address(app)["who"] == ["People"]
    assert links.ID not in address(app)


def test_a_link_wins_over_what_was_kept(look: Open) -> None:
    app = look("usage.py", by="By plan")
    go(app, "health.py")
    go(app, "usage.py", by="By organization")
    assert address(app) == {"by": ["By organization"]}


@pytest.mark.parametrize(
    ("path", "leads"),
    [("/overview", "./"), ("/overview?range=7d", "./?range=7d"), ("/tokens", "./")],
)
def test_start_pages_answer_under_their_names(path: str, leads: str) -> None:
    client = TestClient(Starlette(routes=links.start_pages()), follow_redirects=False)
    answer = client.get(path)
    assert (answer.status_code, answer.headers["location"]) == (307, leads)


def test_tables_offer_no_download_of_their_own() -> None:
    settings = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    assert settings["client"]["disableDataExport"] is True


def test_days_of_ones_own_stand_in_the_address(look: Open, kept_tokens: Tokens) -> None:
    app = look("usage.py", range="Custom")
    today = Reports(kept_tokens.database, None).now().astimezone(ZoneInfo("Europe/Rome")).date()
    week = [(today - timedelta(days=6)).isoformat(), today.isoformat()]
    assert address(app) == {"range": ["Custom"], "dates": week}
