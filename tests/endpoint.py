"""An OpenAI-compatible endpoint on loopback that does what a test says, well or badly behaved."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Notes each request and answers with the next prepared reply, the last one again and again."""

    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        replies = self.server.replies
        (replies.pop(0) if len(replies) > 1 else replies[0])(self)

    def send(self, status: int, body: bytes, length: int | None = None) -> None:
        """One whole response, unless `length` promises more than there is."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it overrides
        """Nothing: the tests read `requests`."""


class Endpoint(ThreadingHTTPServer):
    """A chat endpoint that does what `replies` say; `stopped` ends those that still go on."""

    # Joined at the end, so that no handler outlives its test.
    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Reply] = []
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is what some tests are about; anything else is a fault."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving() -> Iterator[Endpoint]:
    """An endpoint that listens until the block ends."""
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()


def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a proxy that the machine may have out of the way."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


def says(status: int, body: Any) -> Reply:
    """A reply with this body: bytes as they are, anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda handler: handler.send(status, content)


def answer(content: Any = "Hello", **other: Any) -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage, **other}


LONG = 8.0
"""Seconds that the replies below take if nobody gives up: a client without deadline fails by it."""


def drip(handler: Handler, byte: bytes) -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end and not handler.server.stopped.wait(0.02):
        handler.wfile.write(byte)


def silent(handler: Handler) -> None:
    """Takes the request and does not answer."""
    handler.server.stopped.wait(LONG)


def dripping(handler: Handler) -> None:
    """Starts to answer at once, and goes on a space at a time."""
    handler.send(200, b"", length=1_000_000)
    drip(handler, b" ")


def dripping_headers(handler: Handler) -> None:
    """The same before the answer begins."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Wait: ")
    drip(handler, b".")
