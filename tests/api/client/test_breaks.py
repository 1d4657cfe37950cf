"""A way that breaks: asked again under the same key, until a deadline."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.api.client.conftest import left
from tests.api.flaky import CUT, DROP, HANG, Act, Flaky, Said
from tokenlib import Client
from tokenlib.errors import (
    DatabaseUnavailable,
    InsufficientTokens,
    RateLimited,
)
from tokenlib.tokens import Tokens

HTML = Said(200, b"<html>Welcome</html>", "text/html")
BUSY = Said(503, headers={"Retry-After": "1"})


def keys(way: Flaky) -> list[str | None]:
    return [asked.key for asked in way.asked]


@pytest.mark.parametrize("acts", [(CUT,), (DROP,), (DROP, CUT, DROP), (BUSY,), (HTML,)])
def test_it_is_asked_again_under_the_same_key(
    client: Client, way: Flaky, tokens: Tokens, org: UUID, user: UUID, acts: tuple[Any, ...]
) -> None:
    acts = tuple(Said(502, b"<html>", "text/html") if act is HTML else act for act in acts)
    way.then(*acts)
    assert client.deduct_tokens(org, user, "generate_goal").remaining_balance == 17
    assert len(way.asked) == len(acts) + 1
    assert len(set(keys(way))) == 1
    assert left(tokens, org) == (17, 0)


def test_a_hold_whose_answer_was_lost_is_found_again(
    client: Client, way: Flaky, tokens: Tokens, org: UUID, user: UUID
) -> None:
    way.then(DROP)
    with client.spend(org, user, "generate_goal", idempotency_key="quest 1"):
        assert left(tokens, org) == (17, 3)
        way.then(DROP, DROP)
    assert left(tokens, org) == (17, 0)
    [hold_key] = set(keys(way)[:2])
    [charge_key] = set(keys(way)[2:])
    assert hold_key == "quest 1" != charge_key


def test_it_waits_as_long_as_it_was_told(client: Client, way: Flaky, org: UUID, user: UUID) -> None:
    way.then(BUSY)
    began = time.monotonic()
    client.deduct_tokens(org, user, "generate_goal")
    assert time.monotonic() - began >= 1


def test_a_limit_that_ends_in_time_is_waited_for(
    way: Flaky, tokens: Tokens, staff: Callable[[str], UUID], org: UUID, user: UUID
) -> None:
    made = tokens.staff_create_key(
        staff("admin"), "Slow", ["spend"], seconds_between_requests=1, reason="a test"
    )
    with Client(way.url, str(made.secret)) as client:
        client.deduct_tokens(org, user, "generate_goal")
        with Client(way.url, str(made.secret), deadline=0.2) as hasty:
            with pytest.raises(RateLimited) as limited:
                hasty.deduct_tokens(org, user, "generate_goal")
            assert limited.value.limit == "key_seconds_between_requests"
            assert limited.value.retry_after is not None
    assert left(tokens, org) == (17, 0)


def test_the_deadline_ends_it_and_says_what_is_known(
    way: Flaky, secret: str, tokens: Tokens, org: UUID, user: UUID
) -> None:
    with Client(way.url, secret, deadline=0.6) as client:
        way.rule = lambda _asked: HANG
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable) as silent:
            client.deduct_tokens(org, user, "generate_goal")
        assert silent.value.outcome == "unknown"
        assert time.monotonic() - began < 10
        way.rule = lambda _asked: Said(
            503,
            b'{"code": "busy", "detail": "Busy.", "type": "/api/v1/docs#busy",'
            b' "outcome": "not_charged"}',
        )
        with pytest.raises(DatabaseUnavailable) as busy:
            client.deduct_tokens(org, user, "generate_goal")
        assert (busy.value.outcome, str(busy.value)) == ("not_charged", "Busy.")
        # A later no says nothing of the first, whose reply was lost.
        busy_again = way.rule
        acts: list[Act] = [DROP]
        way.rule = lambda asked: acts.pop() if acts else busy_again(asked)
        with pytest.raises(DatabaseUnavailable) as unclear:
            client.deduct_tokens(org, user, "generate_goal")
        assert unclear.value.outcome == "unknown"
    assert left(tokens, org) == (17, 0)


def test_a_server_that_is_not_there(secret: str, way: Flaky) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}", secret, deadline=0.3) as client,
        pytest.raises(DatabaseUnavailable) as gone,
    ):
        client.deduct_tokens(uuid4(), uuid4(), "generate_goal")
    assert gone.value.outcome == "not_charged"


def test_a_refusal_is_not_asked_again(client: Client, way: Flaky, org: UUID, user: UUID) -> None:
    with pytest.raises(InsufficientTokens):
        client.deduct_tokens(org, user, "generate_goal", 7)
    assert len(way.asked) == 1


def test_a_release_that_fails_hides_nothing(
    client: Client, way: Flaky, org: UUID, user: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    held = client.reserve(org, user, "generate_goal")
    way.rule = lambda _asked: HTML
    client.release_quietly(held, "a test")
    assert "could not be released" in caplog.text
