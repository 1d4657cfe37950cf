"""Staff by a claim: the owner says which claims count, the database who is staff, and how long."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tokenlib import PermissionDenied, Tokens
from tokenlib.claims import TELL_SECONDS, StaffClaims
from tokenlib.db import statements
from tokenlib.testing import TestClock, TestDatabase

ISSUER = "https://id.example.org"
ADMINS = ("{groups}", "admins", "admin")
SUPPORT = ("{app_metadata,roles}", "support", "support")


@pytest.fixture
def owner(token_database: TestDatabase) -> Any:
    with token_database.connect() as owner:
        for row in (ADMINS, SUPPORT):
            allow(owner, *row)
        yield owner


def allow(owner: psycopg.Connection, claim: str, value: str, role: str) -> None:
    owner.execute("insert into tokenlib_staff_claims values (%s, %s, %s, %s)",
                  (ISSUER, claim, value, role))  # fmt: skip


class Teller:
    """Tells of one person; each token is told at once, as by a process of its own."""

    def __init__(self, tokens: Tokens, user: UUID | None = None) -> None:
        self.tokens, self.user = tokens, user or uuid4()
        row = tokens.database.rows("select extract(epoch from tokenlib.clock())::float8 as now")
        self.start: float = row[0]["now"]

    def tell(
        self, at: float = 0, life: float = 3000, email: str | None = None, **said: Any
    ) -> None:
        claims = {"iss": ISSUER, "sub": "x", "iat": self.start + at, "exp": self.start + at + life}
        StaffClaims(lambda: self.tokens.database).tell(self.user, claims | said, email)

    def role(self) -> str | None:
        rows = self.tokens.database.rows(
            statements("system")["whoami"], reader="authenticated", user_id=self.user
        )
        return rows[0]["staff_role"] if rows else None


@pytest.fixture
def teller(tokens: Tokens, owner: psycopg.Connection) -> Teller:
    return Teller(tokens)


@pytest.fixture
def admin(owner: psycopg.Connection) -> UUID:
    """By hand."""
    person = uuid4()
    owner.execute(
        "insert into tokenlib_staff (user_id, email, full_name, role)"
        " values (%s, 'ada@example.org', 'Ada', 'admin')",
        (person,),
    )
    return person


@pytest.mark.parametrize(
    ("said", "role"),
    [
        ({"groups": ["people", "admins"]}, "admin"),
        ({"groups": "admins"}, "admin"),
        ({"app_metadata": {"roles": ["support"]}}, "support"),
        ({"app_metadata": {"roles": "support"}, "groups": ["admins"]}, "admin"),
        ({}, None),
        ({"groups": []}, None),
        ({"groups": None}, None),
        ({"groups": ["Admins", "admins ", ["admins"], {"admins": True}]}, None),
        ({"groups": {"admins": True}}, None),
        ({"groups": ["admins"], "iss": "https://id.example.com"}, None),
        ({"groups": ["admins"], "iss": None}, None),
        ({"groups": ["admins"], "iat": None}, None),
        ({"groups": ["admins"], "exp": 1}, None),
        ({"roles": ["support"], "user_metadata": {"roles": ["support"], "groups": "admins"}}, None),
    ],
)
def test_only_a_claim_that_the_owner_names_makes_staff(
    teller: Teller, said: dict[str, Any], role: str | None
) -> None:
    teller.tell(**said)
    assert teller.role() == role


def test_without_a_row_of_the_owner_no_claim_counts(
    tokens: Tokens, token_database: TestDatabase
) -> None:
    teller = Teller(tokens)
    teller.tell(groups=["admins"], role="admin")
    params = {"issuer": ISSUER, "user_id": teller.user, "claims": '{"groups": "admins"}',
              "email": None, "name": "x", "issued": teller.start,
              "until": teller.start + 60}  # fmt: skip
    row = tokens.database.call(statements("system")["staff_by_claim"], params)
    assert row["status"] == "none"
    assert teller.role() is None


def test_nobody_but_the_owner_says_which_claims_count(owner: psycopg.Connection) -> None:
    rows = owner.execute(
        "select r.name, p.name from unnest(array['tokenlib_service', 'tokenlib_reader',"
        " 'authenticated']) as r (name), unnest(array['insert', 'update', 'delete', 'truncate'])"
        " as p (name) where has_table_privilege(r.name, 'tokenlib_staff_claims', p.name)"
        " or has_table_privilege(r.name, 'tokenlib_staff', p.name)"
    ).fetchall()
    assert rows == []


@pytest.mark.parametrize(
    "claim",
    [
        "{user_metadata,role}",
        "{https://example.org/user_metadata,role}",
        "{raw_user_meta_data,role}",
        "{unsafeMetadata,role}",
        "{email}",
        "{nickname}",
        "{}",
        '{""}',
        '{groups,""}',
        "{groups,null}",
        "{null}",
    ],
)
def test_what_people_write_themselves_cannot_be_named(
    owner: psycopg.Connection, claim: str
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        allow(owner, claim, "admin", "admin")


@pytest.mark.parametrize("row", [("", "admins"), (ISSUER, ""), (ISSUER, " "), (" ", "admins")])
def test_what_says_nothing_cannot_be_named(owner: psycopg.Connection, row: tuple[str, str]) -> None:
    issuer, value = row
    with pytest.raises(psycopg.errors.CheckViolation):
        owner.execute(
            "insert into tokenlib_staff_claims values (%s, '{roles}', %s, 'admin')", (issuer, value)
        )


def test_the_database_is_asked_once_a_minute(teller: Teller, owner: psycopg.Connection) -> None:
    now = [0.0]
    claims = StaffClaims(lambda: teller.tokens.database, lambda: now[0])
    said = {"iss": ISSUER, "sub": "x", "iat": teller.start, "exp": teller.start + 60}
    claims.tell(teller.user, said | {"groups": "admins"})
    assert teller.role() == "admin"
    owner.execute("delete from tokenlib_staff")
    claims.tell(teller.user, said | {"groups": "admins"})
    assert teller.role() is None
    now[0] += TELL_SECONDS
    claims.tell(teller.user, said | {"groups": "admins"})
    assert teller.role() == "admin"


def test_it_lasts_no_longer_than_the_token_and_an_hour(
    teller: Teller, admin: UUID, token_clock: TestClock
) -> None:
    tokens = teller.tokens
    teller.tell(groups="admins", life=60)
    long = Teller(tokens)
    long.tell(groups="admins", life=100_000)
    organization = tokens.create_organization("One", "pro")
    tokens.staff_change_plan(teller.user, organization, "enterprise", reason="bought")
    token_clock.advance(timedelta(seconds=61))
    with pytest.raises(PermissionDenied):
        tokens.staff_change_plan(teller.user, organization, "pro", reason="sold")
    assert (teller.role(), long.role()) == (None, "admin")
    teller.tell(groups="admins", life=60)
    assert teller.role() is None
    teller.tell(62, groups="admins", life=60)
    assert teller.role() == "admin"
    token_clock.advance(timedelta(minutes=60))
    assert long.role() is None
    long.tell(groups="admins", life=100_000)
    assert long.role() == "admin"  # the token still holds, and is used again


def test_a_newer_token_without_the_claim_ends_it(teller: Teller) -> None:
    teller.tell(groups="admins")
    teller.tell(1, groups="people")
    assert teller.role() is None
    teller.tell(groups="admins")  # the older one, at another process
    assert teller.role() is None
    teller.tell(2, app_metadata={"roles": ["support"]})
    assert teller.role() == "support"
    teller.tell(1, groups="people")
    assert teller.role() == "support"


def test_a_token_from_the_future_gives_nothing_and_is_newer_than_none(teller: Teller) -> None:
    """But for the minute by which clocks differ."""
    teller.tell(3600, groups="admins")
    assert teller.role() is None
    teller.tell(50, groups="admins")
    assert teller.role() == "admin"
    teller.tell(3600, groups="people")  # ends nothing
    assert teller.role() == "admin"
    teller.tell(51, groups="people")
    assert teller.role() is None


def test_staff_by_a_claim_are_so_by_its_issuer_alone(
    teller: Teller, owner: psycopg.Connection, token_clock: TestClock
) -> None:
    claims = StaffClaims(lambda: teller.tokens.database)
    other = "https://id.example.com"
    assert not claims.elsewhere(teller.user, other)
    teller.tell(groups="admins")
    assert not claims.elsewhere(teller.user, ISSUER)
    assert not claims.elsewhere(uuid4(), other)
    for issuer in (other, None, ISSUER + "/"):
        assert claims.elsewhere(teller.user, issuer)
    owner.execute("delete from tokenlib_staff_claims")
    begun = StaffClaims(lambda: teller.tokens.database)
    assert begun.elsewhere(teller.user, other)
    token_clock.advance(timedelta(minutes=61))
    assert not begun.elsewhere(teller.user, other)


def test_another_issuer_neither_gives_nor_ends_it(teller: Teller) -> None:
    teller.tell(groups="admins")
    teller.tell(5, iss="https://id.example.com", groups="people")
    assert teller.role() == "admin"


def test_whom_an_admin_removes_stays_removed(
    teller: Teller, admin: UUID, token_clock: TestClock
) -> None:
    tokens = teller.tokens
    teller.tell(groups="admins")
    token_clock.advance(timedelta(seconds=5))
    with pytest.raises(PermissionDenied, match="comes from a claim"):
        tokens.staff_set_staff(admin, teller.user, "support", reason="less")
    tokens.staff_set_staff(admin, teller.user, "admin", 7, reason="a limit")
    assert teller.role() == "admin"
    tokens.staff_set_staff(admin, teller.user, None, reason="left")
    assert teller.role() is None
    for at in (0, 4):
        teller.tell(at, groups="admins")
        assert teller.role() is None
    teller.tell(6, groups="admins")
    assert teller.role() == "admin"  # the provider says it anew


def test_the_last_admin_by_hand_stays(teller: Teller, admin: UUID) -> None:
    teller.tell(groups="admins")
    with pytest.raises(PermissionDenied, match="last admin"):
        teller.tokens.staff_set_staff(teller.user, admin, None, reason="mine now")
    assert Teller(teller.tokens, admin).role() == "admin"


def test_who_is_staff_by_hand_is_no_claim_s(
    tokens: Tokens, owner: psycopg.Connection, admin: UUID
) -> None:
    by_hand = Teller(tokens, admin)
    by_hand.tell(groups="people")
    assert by_hand.role() == "admin"
    by_hand.tell(app_metadata={"roles": "support"})
    assert by_hand.role() == "admin"
    other = Teller(tokens)
    other.tell(groups="admins", email="ADA@example.org")
    assert other.role() is None
    owner.execute("delete from tokenlib_staff where user_id = %s", (admin,))
    assert by_hand.role() is None


def test_it_is_on_record(teller: Teller, owner: psycopg.Connection) -> None:
    for at in range(3):
        teller.tell(at, app_metadata={"roles": "support"})
    teller.tell(3, groups="admins")
    teller.tell(4)
    rows = owner.execute(
        "select actor, reason, before ->> 'role', after ->> 'role' from ai_token_changes"
        " order by created_at, before nulls first"
    ).fetchall()
    who, why = str(teller.user), f"By the claims of {ISSUER}"
    assert rows == [
        (who, why, None, "support"),
        (who, why, "support", "admin"),
        (who, why, "admin", None),
    ]
