"""A real HTTP server on loopback: passes on to another, or does otherwise, as a rule says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

PASS: Literal["pass"] = "pass"
CUT: Literal["cut"] = "cut"  # before the server has it
DROP: Literal["drop"] = "drop"  # after the server has done it, before the caller knows
HANG: Literal["hang"] = "hang"  # nothing is said until the test ends


@dataclass(frozen=True)
class Said:
    """An answer that the server behind it knows nothing of."""

    status: int
    body: bytes = b""
    content_type: str = "application/problem+json"
    headers: dict[str, str] = field(default_factory=dict)


Act = Said | Literal["pass", "cut", "drop", "hang"]


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    key: str | None
    body: bytes
    headers: dict[str, str]


class Flaky(ThreadingHTTPServer):
    """`rule` is asked for each request; `asked` has them all."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.rule: Callable[[Asked], Act] = lambda _asked: PASS
        self.asked: list[Asked] = []
        self.broken = 0
        self.over = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def then(self, *acts: Act) -> None:
        """Do these, one per request, and pass on from there."""
        left = list(acts)
        self.rule = lambda _asked: left.pop(0) if left else PASS

    def handle_error(self, request: object, client_address: object) -> None:
        """A caller that went away is nobody's failure."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Flaky

    def do_GET(self) -> None:
        self._do()

    def do_POST(self) -> None:
        self._do()

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, said.get("idempotency-key"), body, said)
        self.server.asked.append(asked)
        act = self.server.rule(asked)
        if isinstance(act, Said):
            self._say(act.status, act.body, {"Content-Type": act.content_type} | act.headers)
            return
        if act in (CUT, HANG):
            if act == HANG:
                self.server.over.wait(60)
            self._end()
            return
        upstream = HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        try:
            upstream.request(self.command, self.path, body or None, said)
            reply = upstream.getresponse()
            content = reply.read()
        except (OSError, HTTPException):
            self._end()
            return
        finally:
            upstream.close()
        if act == DROP:
            self._end()
        else:
            headers = dict(reply.getheaders())
            for name in ("content-length", "date", "server", "connection", "transfer-encoding"):
                headers = {each: text for each, text in headers.items() if each.lower() != name}
            self._say(reply.status, content, headers)

    def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _end(self) -> None:
        self.server.broken += 1
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name
        """Say nothing."""


@contextmanager
def flaky(upstream: int) -> Iterator[Flaky]:
    """Serve in a thread."""
    with Flaky(upstream) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join(30)
