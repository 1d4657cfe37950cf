"""Bad input: its own clear error, and not one row of the books moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import (
    AlreadyAMember,
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidInput,
    LoginRefused,
    NotAMember,
    NotFound,
    TokenlibError,
    Tokens,
    UnknownFeature,
    UnknownOrganization,
    UnknownPlan,
    UnknownTokenType,
    connect,
)
from tokenlib.db import Database, translate
from tokenlib.testing import TestDatabase

Person = tuple[UUID, UUID]
Call = Callable[[Tokens, Person], object]

GOAL = "generate_goal"
KEY = "used before"
ORG, USER = "the organization", "its user"
CIRCLE: dict[str, object] = {}
CIRCLE["itself"] = CIRCLE


def nested(levels: int) -> dict[str, Any]:
    """JSON of so many levels: an object of lists in lists."""
    inner: list[Any] = []
    for _ in range(levels - 2):
        inner = [inner]
    return {"deep": inner}


@pytest.fixture
def service(token_database: TestDatabase) -> Iterator[psycopg.Connection]:
    """A connection of the role that may call the functions."""
    with token_database.connect("tokenlib_service") as connection:
        yield connection


@pytest.fixture
def unmoved(tokens: Tokens, pro: Person, owner: psycopg.Connection) -> Iterator[None]:
    """What the test does changes no wallet, log row, event, grant, hold or refusal."""
    tokens.deduct_tokens(*pro, GOAL, idempotency_key=KEY)
    tables = ("s", "_usage_log", "_events", "_grants", "_reservations", "_refusals", "_changes")

    def books() -> list[Any]:
        return [
            owner.execute(f"select * from ai_token{table} order by 1, 2, 3").fetchall()  # noqa: S608
            for table in (*tables, "_organization_settings", "_user_settings", "_parameters")
        ]

    before = books()
    yield
    assert books() == before
    assert tokens.verify().closed


def charge(**changed: Any) -> Call:
    """A charge with one thing wrong."""

    def call(tokens: Tokens, pro: Person) -> object:
        request = {"organization": pro[0], "user": pro[1], "feature": GOAL, **changed}
        return tokens.deduct_tokens(**request)

    return call


def verb(name: str, *args: Any, **kwargs: Any) -> Call:
    """Any verb, with the organization and its user filled in."""

    def call(tokens: Tokens, pro: Person) -> object:
        known = {ORG: pro[0], USER: pro[1]}
        return getattr(tokens, name)(
            *(known.get(value, value) for value in args),
            **{field: known.get(value, value) for field, value in kwargs.items()},
        )

    return call


BAD: dict[str, tuple[Call, type[TokenlibError], str]] = {
    "unknown feature": (
        charge(feature="make_coffee"),
        UnknownFeature,
        "'make_coffee' is not in the catalog. Known features: .*generate_goal",
    ),
    "feature none": (charge(feature=None), InvalidInput, "^feature must be text"),
    "feature a number": (charge(feature=7), InvalidInput, "^feature must be text"),
    "feature with NUL": (charge(feature="a\x00"), InvalidInput, "^feature must not contain NUL"),
    "feature not in Unicode": (charge(feature="\ud800"), InvalidInput, "^feature must be Unicode"),
    "unknown organization": (charge(organization=UUID(int=1)), UnknownOrganization, "0001"),
    "unknown user": (charge(user=UUID(int=1)), NotAMember, "is not a member"),
    "malformed organization": (charge(organization="acme"), InvalidInput, "^organization must be"),
    "malformed user": (charge(user="a" * 31), InvalidInput, "^user must be a UUID"),
    "organization a number": (charge(organization=5), InvalidInput, "^organization must be a UU"),
    "user none": (charge(user=None), InvalidInput, "^user must be a UUID, not None"),
    "units zero": (charge(units=0), InvalidInput, "^units must be from 1 to 1000000, not 0"),
    "units negative": (charge(units=-1), InvalidInput, "^units must be from 1"),
    "units fractional": (charge(units=1.5), InvalidInput, "^units must be a whole number"),
    "units huge": (charge(units=10**9), InvalidInput, "^units must be from 1"),
    "units beyond the database": (charge(units=10**30), InvalidInput, "^units must be from 1"),
    "output units negative": (
        verb("can_use", ORG, USER, GOAL, output_units=-1),
        InvalidInput,
        "^output_units must be from 0",
    ),
    "output units fractional": (
        verb("can_use", ORG, USER, GOAL, output_units=1.5),
        InvalidInput,
        "^output_units must be a whole number",
    ),
    "units a truth": (charge(units=True), InvalidInput, "^units must be a whole number"),
    "units text": (charge(units="3"), InvalidInput, "^units must be a whole number, not '3'"),
    "key used for other content": (
        charge(units=2, idempotency_key=KEY),
        IdempotencyConflict,
        "'used before' was used for another request",
    ),
    "key empty": (charge(idempotency_key=""), InvalidInput, "^idempotency_key must be text of 1"),
    "key long": (charge(idempotency_key="k" * 256), InvalidInput, "^idempotency_key must be te"),
    "key a number": (charge(idempotency_key=7), InvalidInput, "^idempotency_key must be text"),
    "key with NUL": (charge(idempotency_key="\x00"), InvalidInput, "^idempotency_key must not c"),
    "key not in Unicode": (charge(idempotency_key="\udfff"), InvalidInput, "^idempotency_key m"),
    "metadata a list": (charge(metadata=[1]), InvalidInput, "^metadata must be a JSON object"),
    "metadata text": (charge(metadata="{}"), InvalidInput, "^metadata must be a JSON object"),
    "metadata no JSON": (charge(metadata={"id": uuid4()}), InvalidInput, "^metadata must be JSON"),
    "metadata NaN": (charge(metadata={"n": float("nan")}), InvalidInput, "^metadata must be JSON"),
    "metadata infinite": (charge(metadata={"n": -1e999}), InvalidInput, "^metadata must be JSON"),
    "metadata huge number": (charge(metadata={"n": 10**5000}), InvalidInput, "^metadata must be"),
    "metadata NUL": (charge(metadata={"t": "a\x00"}), InvalidInput, "^metadata must not contain"),
    "metadata NUL in a name": (charge(metadata={"\x00": 1}), InvalidInput, "^metadata must not c"),
    "metadata not in Unicode": (charge(metadata={"t": "\ud800"}), InvalidInput, "^metadata must"),
    "metadata large": (charge(metadata={"t": "x" * 16_400}), InvalidInput, "at most 16384 bytes"),
    "metadata circular": (charge(metadata=CIRCLE), InvalidInput, "^metadata must be JSON"),
    "output units as text": (
        charge(metadata={"output_units": "2001"}),
        InvalidInput,
        r"^metadata\.output_units must be a whole number from 0 to 9999999999$",
    ),
    "output units in a hold": (
        lambda tokens, pro: tokens.reserve(*pro, GOAL, metadata={"output_units": [5000]}),
        InvalidInput,
        r"^metadata\.output_units must be",
    ),
    "output units of nothing": (
        charge(metadata={"output_units": None}),
        InvalidInput,
        r"^metadata\.output_units must be",
    ),
    "output units below zero": (
        charge(metadata={"output_units": -5}),
        InvalidInput,
        r"^metadata\.output_units must be",
    ),
    "output units without end": (
        charge(metadata={"output_units": float("inf")}),
        InvalidInput,
        r"^metadata\.output_units must be",
    ),
    "output units a fraction": (
        charge(metadata={"output_units": 2.5}),
        InvalidInput,
        r"^metadata\.output_units must be",
    ),
    "output units a truth": (
        charge(metadata={"output_units": True}),
        InvalidInput,
        r"^metadata\.output_units must be",
    ),
    "metadata deep": (charge(metadata=nested(101)), InvalidInput, "at most 100 levels deep"),
    "metadata abysmal": (charge(metadata=nested(8000)), InvalidInput, "^metadata must"),
    "hold for no time": (
        verb("reserve", ORG, USER, GOAL, hold_for=timedelta(0)),
        InvalidInput,
        "^hold_for must be more than 0 s and at most 1 day",
    ),
    "hold for a year": (
        verb("reserve", ORG, USER, GOAL, hold_for=timedelta(days=365)),
        InvalidInput,
        "^hold_for must be more than 0 s",
    ),
    "hold for a number": (
        verb("reserve", ORG, USER, GOAL, hold_for=600),
        InvalidInput,
        "^hold_for must be a timedelta",
    ),
    "balance of an unknown type": (
        verb("get_token_balance", ORG, "gold"),
        UnknownTokenType,
        "'gold' is not one of: lead_generation, .*shared",
    ),
    "balance of an unknown organization": (
        verb("get_token_balance", uuid4(), "general"),
        UnknownOrganization,
        "There is no organization",
    ),
    "stats of an unknown organization": (
        verb("get_token_stats", uuid4()),
        UnknownOrganization,
        "There is no organization",
    ),
    "has_enough of an unknown organization": (
        verb("has_enough_tokens", uuid4(), GOAL),
        UnknownOrganization,
        "There is no organization",
    ),
    "has_enough of an unknown feature": (
        verb("has_enough_tokens", ORG, "make_coffee"),
        UnknownFeature,
        "Known features",
    ),
    "can_use of an unknown feature": (
        verb("can_use", ORG, USER, "make_coffee"),
        UnknownFeature,
        "Known features",
    ),
    "grant to a type that is a number": (
        verb("grant", ORG, 5, 1),
        InvalidInput,
        "^token_type must be text",
    ),
    "grant of a truth": (verb("grant", ORG, "general", True), InvalidInput, "^amount"),
    "grant of too much": (verb("grant", ORG, "general", 10**10), InvalidInput, "^amount"),
    "grant with an empty key": (
        verb("grant", ORG, "general", 1, idempotency_key=""),
        InvalidInput,
        "^idempotency_key",
    ),
    "grant with a key of NUL": (
        verb("grant", ORG, "general", 1, idempotency_key="\x00"),
        InvalidInput,
        "^idempotency_key",
    ),
    "grant by nobody": (
        verb("grant", ORG, "general", 1, actor=None),
        InvalidInput,
        "^actor must be text",
    ),
    "grant from a source with NUL": (
        verb("grant", ORG, "general", 1, source="\x00"),
        InvalidInput,
        "^source must not contain NUL characters",
    ),
    "grant until a text": (
        verb("grant", ORG, "general", 1, expires_at="2027"),
        InvalidInput,
        "^expires_at must be a time with a time zone",
    ),
    "switch until a time without zone": (
        verb("set_mode", "off", until=datetime(2027, 1, 1), actor="a", reason="b"),  # noqa: DTZ001
        InvalidInput,
        "^until must be a time with a time zone",
    ),
    "switch until a time that is over": (
        verb("set_mode", "off", until=datetime(2026, 1, 1, tzinfo=UTC), actor="a", reason="b"),
        InvalidInput,
        "^until must be later than now",
    ),
    "switch of one until a time that is over": (
        verb("set_mode", "off", ORG, until=datetime(2026, 1, 1, tzinfo=UTC), actor="a", reason="b"),
        InvalidInput,
        "^until must be later than now",
    ),
    "switch by nobody": (
        verb("set_mode", "off", actor=None, reason="b"),
        InvalidInput,
        "^actor must be text",
    ),
    "plan a number": (
        verb("change_plan", ORG, 5),
        InvalidInput,
        "^plan must be text",
    ),
    "organization on an unknown plan": (
        verb("create_organization", "Acme", "gold"),
        UnknownPlan,
        "'gold' is not one of: starter, pro, enterprise",
    ),
    "organization without a name": (
        verb("create_organization", " ", "pro"),
        InvalidInput,
        "^name must have 1 to 200 characters",
    ),
    "member without an address": (
        verb("add_member", ORG, "A member", "nobody"),
        InvalidInput,
        '^email must be an e-mail address, not "nobody"$',
    ),
    "member with the address of another": (
        verb("add_member", ORG, "A member", "Member@example.org"),
        AlreadyAMember,
        "belongs to user [0-9a-f-]{36} of this organization",
    ),
    "member of an unknown organization": (
        verb("add_member", uuid4(), "A member", "a@example.org"),
        UnknownOrganization,
        "There is no organization",
    ),
    "refund with a malformed id": (
        verb("refund", "x", "nonsense", organization=ORG),
        InvalidInput,
        "^usage must be a UUID",
    ),
    "refund for a reason that is a number": (
        verb("refund", uuid4(), 5, organization=ORG),
        InvalidInput,
        "^reason must be text",
    ),
    "hold named by its id": (
        verb("deduct", UUID(int=1)),
        InvalidInput,
        "^reservation must be what reserve returned, not UUID",
    ),
    "hold that is none": (
        verb("release", None),
        InvalidInput,
        "^reservation must be what reserve returned, not None",
    ),
    "erasure of nobody": (
        verb("erase", ORG, UUID(int=1), actor="a", reason="b"),
        NotAMember,
        "is not a member",
    ),
    "erasure for no reason": (
        verb("erase", ORG, USER, actor="a", reason=" "),
        InvalidInput,
        "^reason must not be empty",
    ),
    "finding that is not there": (
        verb("settle_finding", ORG, uuid4(), actor="a", reason="b"),
        NotFound,
        "There is no finding",
    ),
}


@pytest.mark.usefixtures("unmoved")
def test_bad_input_has_its_own_error(tokens: Tokens, pro: Person) -> None:
    for name, (call, error, message) in BAD.items():
        with pytest.raises(TokenlibError, match=message) as refused:
            call(tokens, pro)
        assert type(refused.value) is error, name


NO_COUNTS = ('"2001"', "[5000]", '{"n": 1}', "-5", "1e999", "1e10", "2.5", "true", "null")


@pytest.mark.usefixtures("unmoved")
@pytest.mark.parametrize("said", NO_COUNTS)
def test_the_database_takes_no_output_units_that_are_no_count(
    pro: Person, service: psycopg.Connection, said: str
) -> None:
    """Whoever asks the functions themselves: with and without limits, alone and in company."""
    metadata = f'{{"output_units": {said}}}'
    limited = "tokenlib.deduct(%s, %s, %s, 1, %s::jsonb, null, true, null)"
    free = "tokenlib.deduct(%s, %s, %s, 1, %s::jsonb, null, false, null)"
    hold = "tokenlib.reserve(%s, %s, %s, 1, %s::jsonb, null, null, false, null, null)"
    for call in (limited, free, hold):
        with pytest.raises(psycopg.errors.InvalidParameterValue) as refused:
            service.execute(f"select * from {call}", (*pro, GOAL, metadata))  # noqa: S608
        assert refused.value.diag.column_name == "metadata.output_units"
    for limits in (False, True):
        made = service.execute(
            "select * from tokenlib.deduct_many(array[gen_random_uuid()], array[%s]::uuid[],"
            " array[%s]::uuid[], array[%s], array[1]::bigint[], array[%s]::jsonb[],"
            " array[null]::text[], array[%s], false)",
            (*pro, GOAL, metadata, limits),
        )
        assert made.fetchall() == []


def test_a_hold_is_not_charged_with_output_units_that_are_no_count(
    tokens: Tokens, pro: Person, service: psycopg.Connection
) -> None:
    held = tokens.reserve(*pro, GOAL)
    for said in NO_COUNTS:
        with pytest.raises(psycopg.errors.InvalidParameterValue) as refused:
            service.execute(
                "select * from tokenlib.deduct_reservation(%s, %s, null, %s::jsonb)",
                (pro[0], held.id, f'{{"output_units": {said}}}'),
            )
        assert refused.value.diag.column_name == "metadata.output_units"
    with pytest.raises(InvalidInput, match=r"^metadata\.output_units must be"):
        tokens.deduct(held, metadata={"output_units": "3"})
    assert tokens.deduct(held, metadata={"output_units": 3}).tokens_deducted == 3


@pytest.mark.usefixtures("unmoved")
def test_a_user_of_another_organization_cannot_charge_this_one(
    tokens: Tokens, pro: Person, owner: psycopg.Connection
) -> None:
    row = owner.execute(
        "insert into organizations (name, plan) values ('Other', 'pro') returning id"
    ).fetchone()
    assert row is not None
    stranger = tokens.add_member(row[0], "A stranger", "stranger@example.org")
    for verb in (tokens.deduct_tokens, tokens.reserve, tokens.can_use):
        with pytest.raises(NotAMember):
            verb(pro[0], stranger, GOAL)
    with pytest.raises(NotAMember), tokens.spend(pro[0], stranger, GOAL):
        pytest.fail("the body ran")


def test_metadata_may_be_anything_that_is_json_and_fits(
    tokens: Tokens, pro: Person, owner: psycopg.Connection
) -> None:
    documents: list[dict[str, Any]] = [
        {},
        {"text": "é" * 8000},  # 16 KB in UTF-8, though 48 KB in escapes
        {"text": "\\u0000 as six characters"},
        {"emoji": "\N{GRINNING FACE}", "quote": '"', "list": [1, 2.5, None, True, {"a": []}]},
        nested(100),
    ]
    for document in documents:
        tokens.deduct_tokens(*pro, "generate_insight", metadata=document)
    rows = owner.execute("select metadata from ai_token_usage_log order by number").fetchall()
    assert [row[0] for row in rows] == documents


@pytest.mark.parametrize(
    ("database", "role", "said"),
    [
        ("nothing_here", "tokenlib_service", 'database "nothing_here" does not exist'),
        (None, "nobody_known", 'role "nobody_known" does not exist'),
        (None, "anon", 'role "anon" is not permitted to log in'),
    ],
)
def test_a_login_that_is_refused_is_a_setting(
    token_database: TestDatabase, database: str | None, role: str, said: str
) -> None:
    url = token_database.server.url(database or token_database.name, role)
    with pytest.raises(LoginRefused, match=f"refused the connection: {said}. Correct the login"):
        connect(url.replace("+psycopg", ""))


def test_a_password_that_is_wrong_is_a_setting(tmp_path: Path) -> None:
    said = 'connection failed: FATAL:  password authentication failed for user "tokenlib_service"'
    for sentence in (said, "connection failed: fe_sendauth: no password supplied"):
        error = translate(psycopg.OperationalError(sentence))
        assert isinstance(error, LoginRefused)
    # Room is made again: that is no setting.
    busy = 'connection failed: FATAL:  too many connections for role "tokenlib_service"'
    assert isinstance(translate(psycopg.OperationalError(busy)), DatabaseUnavailable)


@pytest.mark.parametrize("where", ["closed port", "no socket folder"])
def test_a_database_that_is_down_is_a_no(tmp_path: Path, where: str) -> None:
    url = (
        "postgresql+psycopg://tokenlib_service@127.0.0.1:1/tokenlib"
        if where == "closed port"
        else f"postgresql+psycopg://tokenlib_service@/tokenlib?host={tmp_path / 'none'}"
    )
    with Tokens(Database(url)) as tokens:
        organization, user = uuid4(), uuid4()
        calls: list[Callable[[], object]] = [
            lambda: tokens.deduct_tokens(organization, user, GOAL),
            lambda: tokens.reserve(organization, user, GOAL),
            lambda: tokens.can_use(organization, user, GOAL),
            lambda: tokens.has_enough_tokens(organization, GOAL),
            lambda: tokens.get_token_stats(organization),
            lambda: tokens.refresh_tokens(),
            lambda: tokens.verify(),
            lambda: tokens.catalog(),
        ]
        for call in calls:
            with pytest.raises(DatabaseUnavailable, match="did not answer"):
                call()
        with pytest.raises(DatabaseUnavailable), tokens.spend(organization, user, GOAL):
            pytest.fail("the body ran")
    with pytest.raises(DatabaseUnavailable):
        connect(url.replace("+psycopg", ""))


@pytest.mark.parametrize(
    ("actor", "reason", "field"), [("", "why", "actor"), ("me", " ", "reason")]
)
def test_an_operator_says_who_and_why(tokens: Tokens, actor: str, reason: str, field: str) -> None:
    organization = tokens.create_organization("Organization A", "pro")
    with pytest.raises(InvalidInput, match=f"{field} must not be empty"):
        tokens.set_status(organization, "limited", actor=actor, reason=reason)
    assert tokens.can_use(
        organization, tokens.add_member(organization, "A", "a@example.org"), "generate_goal"
    ).allowed
