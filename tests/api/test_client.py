"""`tokenlib.Client`: the library's verbs, errors and `spend`, over a socket that also breaks."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints
from uuid import UUID, uuid4

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import tokenlib
from tests.api.callers import PEPPER, SETTINGS
from tests.api.flaky import CUT, DROP, HANG, Act, Flaky, Said, flaky
from tests.api.test_wire import serving
from tokenlib import Client, errors
from tokenlib.aio import AsyncTokens
from tokenlib.api import create_app
from tokenlib.api.errors import CODES, _camel, _data, problem
from tokenlib.client import wire
from tokenlib.config import Settings
from tokenlib.domain import Scope, Usage
from tokenlib.errors import (
    AlreadyRefunded,
    AlreadySpent,
    ConfigurationError,
    DatabaseUnavailable,
    FeatureNotInPlan,
    IdempotencyConflict,
    InProgress,
    InsufficientTokens,
    InvalidInput,
    LoginRefused,
    NotAMember,
    NotFound,
    OrganizationPaused,
    PermissionDenied,
    RateLimited,
    ReservationOver,
    TokenlibError,
    UnknownFeature,
)
from tokenlib.testing import TestClock
from tokenlib.tokens import Tokens

if TYPE_CHECKING:
    from tests.api.conftest import Books

HTML = Said(200, b"<html>Welcome</html>", "text/html")
BUSY = Said(503, headers={"Retry-After": "1"})
# What the API decides by the key; the client has no say.
BY_THE_KEY = {"limits", "actor"}


@pytest.fixture
def way(tokens: Tokens, tmp_path: Path) -> Iterator[Flaky]:
    """The API, and the way to it."""
    tokens.pepper = PEPPER
    app = create_app(lambda: tokens, Settings(data_dir=tmp_path, **SETTINGS))
    with serving(Starlette(routes=[Mount("/api", app=app)])) as port, flaky(port) as server:
        yield server


@pytest.fixture
def secret(tokens: Tokens, staff: Callable[[str], UUID]) -> str:
    scopes: list[Scope] = ["check", "spend", "read", "admin"]
    tokens.pepper = PEPPER
    made = tokens.staff_create_key(staff("admin"), "The client", scopes, reason="a test")
    return str(made.secret)


@pytest.fixture
def client(way: Flaky, secret: str) -> Iterator[Client]:
    with Client(way.url, secret) as client:
        yield client


@pytest.fixture
def org(tokens: Tokens) -> UUID:
    return tokens.create_organization("Acme", "pro")


@pytest.fixture
def user(tokens: Tokens, org: UUID) -> UUID:
    return tokens.add_member(org, "A member", "member@example.org")


def left(tokens: Tokens, org: UUID) -> tuple[int, int]:
    wallet = tokens.get_token_balance(org, "goal_generation")
    return wallet.balance, wallet.reserved


# The same as the library -------------------------------------------------------------------------


def verbs(kind: type) -> dict[str, Any]:
    return {
        name: verb
        for name, verb in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_verb_has_the_library_s_signature() -> None:
    ours = verbs(Client)
    assert {"can_use", "deduct_tokens", "reserve", "deduct", "release", "spend"} <= set(ours)
    assert {"refund", "grant", "get_token_stats", "catalog", "charged"} <= set(ours)
    for name, verb in ours.items():
        theirs = inspect.signature(getattr(Tokens, name), eval_str=True)
        parameters = [each for each in theirs.parameters.values() if each.name not in BY_THE_KEY]
        mine = inspect.signature(verb, eval_str=True)
        assert list(mine.parameters.values()) == parameters, name
        assert mine.return_annotation == theirs.return_annotation, name


def test_answers_are_those_of_the_library(
    client: Client, tokens: Tokens, org: UUID, user: UUID
) -> None:
    assert client.catalog() == tokens.catalog()
    assert client.can_use(org, user, "generate_goal") == tokens.can_use(org, user, "generate_goal")
    assert client.can_use(org, user, "generate_goal", 9).rule == "insufficient_tokens"
    charged = client.deduct_tokens(str(org), user, "generate_goal", 2, {"n": 1}, "quest 1")
    first = tokens.deduct_tokens(org, user, "generate_goal", 2, {"n": 1}, "quest 1")
    again = client.deduct_tokens(org, user, "generate_goal", 2, {"n": 1}, "quest 1")
    assert not charged.replayed
    assert again == first
    assert client.get_token_balance(org, "goal_generation") == tokens.get_token_balance(
        org, "goal_generation"
    )
    assert client.get_all_token_balances(org) == tokens.get_all_token_balances(org)
    assert client.get_token_stats(org) == tokens.get_token_stats(org)
    back = client.refund(charged, "it was empty", idempotency_key="refund 1")
    assert (back.id, back.user_id, back.tokens_deducted) == (charged.id, user, 6)
    again = client.refund(charged, "it was empty", idempotency_key="refund 1")
    assert again.replayed
    assert again.remaining_balance == back.remaining_balance == 20
    held = client.reserve(org, user, "generate_goal", 3, hold_for=timedelta(hours=1))
    assert (held.units, held.tokens, held.user_id) == (3, 9, user)
    assert held.expires_at - datetime.now(UTC) > timedelta(minutes=50)
    assert client.deduct(held, 1).tokens_deducted == 3
    given = client.grant(org, "general", 10, reason="Goodwill", idempotency_key="gift 1")
    assert (given.amount, given.balance, given.kind, given.replayed) == (10, 60, "gift", False)
    assert client.grant(org, "general", 10, reason="Goodwill", idempotency_key="gift 1").replayed
    assert client.upgrade_tokens(org, "shared", 500).kind == "purchase"
    assert tokens.verify().closed


def test_staff_verbs(client: Client, tokens: Tokens, org: UUID, user: UUID) -> None:
    client.change_plan(org, "enterprise", reason="Invoice 7")
    assert left(tokens, org) == (200, 0)
    client.set_mode("log_only", org, until=datetime(2099, 1, 1, tzinfo=UTC), reason="A launch")
    assert tokens.switch_state().settings[0].mode == "log_only"
    client.set_mode("enforce", org, reason="Over")
    client.pause_user(org, user, reason="A script")
    with pytest.raises(errors.UserPaused) as paused:
        client.deduct_tokens(org, user, "generate_goal")
    assert paused.value.user_id == user
    client.set_status(org, "suspended", reason="Asked for")
    with pytest.raises(OrganizationPaused) as suspended:
        client.deduct_tokens(org, user, "generate_goal")
    assert suspended.value.organization_id == org


# Errors ------------------------------------------------------------------------------------------


def example(hint: Any) -> Any:
    """A value of a constructor's type."""
    text = str(hint)
    if "Usage" in text:
        now = datetime(2026, 4, 1, tzinfo=UTC)
        return Usage(uuid4(), uuid4(), uuid4(), "generate_goal", "goal_generation", 3, 0, 17, now)
    for word, value in {
        "UUID": uuid4(),
        "datetime": datetime(2026, 4, 1, tzinfo=UTC),
        "Iterable": ("generate_goal", "generate_leads"),
        "int": 7,
        "float": 2.5,
    }.items():
        if word in text:
            return value
    return "not_charged" if "Literal" in text else "a text"


