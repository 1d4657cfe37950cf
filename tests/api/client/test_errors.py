"""The library's errors over HTTP, and what is not even sent."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_type_hints
from uuid import UUID, uuid4

import pytest

from tests.api.flaky import Flaky
from tokenlib import Client, errors
from tokenlib.api.errors import CODES, _camel, _data, problem
from tokenlib.client import wire
from tokenlib.domain import Reservation, Usage
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
    UnknownOrganization,
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
        for name in ("organization_id", "user_id", "idempotency_key", "usage_id", "reservation_id")
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
    with pytest.raises(UnknownOrganization) as nowhere:
        client.deduct_tokens(no_org := uuid4(), user, "generate_goal")
    assert nowhere.value.organization_id == no_org
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


HELD = Reservation(
    UUID(int=1), UUID(int=0), UUID(int=2), "generate_goal", "goal_generation", 1, 3, 17,
    datetime(2026, 4, 1, tzinfo=UTC),
)  # fmt: skip
Gate = Client | Tokens
CALLS: dict[str, Callable[[Gate, UUID, UUID], object]] = {
    "balance of an unknown type": lambda c, o, _: c.get_token_balance(o, "gold"),
    "balance of a pack": lambda c, o, _: c.get_token_balance(o, "shared"),
    "balance elsewhere": lambda c, *_: c.get_token_balance(UUID(int=1), "general"),
    "balances elsewhere": lambda c, *_: c.get_all_token_balances(UUID(int=1)),
    "stats elsewhere": lambda c, *_: c.get_token_stats(UUID(int=1)),
    "enough of an unknown feature": lambda c, o, _: c.has_enough_tokens(o, "make_coffee"),
    "enough elsewhere": lambda c, *_: c.has_enough_tokens(UUID(int=1), "generate_goal"),
    "can_use of an unknown feature": lambda c, o, u: c.can_use(o, u, "make_coffee"),
    "can_use elsewhere": lambda c, _, u: c.can_use(UUID(int=1), u, "generate_goal"),
    "can_use of a stranger": lambda c, o, _: c.can_use(o, UUID(int=1), "generate_goal"),
    "charge of an unknown feature": lambda c, o, u: c.deduct_tokens(o, u, "make_coffee"),
    "charge elsewhere": lambda c, _, u: c.deduct_tokens(UUID(int=1), u, "generate_goal"),
    "charge too dear": lambda c, o, u: c.deduct_tokens(o, u, "generate_goal", 9),
    "hold of a stranger": lambda c, o, _: c.reserve(o, UUID(int=1), "generate_goal"),
    "an unknown hold deducted": lambda c, o, _: c.deduct(replace(HELD, organization_id=o)),
    "an unknown hold released": lambda c, o, _: c.release(replace(HELD, organization_id=o)),
    "an unknown charge": lambda c, o, _: c.refund(UUID(int=1), "empty", organization=o),
    "a charge elsewhere": lambda c, *_: c.refund(UUID(int=1), "x", organization=UUID(int=2)),
    "grant of an unknown type": lambda c, o, _: c.grant(o, "gold", 1, reason="a test"),
    "grant elsewhere": lambda c, *_: c.grant(UUID(int=1), "general", 1, reason="a test"),
    "an unknown plan": lambda c, o, _: c.change_plan(o, "gold", reason="a test"),
    "output units": lambda c, o, u: c.deduct_tokens(
        o, u, "generate_goal", metadata={"output_units": "9"}
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_mistake_is_the_same_error(
    client: Client, tokens: Tokens, org: UUID, user: UUID, name: str
) -> None:
    """Of the same kind and about the same thing, with the library and over HTTP."""
    with pytest.raises(TokenlibError) as near:
        CALLS[name](tokens, org, user)
    with pytest.raises(TokenlibError) as far:
        CALLS[name](client, org, user)
    assert type(far.value) is type(near.value)
    assert vars(far.value) | {"message": "", "data": {}} == vars(near.value) | {
        "message": "",
        "data": {},
    }


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
