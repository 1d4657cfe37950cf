"""The API on a real server and a real socket: paths, methods, sizes, headers."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.api.callers import SETTINGS
from tokenlib.api import create_app
from tokenlib.config import Settings
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Member

CHECK_BALANCE = "/api/v1/tokens/check-balance"
LIMIT = 65_536


class Served(uvicorn.Server):
    """uvicorn in a thread, which says when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def serving(app: Starlette) -> Iterator[int]:
    """Serve on a free port of the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Served(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert server.ready.wait(30)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture
def port(tokens: Tokens, tmp_path: Path) -> Iterator[int]:
    app = create_app(lambda: tokens, Settings(data_dir=tmp_path, **SETTINGS))
    with serving(Starlette(routes=[Mount("/api", app=app)])) as number:
        yield number


@pytest.fixture
def http(port: int) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client


def test_a_charge_over_the_wire(http: httpx2.Client, member: Member) -> None:
    answer = http.post(CHECK_BALANCE, json=member.body(action="deduct"), headers=member.signed())
    assert answer.json() == {
        "success": True,
        "remainingBalance": 17,
        "message": "Used 3 tokens for generate_goal",
    }
    assert answer.headers["content-type"] == "application/json"


def test_one_key_from_many_callers_charges_once(
    http: httpx2.Client, member: Member, tokens: Tokens
) -> None:
    headers = member.signed() | {"Idempotency-Key": "quest 1"}
    body = member.body(action="deduct")

    def ask(_: int) -> tuple[int, str]:
        answer = http.post(CHECK_BALANCE, json=body, headers=headers)
        return answer.status_code, answer.json()["message"]

    with ThreadPoolExecutor(16) as callers:
        answers = set(callers.map(ask, range(48)))
    assert answers == {(200, "Used 3 tokens for generate_goal")}
    assert tokens.get_token_balance(member.organization, "goal_generation").balance == 17


def test_unknown_paths_and_methods_are_told(http: httpx2.Client) -> None:
    for path in (
        "/api/",
        "/api/v1",
        "/api/v1/tokens/check-balance/",
        "/api/v1/tokens/nothing",
        "/api/docs",
        "/api/openapi.json",
        "/api/redoc",
        "/api/..%2f..%2fetc",
    ):
        for method in ("GET", "POST"):
            answer = http.request(method, path)
            assert answer.status_code == 404, path
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] == "no_such_path", path
    answer = http.request("DELETE", "/api/v1/catalog")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert answer.json()["code"] == "method_not_allowed"
    # The two old endpoints keep their own form.
    for method, path, allowed in (
        ("GET", CHECK_BALANCE, "POST"),
        ("DELETE", CHECK_BALANCE, "POST"),
        ("OPTIONS", CHECK_BALANCE, "POST"),
        ("POST", "/api/v1/tokens/stats", "GET"),
    ):
        answer = http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert answer.json() == {"error": "This method is not allowed here."}


def test_answers_are_private(http: httpx2.Client, member: Member) -> None:
    for answer in (
        http.post(CHECK_BALANCE, json=member.body(), headers=member.signed()),
        http.post(CHECK_BALANCE),
        http.get("/api/nothing"),
    ):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "access-control-allow-origin" not in answer.headers


def test_a_body_has_a_bound(http: httpx2.Client, member: Member) -> None:
    def padded(size: int) -> bytes:
        body = f'{{"organizationId":"{member.organization}","featureUsed":"generate_goal"}}'
        return body.encode().ljust(size)

    def in_pieces(size: int) -> Iterator[bytes]:
        body = padded(size)
        yield from (body[start : start + 1000] for start in range(0, size, 1000))

    headers = member.signed()
    for content in (padded(LIMIT), in_pieces(LIMIT)):
        answer = http.post(CHECK_BALANCE, content=content, headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"hasTokens": True})
    for content in (padded(LIMIT + 1), in_pieces(LIMIT + 1)):
        answer = http.post(CHECK_BALANCE, content=content, headers=headers)
        assert answer.status_code == 413
        assert answer.json() == {"error": "The body must be at most 65536 bytes."}


def test_a_caller_who_leaves_is_no_failure(
    port: int, member: Member, caplog: pytest.LogCaptureFixture
) -> None:
    [(name, value)] = member.signed().items()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as caller:
        caller.sendall(
            f"POST {CHECK_BALANCE} HTTP/1.1\r\nHost: localhost\r\n{name}: {value}\r\n"
            "Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        # The server asks for the body once it knows who calls; then nobody sends it.
        assert caller.recv(1000).startswith(b"HTTP/1.1 100")
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/api/nothing").status_code == 404
    assert [entry for entry in caplog.records if entry.levelno >= logging.ERROR] == []
