"""Each argument of each verb, of another type: InvalidInput names it, and nothing moves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import InvalidInput, Tokens
from tokenlib.domain import Limits

Person = tuple[UUID, UUID]

# Not verbs of the books, or the second half of one; and key_of looks at whatever a stranger shows.
NOT_ASKED = {"carry_out", "close", "key_of", "release_quietly"}
# By word of the annotation: a value of that type, which the argument may be.
SAMPLES: dict[str, Any] = {
    "None": None,
    "int": 7,
    "bool": True,
    "str": "nonsense",
    "UUID": UUID(int=5),
    "datetime": datetime(2026, 1, 1, tzinfo=UTC),
    "timedelta": timedelta(seconds=5),
    "Decimal": Decimal("1.5"),
    "Mapping": {"a": 1},
    "object": object(),
    "bytes": b"bytes",
    "list": ["a list"],
}
# What an annotation's word takes besides itself.
ALIASES = {
    "Id": ("UUID", "str"),
    "Literal": ("str",),
    "Mode": ("str",),
    "OrganizationStatus": ("str",),
    "StaffRole": ("str",),
    "TextIO": tuple(SAMPLES),  # what writes, reads or reports need not be of one type
    "Iterable": ("list", "Mapping"),
    "float": ("float", "int"),
    "Callable": tuple(SAMPLES),
}


def wrong(annotation: str) -> dict[str, Any]:
    """Values of the types that this argument does not take."""
    words = annotation.replace("[", " ").replace("|", " ").replace(",", " ").split()
    taken = {name for word in words for name in ALIASES.get(word, (word,))}
    return {name: value for name, value in SAMPLES.items() if name not in taken}


@pytest.fixture
def right(tokens: Tokens, pro: Person) -> dict[str, Any]:
    """A value for each argument that has no default, by its name."""
    tokens.pepper = "a pepper of the tests, long enough"
    organization, user = pro
    return {
        "organization": organization,
        "user": user,
        "feature": "generate_goal",
        "name": "A name",
        "email": "somebody@example.org",
        "plan": "pro",
        "reason": "a reason",
        "problem": "a problem",
        "actor": uuid4(),
        "token_type": "general",
        "amount": 5,
        "additional_tokens": 5,
        "cost": 5,
        "allowance": 5,
        "limits": Limits(1, Decimal(1), 1, 1, 1, 1),
        "mode": "shut",  # so that what is accepted would do nothing
        "status": "active",
        "role": "admin",
        "finding": uuid4(),
        "key": uuid4(),
        "scopes": ["read"],
        "requests_per_minute": 5,
        "unit_size": 5,
        "usage": tokens.deduct_tokens(organization, user, "generate_goal"),
        "reservation": tokens.reserve(organization, user, "generate_goal"),
    }


@pytest.fixture
def unmoved(
    tokens: Tokens, right: dict[str, Any], owner: psycopg.Connection
) -> Iterator[dict[str, Any]]:
    """What the test does changes nothing that any verb could change."""
    query = "select table_name from information_schema.tables where table_schema = 'public'"
    tables = [name for (name,) in owner.execute(query) if not name.endswith("_latencies")]

    def everything() -> list[Any]:
        return [owner.execute(f"select t::text from {t} t order by 1").fetchall() for t in tables]  # noqa: S608

    before = everything()
    yield right
    assert everything() == before


def verbs() -> dict[str, Callable[..., Any]]:
    members = inspect.getmembers(Tokens, inspect.isfunction)
    return {n: m for n, m in members if not n.startswith("_") and n not in NOT_ASKED}


def test_an_argument_of_another_type_is_named(tokens: Tokens, unmoved: dict[str, Any]) -> None:
    for verb, method in verbs().items():
        parameters = dict(list(inspect.signature(method).parameters.items())[1:])
        needed = {
            name: unmoved[name]
            for name, parameter in parameters.items()
            if parameter.default is inspect.Parameter.empty and name in unmoved
        }
        if "actor" in needed and parameters["actor"].annotation == "str":
            needed["actor"] = "somebody"
        for name, parameter in parameters.items():
            for kind, value in wrong(parameter.annotation).items():
                error = raised(getattr(tokens, verb), **{**needed, name: value})
                assert isinstance(error, InvalidInput), (verb, name, kind, error)
                assert error.field == name, (verb, name, kind, error)
                assert str(error).startswith(f"{name} "), (verb, name, kind, error)


def raised(verb: Callable[..., Any], **arguments: Any) -> Exception | None:
    """What a verb says to these arguments."""
    try:
        result = verb(**arguments)
        if isinstance(result, AbstractContextManager):
            with result:
                return None
    except Exception as error:  # noqa: BLE001 - any other than the one wanted is shown
        return error
    return None
