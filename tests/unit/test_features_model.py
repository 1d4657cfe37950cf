"""The OpenAI-compatible client against a real HTTP server on loopback, well and badly behaved."""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.endpoint import (
    LONG,
    Endpoint,
    Handler,
    Reply,
    answer,
    direct,
    dripping,
    dripping_headers,
    says,
    serving,
    silent,
)
from tokenlib.features.model import Completion, ModelError, OpenAIModel
from tokenlib.features.quests import QuestRequest, generate

KEY = "sample-key"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    direct(monkeypatch)
    with serving() as server:
        yield server


def ask(endpoint: Endpoint, *replies: Reply, timeout: float = 20) -> Completion:
    endpoint.replies[:] = replies
    return OpenAIModel(endpoint.url, KEY, "sample-model").complete("Say hello", timeout=timeout)


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


@pytest.mark.parametrize("reply", [silent, dripping, dripping_headers])
def test_the_timeout_bounds_the_whole_call(endpoint: Endpoint, reply: Reply) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"within 0\.5 seconds") as caught:
        ask(endpoint, reply, timeout=0.5)
    assert caught.value.reason == "timeout"
    assert time.monotonic() - start < LONG - 2


def test_an_answer_longer_than_it_may_be(endpoint: Endpoint) -> None:
    """The endpoint was told the limit, and does not keep to it."""
    endpoint.replies[:] = [says(200, answer(usage={"completion_tokens": 501}))]
    with pytest.raises(ModelError, match="more than the 500 units") as caught:
        OpenAIModel(endpoint.url, KEY, "m", 500).complete("Say hello", timeout=20)
    assert caught.value.reason == "broken_answer"
    assert endpoint.requests[0][2]["max_completion_tokens"] == 500
    endpoint.replies[:] = [says(200, answer(usage={"completion_tokens": 500}))]
    assert OpenAIModel(endpoint.url, KEY, "m", 500).complete("", timeout=20).output_units == 500


def test_an_answer_without_end_is_not_read_to_its_end(endpoint: Endpoint) -> None:
    sent = 0

    def endless(handler: Handler) -> None:
        nonlocal sent
        handler.send(200, b"", length=10**12)
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            handler.wfile.write(b" " * 65_536)
            sent += 65_536

    start = time.monotonic()
    with pytest.raises(ModelError, match="too large") as caught:
        ask(endpoint, endless)
    assert caught.value.reason == "broken_answer"
    assert time.monotonic() - start < LONG - 2
    assert sent < 50_000_000


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
