"""tokenlib key: made from nothing, shown once, and ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.api.callers import PEPPER
from tests.cli.shell import Shell
from tokenlib import Tokens
from tokenlib.reports import Reports
from tokenlib.testing import TestDatabase

CREATE = ("key", "create", "The product", "--scope", "spend")


def admin(owner: psycopg.Connection, name: str) -> UUID:
    person = uuid4()
    owner.execute(
        "insert into tokenlib_staff (user_id, email, full_name, role) values (%s, %s, %s, 'admin')",
        (person, f"{name}@example.org", name),
    )
    return person


@pytest.fixture
def ada(token_database: TestDatabase) -> UUID:
    with token_database.connect() as owner:
        return admin(owner, "Ada")


@pytest.fixture
def keys(shell: Shell, tokens: Tokens, ada: UUID) -> Shell:
    """A shell with a pepper, where Ada is the only admin."""
    tokens.pepper = PEPPER
    return shell.set(TOKENLIB_KEY_PEPPER=PEPPER)


def test_the_secret_is_alone_on_stdout_once(keys: Shell, tokens: Tokens, ada: UUID) -> None:
    made = keys(*CREATE, "--scope", "check", "--reason", "launch")
    secret = made.stdout.removesuffix("\n")
    found = tokens.key_of(secret)
    assert found is not None
    assert (found["scopes"], found["organization_id"]) == (["spend", "check"], None)
    assert made.stderr == f"Key {found['id']}. The secret is shown this once; keep it.\n"
    listed = keys("key", "list").stdout
    assert str(found["id"]) in listed
    assert secret not in listed + keys("key", "list", "--json").stdout
    [change] = Reports(tokens.database).changes()
    assert (change.action, change.actor, change.reason) == ("create_key", str(ada), "launch")


def test_all_that_a_key_can_be_given(keys: Shell, tokens: Tokens, pro: tuple[UUID, UUID]) -> None:
    made = keys.json(
        *CREATE, "--organization", pro[0], "--days", 30, "--requests-per-minute", 60,
        "--seconds-between-requests", 0.5, "--tokens-per-request", 10,
        "--output-units-per-request", 500, "--limit-users", "--reason", "launch",
    )  # fmt: skip
    assert tokens.key_of(made["secret"]) is not None
    [row] = keys.json("key", "list")["keys"]
    assert (row["id"], row["organization_id"]) == (made["id"], str(pro[0]))
    assert {
        name: row[name] for name in row if name.endswith(("minute", "requests", "request"))
    } == {
        "requests_per_minute": 60,
        "seconds_between_requests": 0.5,
        "tokens_per_request": 10,
        "output_units_per_request": 500,
    }
    assert row["limit_users"] is True
    ends = datetime.fromisoformat(row["expires_at"])
    assert abs(ends - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=5)
    [line] = keys("key", "list").stdout.splitlines()[1:]
    assert "requests per minute 60, seconds between requests 0.5" in line
    assert "output units per request 500, those of users" in line


def test_a_key_is_rotated_and_revoked(keys: Shell, tokens: Tokens) -> None:
    made = keys.json(*CREATE, "--reason", "launch")
    turned = keys("key", "rotate", made["id"], "--reason", "yearly").stdout.strip()
    last = keys.json("key", "rotate", made["id"], "--overlap", 0, "--reason", "leaked")["secret"]
    assert [tokens.key_of(each) is not None for each in (made["secret"], turned, last)] == [
        False,
        False,
        True,
    ]
    for _ in range(2):
        said = keys("key", "revoke", made["id"], "--reason", "over").stdout
        assert said == f"Key {made['id']} is revoked.\n"
    assert tokens.key_of(last) is None
    assert keys.error("key", "rotate", made["id"], "--reason", "again", exit_code=1)
    unknown = keys.error("key", "revoke", uuid4(), "--reason", "none", exit_code=1)
    assert unknown.startswith("There is no API key")
    assert "revoked" in keys("key", "list").stdout


def test_which_admin_does_it(
    keys: Shell, tokens: Tokens, token_database: TestDatabase, ada: UUID
) -> None:
    with token_database.connect() as owner:
        grace = admin(owner, "Grace")
    asked = keys(*CREATE, "--reason", "launch", exit_code=2)
    assert "Say which of 2 admins does it: --actor." in asked.stderr
    keys(*CREATE, "--reason", "launch", "--actor", "grace@EXAMPLE.org")
    keys(*CREATE, "--reason", "launch", "--actor", ada)
    nobody = keys.error(*CREATE, "--reason", "launch", "--actor", "eve@example.org", exit_code=1)
    assert nobody == "eve@example.org is no admin."
    actors = [change.actor for change in Reports(tokens.database).changes()]
    assert actors == [str(ada), str(grace)]


def test_what_is_missing_is_named(shell: Shell, tokens: Tokens) -> None:
    assert "There are no API keys." in shell("key", "list").stdout
    with_pepper = shell.set(TOKENLIB_KEY_PEPPER=PEPPER)
    first = with_pepper.error(*CREATE, "--reason", "launch", exit_code=3)
    assert first.startswith("There is no admin yet.")
    assert "insert into public.tokenlib_staff" in first


def test_without_a_pepper_there_are_no_keys(shell: Shell, ada: UUID) -> None:
    said = shell.set(TOKENLIB_KEY_PEPPER="").error(*CREATE, "--reason", "launch", exit_code=3)
    assert "TOKENLIB_KEY_PEPPER" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("key", "create", "A name", "--reason", "r"), "--scope"),
        ((*CREATE, "--scope", "everything", "--reason", "r"), "everything"),
        (CREATE, "--reason"),
        ((*CREATE, "--days", "0", "--reason", "r"), "must be a whole number from 1 to 36500"),
        (("key", "rotate", "no id", "--reason", "r"), "no id"),
        ((*CREATE, "--organization", "acme", "--reason", "r"), "organization must be a UUID"),
        ((*CREATE, "--reason", " "), "reason"),
    ],
)
def test_what_is_wrong_is_named(keys: Shell, arguments: tuple[str, ...], said: str) -> None:
    result = keys(*arguments, exit_code=2)
    assert result.stdout == ""
    assert said in result.stderr
