"""Where the console has no page, it answers with none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import streamlit as st
from starlette.responses import HTMLResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from tokenlib.console.nowhere import Nowhere

HTML = "<html>The console</html>"


async def console(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers as Streamlit does: with the same page everywhere."""
    await HTMLResponse(HTML)(scope, receive, send)


@pytest.fixture
def base() -> Iterator[str]:
    """A console in a folder."""
    before = st.get_option("server.baseUrlPath")
    st.config.set_option("server.baseUrlPath", "tokens")
    yield "/tokens"
    st.config.set_option("server.baseUrlPath", before)


@pytest.mark.parametrize(
    "path", ["/", "/overview", "/organization?id=7", "/settings/", "/api/v1/docs"]
)
def test_what_is_there_passes(path: str) -> None:
    assert TestClient(Nowhere(console)).get(path).text == HTML


@pytest.mark.parametrize(
    ("path", "start"),
    [("/nothing", "./"), ("/v1/health", "../"), ("/settings/x/y", "../../"), ("/apis", "./")],
)
def test_what_is_not_there_is_a_404_with_the_way_to_the_start(path: str, start: str) -> None:
    client = TestClient(Nowhere(console))
    answer = client.get(path)
    assert answer.status_code == 404
    assert f'href="{start}"' in answer.text
    assert HTML not in answer.text
    assert (client.head(path).status_code, client.head(path).text) == (404, "")


def test_a_console_in_a_folder_has_the_same_pages(base: str) -> None:
    client = TestClient(Nowhere(console))
    for path, status in (("", 200), ("/", 200), ("/usage", 200), ("/nothing", 404), ("x", 404)):
        assert client.get(f"{base}{path}").status_code == status, path