TREE = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, TokenlibError)
    and kind.code in CODES
    and kind.__init__ is not TokenlibError.__init__
    and kind not in (InvalidInput, NotFound, DatabaseUnavailable)
]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.code)
def test_every_error_comes_back_as_it_was(kind: type[TokenlibError]) -> None:
    """With the same words, data and attributes, however many errors there will be."""
    hints = get_type_hints(kind.__init__, vars(errors))
    names = list(inspect.signature(kind.__init__).parameters)[1:]
    thrown = kind(**{name: example(hints[name]) for name in names})
    # What the API leaves out, since the caller has said it.
    asked = {
        name: str(getattr(thrown, name))
        for name in ("organization_id", "user_id", "idempotency_key")
        if hasattr(thrown, name)
    }
    told = json.loads(
        bytes(problem(kind.status, kind.code, thrown.message, **_data(thrown.data)).body)
    )
    caught = wire.error(told, kind.status, asked)
    assert type(caught) is kind
    assert str(caught) == str(thrown)
    assert caught.data == thrown.data
    assert vars(caught) == vars(thrown)
    assert _camel({"a_b": {"c_d": 1}}) == {"aB": {"cD": 1}}


def test_every_code_of_the_api_is_one_of_our_errors() -> None:
    for code, (status, detail) in CODES.items():
        caught = wire.error({"code": code, "detail": detail}, status, {})
        assert isinstance(caught, TokenlibError)
        assert detail in str(caught) or status == 401, code
        if status in (400, 401, 402, 403, 404, 409, 422, 429) and code != "in_flight":
            assert type(caught) is not TokenlibError or code == "invalid_request", code


