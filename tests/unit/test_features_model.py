"""The OpenAI-compatible client against a real HTTP server on loopback, well and badly behaved."""

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tokenlib.features.model import Completion, ModelError, OpenAIModel
from tokenlib.features.quests import QuestRequest, generate

KEY = "sample-key"

Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Notes each request and answers with the next prepared reply, the last one again and again."""

    server: "Endpoint"

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


def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a proxy that the machine may have out of the way."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    direct(monkeypatch)
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.stopped.set()
        server.shutdown()
        thread.join()


def ask(endpoint: Endpoint, *replies: Reply, timeout: float = 20) -> Completion:
    endpoint.replies[:] = replies
    return OpenAIModel(endpoint.url, KEY, "sample-model").complete("Say hello", timeout=timeout)


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


def test_an_answer_with_its_units(endpoint: Endpoint) -> None:
    assert ask(endpoint, says(200, answer())) == Completion("Hello", 12, 3)
    ((path, authorization, body),) = endpoint.requests
    assert (path, authorization) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert body == {
        "model": "sample-model",
        "messages": [{"role": "user", "content": "Say hello"}],
        "max_completion_tokens": 2_000,
    }


@pytest.mark.parametrize("usage", [None, {}])
def test_units_that_the_endpoint_does_not_state_are_zero(endpoint: Endpoint, usage: Any) -> None:
    assert ask(endpoint, says(200, answer(usage=usage))) == Completion("Hello", 0, 0)


def test_it_also_works_where_an_event_loop_runs(endpoint: Endpoint) -> None:
    async def within() -> Completion:
        return ask(endpoint, says(200, answer()))

    assert asyncio.run(within()).text == "Hello"


@pytest.mark.parametrize("status", [400, 422])
def test_an_endpoint_that_knows_only_the_older_limit(endpoint: Endpoint, status: int) -> None:
    refusal = {"error": {"message": "Extra inputs are not permitted: max_completion_tokens"}}
    assert ask(endpoint, says(status, refusal), says(200, answer())).text == "Hello"
    assert [body.get("max_tokens") for _, _, body in endpoint.requests] == [None, 2_000]
    assert "max_completion_tokens" not in endpoint.requests[1][2]


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503])
def test_an_error_status_is_reported_and_not_retried(endpoint: Endpoint, status: int) -> None:
    with pytest.raises(ModelError, match=f"HTTP status {status}") as caught:
        ask(endpoint, says(status, {"error": {"message": f"private detail, {KEY}"}}))
    assert caught.value.reason == "unavailable"
    assert "private" not in str(caught.value)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"choices": [',
        b"\xff\xfe\xfd",
        b"[" * 100_000,
        b"null",
        b"[]",
        {},
        {"choices": []},
        {"choices": {}},
        {"choices": [None]},
        {"choices": [{"message": None}]},
        answer(None),
        answer(""),
        answer(" \n"),
        answer(["Hello"]),
        answer(usage="many"),
        answer(usage={"prompt_tokens": -1}),
        answer(usage={"completion_tokens": 1.5}),
        answer(usage={"completion_tokens": 10**12}),
        answer("x" * 1_000_000),
    ],
    ids=lambda body: (body if isinstance(body, bytes) else json.dumps(body).encode())[:60].decode(
        errors="replace"
    ),
)
def test_a_broken_answer(endpoint: Endpoint, body: Any) -> None:
    with pytest.raises(ModelError) as caught:
        ask(endpoint, says(200, body))
    assert caught.value.reason == "broken_answer"


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"finish_reason": "length"}, "broken_answer"),
        ({"finish_reason": "content_filter"}, "refusal"),
        ({"message": {"content": None, "refusal": "No."}}, "refusal"),
    ],
)
def test_an_answer_cut_off_or_refused(
    endpoint: Endpoint, part: dict[str, Any], reason: str
) -> None:
    choice = {**answer()["choices"][0], **part}
    with pytest.raises(ModelError) as caught:
        ask(endpoint, says(200, answer(choices=[choice])))
    assert caught.value.reason == reason


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


@pytest.mark.parametrize("reply", [silent, dripping, dripping_headers])
def test_the_timeout_bounds_the_whole_call(endpoint: Endpoint, reply: Reply) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"within 0\.5 seconds") as caught:
        ask(endpoint, reply, timeout=0.5)
    assert caught.value.reason == "timeout"
    assert time.monotonic() - start < LONG - 2


def test_an_answer_that_breaks_off(endpoint: Endpoint) -> None:
    with pytest.raises(ModelError) as caught:
        ask(endpoint, lambda handler: handler.send(200, b'{"choices":', length=500))
    assert caught.value.reason == "unavailable"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    direct(monkeypatch)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        model = OpenAIModel(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", KEY, "sample-model")
        with pytest.raises(ModelError, match="could not be reached") as caught:
            model.complete("Say hello", timeout=20)
    assert caught.value.reason == "unavailable"


def test_a_quest_line_worded_over_http(endpoint: Endpoint) -> None:
    request = QuestRequest("Grow the sample business", "2026-Q4", 50_000, 80_000, 75, 35)
    own = generate(request)
    steps = [
        {"key": step.key, "title": f"Worded {step.key}", "action_items": ["Begin", "End"]}
        for step in own.steps
    ]
    words = {"title": "A worded line", "description": "Worded.", "steps": steps}
    endpoint.replies[:] = [says(200, answer(json.dumps(words)))]
    line = generate(request, OpenAIModel(endpoint.url, KEY, "sample-model"))
    assert (line.title, line.steps[0].title) == ("A worded line", "Worded build_base")
    assert (line.figures, line.output_units) == (own.figures, 3)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ModelError, match=r"tokenlib-ai\[llm\]") as caught:
        OpenAIModel("http://localhost:1/v1", KEY, "sample-model")
    assert caught.value.reason == "not_installed"


@pytest.mark.parametrize(
    ("base_url", "key", "name", "field"),
    [
        ("localhost:8000", KEY, "m", "base_url"),
        ("ftp://localhost/v1", KEY, "m", "base_url"),
        ("http://", KEY, "m", "base_url"),
        ("http://localhost:99999/v1", KEY, "m", "base_url"),
        ("http://localhost/v1", "", "m", "api_key"),
        ("http://localhost/v1", "line\nbreak", "m", "api_key"),
        ("http://localhost/v1", "k\u00e9y", "m", "api_key"),
        ("http://localhost/v1", KEY, "", "model"),
    ],
)
def test_a_bad_setting_is_named(base_url: str, key: str, name: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} must") as caught:
        OpenAIModel(base_url, key, name)
    assert "line" not in str(caught.value)


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(OpenAIModel("http://localhost:1/v1", KEY, "sample-model"))
