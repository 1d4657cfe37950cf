"""Around every request: ids, log lines without secrets, bounds, and a no that comes quickly."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.api.callers import SETTINGS, claims, unsigned
from tests.api.test_wire import serving
from tokenlib.api import create_app
from tokenlib.api.arrival import WITH_HEAD_SECONDS
from tokenlib.api.guard import Guard
from tokenlib.config import Settings
from tokenlib.db import Database
from tokenlib.keys import new_secret
from tokenlib.testing import TestDatabase
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Api, Serve, World

PROMPT = "a prompt of a customer, which is nobody else's business"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [
        json.loads(record.getMessage())
        for record in caplog.records
        if record.name == "tokenlib.api" and record.levelno == logging.INFO
    ]


def test_a_request_has_an_id_and_a_line(
    api: Api, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tokenlib.api")
    given = api.client.get(
        "/api/v1/catalog", headers=world.member | {"X-Request-Id": "their-own.id_1"}
    )
    assert given.headers["x-request-id"] == "their-own.id_1"
    path = f"{world.path}/balances"
    made = [api.get(path, world.keys["read"]).headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2
    for bad in ("", "a b", "x" * 129, 'quote"', "über"):
        answer = api.client.get(
            "/api/v1/health", headers=[(b"x-request-id", bad.encode("latin-1"))]
        )
        assert answer.headers["x-request-id"] != bad
        assert len(answer.headers["x-request-id"]) == 32
    wrong = api.get("/nothing", {})
    assert wrong.json()["requestId"] == wrong.headers["x-request-id"]
    first, second, third, *_, last = lines(caplog)
    assert (
        first.items()
        >= {
            "event": "request",
            "requestId": "their-own.id_1",
            "method": "GET",
            "route": "/v1/catalog",
            "status": 200,
            "caller": f"person {world.user}",
        }.items()
    )
    assert first["milliseconds"] > 0
    for line, name in ((second, made[0]), (third, made[1])):
        assert line["requestId"] == name
        assert line["route"] == "/v1/organizations/{organizationId}/balances"
        assert line["caller"] == f"key {world.key_ids['read']}"
    assert (last["status"], last["caller"]) == (404, None)
    assert "nothing" not in json.dumps(last)


def test_no_secret_and_no_prompt_is_written_or_told(
    api: Api, world: World, serve: Serve, caplog: pytest.LogCaptureFixture, tokens: Tokens
) -> None:
    caplog.set_level(logging.DEBUG)
    path = f"{world.path}/charges"
    good = {"feature": "generate_goal", "metadata": {"prompt": PROMPT}}
    credentials = [
        *world.keys.values(),
        world.member,
        world.staff["admin"],
        {"Authorization": f"Bearer {new_secret()}"},
        {"Authorization": f"Bearer {unsigned(claims(sub=str(world.user)), 'none')}"},
    ]
    bodies: list[dict[str, Any]] = [
        good | {"userId": str(world.user)},
        good | {"units": PROMPT},
        good | {"feature": "generate_gaol", "metadata": {"prompt": PROMPT, "deep": [[PROMPT]]}},
        good | {"metadata": PROMPT},
        good | {"userId": str(world.other_user)},
        good | {"units": 100},
    ]
    said = []
    for who in credentials:
        said += [api.post(path, who, **body).text for body in bodies]
        said.append(
            api.client.post(
                f"/api/v1{path}", headers=who | {"Idempotency-Key": "k"}, content=f"{{{PROMPT}"
            ).text
        )
    made = api.post("/keys", world.keys["all"], name="N", scopes=["read"], reason="a test").json()
    # Also when everything breaks.
    nowhere = "postgresql+psycopg://somebody:a-password@/tokenlib?host=/nowhere/at/all"
    with Tokens(Database(nowhere), pepper=SETTINGS["key_pepper"]) as cut_off:
        broken = serve(lambda: cut_off)
        for who in credentials:
            said.append(broken.post(f"/api/v1{path}", headers=who, json=good).text)
    written = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert "a-password" not in "".join(said)
    secrets = [who["Authorization"].removeprefix("Bearer ") for who in credentials]
    for secret in (*secrets, made["secret"], PROMPT, *SETTINGS.values()):
        if secret in (SETTINGS["jwt_issuer"], SETTINGS["jwt_audience"]):
            continue
        assert secret not in written
        assert secret not in "".join(said)


@pytest.fixture
def narrow(tokens: Tokens, tmp_path: Path) -> Iterator[int]:
    """An API with two places, on a real port."""
    tokens.pepper = SETTINGS["key_pepper"]
    app = create_app(lambda: tokens, Settings(data_dir=tmp_path, api_places=2, **SETTINGS))
    with serving(Starlette(routes=[Mount("/api", app=app)])) as port:
        yield port


def test_when_every_place_is_taken_the_no_comes_at_once(
    narrow: int, world: World, token_database: TestDatabase, tokens: Tokens
) -> None:
    base = f"http://127.0.0.1:{narrow}/api/v1"
    statuses: list[int] = []

    def charge(name: str) -> None:
        answer = httpx2.post(
            f"{base}{world.path}/charges",
            headers=world.keys["own"] | {"Idempotency-Key": name},
            json={"feature": "generate_goal", "userId": str(world.user)},
            timeout=60,
        )
        statuses.append(answer.status_code)

    waiting = (
        "select count(*) from pg_stat_activity where datname = %s and wait_event_type = 'Lock'"
    )
    with token_database.connect() as other, token_database.connect("postgres") as watch:
        with other.transaction():
            other.execute("select from ai_tokens for update")
            busy = [threading.Thread(target=charge, args=(name,)) for name in ("a", "b")]
            for thread in busy:
                thread.start()
            deadline = time.monotonic() + 30
            while watch.execute(waiting, (token_database.name,)).fetchone() != (2,):
                assert time.monotonic() < deadline
            began = time.monotonic()
            full = httpx2.get(f"{base}/catalog", headers=world.member, timeout=60)
            elapsed = time.monotonic() - began
            alive = httpx2.get(f"{base}/health", timeout=60)
            ready = httpx2.get(f"{base}/ready", timeout=60)
        for thread in busy:
            thread.join(60)
    assert (full.status_code, full.json()["code"]) == (503, "busy")
    assert full.headers["retry-after"] == "1"
    assert elapsed < 5  # while both places stay taken
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ok"})
    assert statuses == [201, 201]
    again = httpx2.get(f"{base}/catalog", headers=world.member, timeout=60)
    assert again.status_code == 200


def test_who_is_nobody_takes_no_place_with_a_body_that_does_not_come(
    tokens: Tokens, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guard.__init__, "__defaults__", (600.0,))
    app = create_app(lambda: tokens, Settings(data_dir=tmp_path, api_places=2, **SETTINGS))
    head = (
        f"POST /api/v1{world.path}/charges HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {new_secret()}\r\nIdempotency-Key: slow\r\n"
        "Content-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    )
    with (
        serving(Starlette(routes=[Mount("/api", app=app)])) as port,
        ExitStack() as held,
    ):
        callers = [
            held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(2)
        ]
        for caller in callers:
            caller.sendall(head.encode())
        for caller in callers:
            assert caller.recv(10_000).startswith(b"HTTP/1.1 401")
        # A body that is late, from somebody who is known, is waited for.
        body = json.dumps({"feature": "generate_insight", "userId": str(world.user)}).encode()
        head = head.replace("Content-Length: 50", f"Content-Length: {len(body)}")
        for name in ("at once", "late"):
            known = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            said = re.sub("Bearer .*", world.keys["own"]["Authorization"] + "\r", head)
            known.sendall(said.replace("slow", name).encode())
            if name == "late":
                time.sleep(2 * WITH_HEAD_SECONDS)  # right also where it is too short
            known.sendall(body)
            assert known.recv(10_000).startswith(b"HTTP/1.1 201"), name


def test_a_body_that_does_not_come_is_not_waited_for(
    tokens: Tokens, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guard.__init__, "__defaults__", (0.2,))
    app = create_app(lambda: tokens, Settings(data_dir=tmp_path, **SETTINGS))
    with (
        serving(Starlette(routes=[Mount("/api", app=app)])) as port,
        socket.create_connection(("127.0.0.1", port), timeout=30) as caller,
    ):
        caller.sendall(
            f"POST /api/v1{world.path}/charges HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: {world.member['Authorization']}\r\nIdempotency-Key: slow\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        answer = b""
        while piece := caller.recv(10_000):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too_slow" in answer


def test_a_body_that_is_too_large(api: Api, world: World) -> None:
    body: dict[str, Any] = {"feature": "generate_goal", "metadata": {"a": "b" * 70_000}}
    answer = api.post(f"{world.path}/charges", world.member, **body)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    # Who nobody knows is not even listened to.
    assert api.post(f"{world.path}/charges", {}, **body).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"feature"',
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"feature": "\\ud800"}',
        b'{"feature": "generate_goal", "units": NaN}',
        b'{"feature": "generate_goal", "metadata": {"a": NaN}}',
        b'{"feature": "generate_goal", "metadata": {"a": "\\u0000"}}',
        b'{"feature": "generate_goal", "units": 1' + b"0" * 5000 + b"}",
        b"feature=generate_goal",
    ],
    ids=range(13),
)
def test_what_is_no_right_json_is_told(api: Api, world: World, body: bytes) -> None:
    for content_type in ("application/json", "text/plain", None):
        headers = world.member | {"Idempotency-Key": "k"}
        if content_type:
            headers["Content-Type"] = content_type
        answer = api.client.post(f"/api/v1{world.path}/charges", headers=headers, content=body)
        expected = 400 if content_type == "application/json" else 415
        assert answer.status_code == expected, (body[:40], answer.text)
        assert answer.headers["content-type"] == "application/problem+json"


def test_the_page_of_the_description_loads_nothing(api: Api) -> None:
    page = api.client.get("/api/v1/docs")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha")
    for word in ("http://", "https://", "<script", "src=", "<link", "url("):
        assert word not in page.text
    schema = api.client.get("/api/v1/openapi.json").json()
    assert schema["openapi"] == "3.1.0"
    for path in schema["paths"]:
        assert path in page.text.replace("&#x27;", "'")
    for problem in ("insufficient-tokens", "idempotency-conflict"):
        assert f'id="{problem}"' in page.text


def test_ready_and_alive(api: Api, serve: Serve) -> None:
    assert api.client.get("/api/v1/ready").json() == {"status": "ok"}
    with Tokens(Database("postgresql+psycopg://x@/y?host=/nowhere/at/all")) as cut_off:
        broken = serve(lambda: cut_off)
        ready = broken.get("/api/v1/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "unavailable"})
        assert broken.get("/api/v1/health").status_code == 200
        for path in ("/api/v1/catalog", "/api/v1/keys"):
            answer = broken.get(path, headers={"Authorization": f"Bearer {new_secret()}"})
            assert answer.status_code in (401, 503)