def test_refusals_carry_what_a_person_needs(
    client: Client, tokens: Tokens, org: UUID, user: UUID
) -> None:
    with pytest.raises(InsufficientTokens) as poor:
        client.deduct_tokens(org, user, "generate_goal", 7)
    with pytest.raises(InsufficientTokens) as same:
        tokens.deduct_tokens(org, user, "generate_goal", 7)
    assert (poor.value.needed, poor.value.available) == (21, 20)
    assert str(poor.value) == str(same.value)
    assert vars(poor.value) == vars(same.value)
    with pytest.raises(UnknownFeature) as unknown:
        client.deduct_tokens(org, user, "generate_gaol")
    assert unknown.value.feature == "generate_gaol"
    assert "generate_goal" in unknown.value.known
    with pytest.raises(NotAMember) as stranger:
        client.deduct_tokens(org, who := uuid4(), "generate_goal")
    assert (stranger.value.organization_id, stranger.value.user_id) == (org, who)
    with pytest.raises(NotFound):
        client.deduct_tokens(uuid4(), user, "generate_goal")
    small = tokens.create_organization("Small", "starter")
    with pytest.raises(FeatureNotInPlan) as starter:
        client.deduct_tokens(small, tokens.add_member(small, "A", "a@example.org"), "generate_goal")
    assert (starter.value.plan, starter.value.feature) == ("starter", "generate_goal")
    usage = client.deduct_tokens(org, user, "generate_goal", idempotency_key="k")
    with pytest.raises(IdempotencyConflict) as conflict:
        client.deduct_tokens(org, user, "generate_goal", 2, idempotency_key="k")
    assert conflict.value.idempotency_key == "k"
    client.refund(usage, "empty")
    with pytest.raises(AlreadyRefunded) as refunded:
        client.refund(usage.id, "empty", organization=org)
    assert refunded.value.usage_id == usage.id


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda c, _, u: c.deduct_tokens("no id", u, "generate_goal"), "organization"),
        (lambda c, o, u: c.deduct_tokens(o, u, "generate_goal", 0), "units"),
        (lambda c, o, u: c.deduct_tokens(o, u, "generate_goal", 1, {"a": object()}), "metadata"),
        (lambda c, o, u: c.deduct_tokens(o, u, "x", idempotency_key="ü"), "idempotency_key"),
        (lambda c, o, u: c.deduct_tokens(o, u, "x", idempotency_key="a\r\nb"), "idempotency_key"),
        (lambda c, o, u: c.reserve(o, u, "x", hold_for=timedelta(seconds=0.5)), "hold_for"),
        (lambda c, o, _: c.deduct(o), "reservation"),
        (lambda c, o, _: c.grant(o, "general", 1), "reason"),
        (lambda c, *_: c.refund(uuid4(), "empty"), "organization"),
    ],
)
def test_what_no_rule_accepts_is_not_sent(
    client: Client, way: Flaky, call: Callable[[Client, UUID, UUID], object], field: str
) -> None:
    with pytest.raises(InvalidInput) as wrong:
        call(client, uuid4(), uuid4())
    assert wrong.value.field == field
    assert way.asked == []


# spend -------------------------------------------------------------------------------------------


