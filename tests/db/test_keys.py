"""API keys: what is kept, who manages them, and that their end is an end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import (
    ApiKeyOver,
    ConfigurationError,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Tokens,
)
from tokenlib.keys import digest, new_secret, start, well_formed
from tokenlib.testing import TestClock

Person = tuple[UUID, UUID]
PEPPER = "a pepper of the tests, which nobody has but the test"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def admin(tokens: Tokens, owner: psycopg.Connection) -> UUID:
    """An admin, and a gate that has a pepper."""
    tokens.pepper = PEPPER
    return staff(owner, "admin")


def staff(owner: psycopg.Connection, role: str) -> UUID:
    person = uuid4()
    owner.execute(
        "insert into tokenlib_staff (user_id, email, full_name, role)"
        " values (%s, %s, 'A person', %s)",
        (person, f"{person}@example.org", role),
    )
    return person


def changes(owner: psycopg.Connection) -> list[tuple[Any, ...]]:
    return owner.execute(
        "select action, organization_id, actor, reason from ai_token_changes order by created_at"
    ).fetchall()


def test_a_secret_has_a_form_and_a_checksum() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    for secret in secrets:
        assert len(secret) == 53
        assert well_formed(secret)
        other = "a" if secret[20] != "a" else "b"
        assert not well_formed(secret[:20] + other + secret[21:])
        assert not well_formed(secret[:-1])
        assert not well_formed(secret + "\n")


def test_only_an_hmac_is_kept(admin: UUID, tokens: Tokens, owner: psycopg.Connection) -> None:
    key = tokens.staff_create_key(admin, "The product", ["spend"], reason="the first")
    assert key.secret is not None
    assert key.secret not in repr(key)
    [row] = owner.execute("select k::text, digest, start from ai_token_api_keys k").fetchall()
    assert row[1:] == (digest(key.secret, PEPPER), start(key.secret))
    [audit] = owner.execute("select c::text from ai_token_changes c").fetchall()
    for text in (row[0], audit[0]):
        assert key.secret[len(start(key.secret)) :] not in text
    # Another pepper opens nothing.
    assert tokens.key_of(key.secret) is not None
    tokens.pepper = PEPPER[::-1]
    assert tokens.key_of(key.secret) is None


def test_without_a_pepper_there_are_no_keys(
    admin: UUID, tokens: Tokens, owner: psycopg.Connection
) -> None:
    tokens.pepper = None
    with pytest.raises(ConfigurationError, match="TOKENLIB_KEY_PEPPER"):
        tokens.staff_create_key(admin, "The product", ["spend"], reason="the first")
    assert tokens.key_of(new_secret()) is None
    assert changes(owner) == []


@pytest.mark.parametrize("who", ["support", "member", "stranger"])
def test_keys_are_for_admins(
    admin: UUID,
    who: str,
    tokens: Tokens,
    owner: psycopg.Connection,
    join: Callable[[str], Person],
) -> None:
    member = join("pro")[1]
    person = {"support": staff(owner, "support"), "member": member, "stranger": uuid4()}[who]
    key = tokens.staff_create_key(admin, "The product", ["spend"], reason="the first")
    assert key.secret is not None
    for attempt in (
        lambda: tokens.staff_create_key(person, "Mine", ["read"], reason="because"),
        lambda: tokens.staff_rotate_key(person, key.id, reason="because"),
        lambda: tokens.staff_revoke_key(person, key.id, reason="because"),
        lambda: tokens.staff_set_request_limit(person, None, 5, reason="because"),
    ):
        with pytest.raises(PermissionDenied):
            attempt()
    assert [change[0] for change in changes(owner)] == ["create_key"]
    assert tokens.key_of(key.secret) is not None


def test_every_action_is_on_record(
    admin: UUID, tokens: Tokens, owner: psycopg.Connection, join: Callable[[str], Person]
) -> None:
    organization = join("pro")[0]
    key = tokens.staff_create_key(admin, "Theirs", ["read"], organization, reason="asked for")
    tokens.staff_rotate_key(admin, key.id, reason="yearly")
    tokens.staff_revoke_key(admin, key.id, reason="they left")
    tokens.staff_revoke_key(admin, key.id, reason="again")
    tokens.staff_set_request_limit(admin, organization, 600, reason="a quiet neighbour")
    assert changes(owner) == [
        ("create_key", organization, str(admin), "asked for"),
        ("rotate_key", organization, str(admin), "yearly"),
        ("revoke_key", organization, str(admin), "they left"),
        ("set_request_limit", organization, str(admin), "a quiet neighbour"),
    ]
    for attempt in (
        lambda: tokens.staff_create_key(admin, "No", ["read"], reason=" "),
        lambda: tokens.staff_rotate_key(admin, key.id, reason=""),
        lambda: tokens.staff_revoke_key(admin, key.id, reason=""),
    ):
        with pytest.raises(InvalidInput, match="reason"):
            attempt()


def test_a_rotated_key_overlaps(admin: UUID, tokens: Tokens, token_clock: TestClock) -> None:
    key = tokens.staff_create_key(admin, "The product", ["spend"], reason="the first")
    assert key.secret is not None
    second = tokens.staff_rotate_key(admin, key.id, overlap=timedelta(hours=1), reason="yearly")
    found = [tokens.key_of(secret) for secret in (key.secret, second)]
    assert [row and row["id"] for row in found] == [key.id, key.id]
    token_clock.advance(timedelta(hours=1, seconds=1))
    assert tokens.key_of(key.secret) is None
    assert tokens.key_of(second) is not None
    third = tokens.staff_rotate_key(admin, key.id, overlap=timedelta(0), reason="leaked")
    assert [tokens.key_of(secret) is None for secret in (key.secret, second, third)] == [
        True,
        True,
        False,
    ]
    with pytest.raises(InvalidInput, match="overlap"):
        tokens.staff_rotate_key(admin, key.id, overlap=timedelta(days=31), reason="long")


def test_revocation_and_expiry_end_a_key_at_once(
    admin: UUID, tokens: Tokens, token_clock: TestClock
) -> None:
    revoked = tokens.staff_create_key(admin, "Revoked", ["spend"], reason="a test")
    assert revoked.secret is not None
    second = tokens.staff_rotate_key(admin, revoked.id, reason="a test")
    tokens.staff_revoke_key(admin, revoked.id, reason="a test")
    assert tokens.key_of(revoked.secret) is None
    assert tokens.key_of(second) is None
    short = tokens.staff_create_key(
        admin,
        "Short",
        ["spend"],
        expires_at=token_clock.now() + timedelta(minutes=5),
        reason="a test",
    )
    assert short.secret is not None
    assert tokens.key_of(short.secret) is not None
    token_clock.advance(timedelta(minutes=5, seconds=1))
    assert tokens.key_of(short.secret) is None
    for over in (revoked, short):
        with pytest.raises(ApiKeyOver):
            tokens.staff_rotate_key(admin, over.id, reason="a test")
    for attempt in (tokens.staff_rotate_key, tokens.staff_revoke_key):
        with pytest.raises(NotFound):
            attempt(admin, uuid4(), reason="a test")


def test_the_last_use_is_kept_to_the_minute(
    admin: UUID, tokens: Tokens, owner: psycopg.Connection, token_clock: TestClock
) -> None:
    token_clock.set(token_clock.now())
    key = tokens.staff_create_key(admin, "The product", ["spend"], reason="the first")
    assert key.secret is not None

    def last() -> datetime | None:
        row = owner.execute("select last_used_at from ai_token_api_keys").fetchone()
        assert row is not None
        moment: datetime | None = row[0]
        return moment

    assert last() is None
    began = token_clock.now()
    tokens.key_of(key.secret)
    assert last() == began
    token_clock.advance(timedelta(seconds=59))
    tokens.key_of(key.secret)
    assert last() == began
    token_clock.advance(timedelta(seconds=2))
    tokens.key_of(key.secret)
    assert last() == token_clock.now()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["read", "read"]}, "scopes"),
        ({"scopes": ["everything"]}, "scopes"),
        ({"name": ""}, "name"),
        ({"name": "n" * 101}, "name"),
        ({"expires_at": LONG_AGO}, "expires_at"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_request": "many"}, "tokens_per_request"),
        ({"output_units_per_request": 0}, "output_units_per_request"),
        ({"output_units_per_request": 1.5}, "output_units_per_request"),
        ({"seconds_between_requests": -1}, "seconds_between_requests"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(
    admin: UUID, tokens: Tokens, owner: psycopg.Connection, changes: dict[str, Any], field: str
) -> None:
    wanted = {"name": "A key", "scopes": ["read"], "reason": "a test"} | changes
    with pytest.raises(InvalidInput) as refused:
        tokens.staff_create_key(admin, **wanted)
    assert refused.value.field == field
    assert owner.execute("select count(*) from ai_token_api_keys").fetchone() == (0,)


def test_an_answer_after_many_refusals(admin: UUID, tokens: Tokens) -> None:
    """What was only ever refused on its connection has named no columns yet."""
    for _ in range(8):
        with pytest.raises(PermissionDenied):
            tokens.staff_set_request_limit(uuid4(), None, 600, reason="a test")
    tokens.staff_set_request_limit(admin, None, 600, reason="a test")
