"""The library's errors over HTTP, and what is not even sent."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, get_type_hints
from uuid import UUID, uuid4

import pytest

from tests.api.flaky import Flaky
from tokenlib import Client, errors
from tokenlib.api.errors import CODES, _camel, _data, problem
from tokenlib.client import wire
from tokenlib.domain import Usage
from tokenlib.errors import (
    AlreadyRefunded,
    DatabaseUnavailable,
    FeatureNotInPlan,
    IdempotencyConflict,
    InsufficientTokens,
    InvalidInput,
    NotAMember,
    NotFound,
    TokenlibError,
    UnknownFeature,
)
from tokenlib.tokens import Tokens


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
    hints = get_type_hints(kind.__init__)
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