def test_spend_charges_once_and_releases_on_an_exception(
    client: Client, way: Flaky, tokens: Tokens, org: UUID, user: UUID
) -> None:
    with client.spend(org, user, "generate_goal") as held:
        assert left(tokens, org) == (17, 3)
        assert held.tokens == 3
    assert left(tokens, org) == (17, 0)
    with pytest.raises(ZeroDivisionError), client.spend(org, user, "generate_goal"):
        _ = 1 / 0
    assert left(tokens, org) == (17, 0)
    with client.spend(org, user, "generate_goal", 2) as held:
        client.deduct(held, 1)
    with client.spend(org, user, "generate_goal") as held:
        client.release(held)
    assert left(tokens, org) == (14, 0)


def test_a_body_that_outlives_its_hold_charges_nothing(
    client: Client, tokens: Tokens, org: UUID, user: UUID, token_clock: TestClock
) -> None:
    with pytest.raises(ReservationOver) as over, client.spend(org, user, "generate_goal") as held:
        token_clock.advance(timedelta(minutes=11))
    assert (over.value.state, over.value.reservation_id) == ("expired", held.id)
    assert left(tokens, org) == (20, 0)


def test_a_key_that_was_charged_runs_no_body(
    client: Client, tokens: Tokens, org: UUID, user: UUID
) -> None:
    with client.spend(org, user, "generate_goal", idempotency_key="quest 1"):
        with pytest.raises(InProgress) as live:
            client.reserve(org, user, "generate_goal", idempotency_key="quest 1")
        assert live.value.expires_at is not None
    with (
        pytest.raises(AlreadySpent) as spent,
        client.spend(org, user, "generate_goal", idempotency_key="quest 1"),
    ):
        pytest.fail("the AI call ran twice for one charge")
    assert spent.value.usage.tokens_deducted == 3
    assert spent.value.usage.user_id == user
    # A release frees the key.
    held = client.reserve(org, user, "generate_goal", idempotency_key="quest 2")
    client.release(held)
    assert client.reserve(org, user, "generate_goal", idempotency_key="quest 2").id != held.id
    assert left(tokens, org) == (14, 3)


def test_a_function_is_charged_on_each_side(
    client: Client, tokens: Tokens, org: UUID, user: UUID
) -> None:
    for number, gate in enumerate((client, tokens), 1):

        @gate.charged("generate_goal", organization="tenant")
        def quest(tenant: UUID, user: UUID, goal: str = "grow") -> str:
            """Make a quest."""
            if goal == "fail":
                raise ZeroDivisionError
            return f"to {goal}"

        @gate.charged("generate_insight")
        async def insight(organization: UUID, *, user: UUID) -> str:
            return "so"

        assert quest(org, user) == "to grow"
        assert (quest.__name__, quest.__doc__) == ("quest", "Make a quest.")
        with pytest.raises(ZeroDivisionError):
            quest(org, user=user, goal="fail")
        assert left(tokens, org) == (20 - 3 * number, 0)
        assert asyncio.run(insight(org, user=user)) == "so"
        assert tokens.get_token_balance(org, "general").balance == 50 - number
        with pytest.raises(InvalidInput, match="user"):
            gate.charged("generate_goal")(lambda organization: organization)


# It breaks ---------------------------------------------------------------------------------------


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
            503, b'{"code": "busy", "detail": "Busy.", "outcome": "not_charged"}'
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


# Awaited -----------------------------------------------------------------------------------------


def test_each_verb_can_be_awaited(
    client: Client, way: Flaky, tokens: Tokens, org: UUID, user: UUID
) -> None:
    async def program() -> None:
        assert isinstance(client.aio, AsyncTokens)
        async with client.aio.spend(org, user, "generate_goal"):
            assert (await client.aio.get_token_balance(org, "goal_generation")).reserved == 3
        with pytest.raises(ZeroDivisionError):
            async with client.aio.spend(org, user, "generate_goal"):
                _ = 1 / 0
        charges = [client.aio.deduct_tokens(org, user, "generate_insight") for _ in range(8)]
        assert len({usage.id for usage in await asyncio.gather(*charges)}) == 8

    asyncio.run(program())
    assert left(tokens, org) == (17, 0)
    assert tokens.get_token_balance(org, "general").balance == 42


# Keys and addresses ------------------------------------------------------------------------------


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
