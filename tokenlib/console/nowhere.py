"""A page that is not there is a 404.

Streamlit answers for every path that it does not know with the console's HTML and a 200, so that a
caller with a wrong address takes it for an answer.
"""

from __future__ import annotations

import streamlit as st
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenlib.console import process

# Below these, HTML may be what was asked for: the API's page, what a page shows or offers.
_OTHERS = ("api/", "media/", "component/", "_stcore/bidi-components/")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>There is nothing here</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<style>body {{ font: 16px/1.5 system-ui, sans-serif; margin: 20vh auto; max-width: 30rem;
padding: 0 1rem; }} a {{ color: inherit; }}</style></head>
<body><h1>There is nothing here</h1><p>This console has no such page.
<a href="{start}">Go to its start</a></p></body></html>
"""


class Nowhere:
    """ASGI middleware around the console."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        pages = {file.stem for file in process.pages_folder().glob("*.py")}
        self._pages = pages | {"", "index.html"}
        self._base = str(st.get_option("server.baseUrlPath")).strip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, but for the console's HTML where no page is."""
        path = self._below(scope) if scope["type"] == "http" else ""
        if path in self._pages or path.startswith(_OTHERS):
            await self.app(scope, receive, send)
            return
        replaced = False

        async def send_or_replace(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and _is_page(message):
                replaced = True
                # Relative, so that it holds behind a proxy that puts the console in a folder.
                start = "../" * path.count("/") or "./"
                headers = {"Cache-Control": "no-store"}
                await HTMLResponse(_PAGE.format(start=start), 404, headers)(scope, receive, send)
            elif not replaced:
                await send(message)

        await self.app(scope, receive, send_or_replace)

    def _below(self, scope: Scope) -> str:
        """The path in the console, wherever that is."""
        path: str = scope["path"].removeprefix(scope.get("root_path", "")).strip("/")
        if self._base and f"{path}/".startswith(f"{self._base}/"):
            path = path[len(self._base) :].strip("/")
        return path


def _is_page(message: Message) -> bool:
    kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
    return message["status"] < 300 and any(kind.startswith(b"text/html") for kind in kinds)
