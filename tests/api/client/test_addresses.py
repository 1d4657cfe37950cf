"""Keys and addresses: what will not do, and that a key is in no text."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

import tokenlib
from tests.api.flaky import Flaky, Said
from tokenlib import Client
from tokenlib.errors import (
    ConfigurationError,
    InvalidInput,
    LoginRefused,
    PermissionDenied,
    TokenlibError,
)
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Books

HTML = Said(200, b"<html>Welcome</html>", "text/html")


@pytest.mark.parametrize(
    "url",
    [
        "http://tokens.example.org",
        "http://127.0.0.1.example.org",
        "ftp://localhost",
        "https://",
        "tokens.example.org",
        "https://somebody:word@tokens.example.org",
        "https://tokens.example.org/?a=1",
        "https://tokens.example.org:port",
        "https://tokens.example.org/\r\nX: 1",
        "",
    ],
)
def test_an_address_that_would_not_do(url: str) -> None:
    with pytest.raises(InvalidInput) as wrong:
        Client(url, "tkl_secret")
    assert wrong.value.field == "base_url"
    assert "word" not in str(wrong.value)


@pytest.mark.parametrize(
    "url", ["https://tokens.example.org/", "http://localhost:8501", "http://[::1]:8501/api/v1"]
)
def test_an_address_that_will_do(url: str) -> None:
    assert repr(Client(url, "tkl_secret")) == f"Client({url.rstrip('/').removesuffix('/api/v1')!r})"


@pytest.mark.parametrize("key", ["", "tkl_a\r\nX-Evil: 1", "tkl_ü", "tkl a", None])
def test_a_key_that_cannot_be_one_is_not_repeated(key: Any) -> None:
    with pytest.raises(InvalidInput) as wrong:
        Client("https://tokens.example.org", key)
    assert wrong.value.field == "api_key"
    assert not key or key not in str(wrong.value)


def test_a_wrong_key_is_told_and_nothing_is_touched(
    way: Flaky, org: UUID, user: UUID, books: Books
) -> None:
    before = books()
    with Client(way.url, "tkl_wrong") as client, pytest.raises(LoginRefused) as refused:
        client.deduct_tokens(org, user, "generate_goal")
    assert "API key" in str(refused.value)
    assert books() == before


def test_a_key_without_the_scope(
    way: Flaky, tokens: Tokens, staff: Callable[[str], UUID], org: UUID, user: UUID
) -> None:
    made = tokens.staff_create_key(staff("admin"), "Reads", ["read"], reason="a test")
    with (
        Client(way.url, str(made.secret)) as client,
        pytest.raises(PermissionDenied, match="spend"),
    ):
        client.deduct_tokens(org, user, "generate_goal")


def test_a_key_is_in_no_text(
    client: Client, way: Flaky, secret: str, org: UUID, user: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts = [repr(client), str(client)]
    for act in (Said(401, b'{"code": "unauthorized", "detail": "No."}'), HTML, Said(302)):
        way.then(act)
        with pytest.raises(TokenlibError) as error:
            client.deduct_tokens(org, user, "generate_goal")
        texts += [str(error.value), repr(error.value), repr(error.value.data)]
    assert way.asked[0].headers["authorization"] == f"Bearer {secret}"
    assert not any(secret in text for text in [*texts, caplog.text])


@pytest.mark.parametrize(
    "act",
    [
        HTML,
        Said(404, b"<html>Not found</html>", "text/html"),
        Said(404, b'{"detail": "Not Found"}', "application/json"),
        Said(404, b'{"code": "not_found", "detail": "Not here."}', "application/json"),
        Said(402, b'{"code": "insufficient_tokens", "detail": "No.", "type": "/else#no"}'),
        Said(302, headers={"Location": "https://elsewhere.example.org/"}),
        Said(200, b"{", "application/json"),
        Said(200, b"[]", "application/json"),
        Said(201, b'{"id": "x"}', "application/json"),
    ],
)
def test_an_answer_that_is_not_the_api_s(
    client: Client, way: Flaky, org: UUID, user: UUID, act: Said
) -> None:
    way.rule = lambda _asked: act
    with pytest.raises(ConfigurationError, match=r"Check base_url|does not understand"):
        client.deduct_tokens(org, user, "generate_goal")
    with pytest.raises(ConfigurationError):
        client.get_token_stats(org)
    assert len(way.asked) == 2


def test_an_address_below_the_api_is_no_unknown_organization(
    way: Flaky, secret: str, org: UUID, user: UUID
) -> None:
    with Client(f"{way.url}/api", secret) as client:
        with pytest.raises(ConfigurationError, match="Check base_url"):
            client.has_enough_tokens(org, "generate_goal")
        with pytest.raises(ConfigurationError, match="Check base_url"):
            client.deduct_tokens(org, user, "generate_goal")


@pytest.mark.parametrize("name", ["../../catalog", "..", ".", "", "a/b", "a b", "a" * 101])
def test_a_name_leads_nowhere_else(client: Client, way: Flaky, org: UUID, name: str) -> None:
    for ask in (client.get_token_balance, client.explain):
        with pytest.raises(InvalidInput) as wrong:
            ask(org, name)
        assert wrong.value.field == "token_type"
    assert way.asked == []


def test_a_client_that_is_closed_says_so(client: Client, org: UUID) -> None:
    client.get_token_stats(org)
    client.close()
    with pytest.raises(ConfigurationError, match="closed"):
        client.get_token_stats(org)


def test_the_import_is_light_and_the_client_is_found() -> None:
    program = (
        "import sys, tokenlib; heavy = {'sqlalchemy', 'http.client', 'ssl', 'httpx'};"
        " assert not heavy & set(sys.modules); tokenlib.Client; tokenlib.Tokens"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert tokenlib.Client is Client
    assert copy.copy(tokenlib.__all__).count("Client") == 1
