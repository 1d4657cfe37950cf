"""Erasing one person's metadata: an entry, nothing else changes, and only through the function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tokenlib import InvalidInput, NotAMember, Tokens, UnknownOrganization
from tokenlib.db import statements
from tokenlib.testing import TestDatabase

Person = tuple[UUID, UUID]
WHY = {"actor": "privacy desk", "reason": "request 12"}


@pytest.fixture
def other(tokens: Tokens, pro: Person) -> Person:
    """A colleague."""
    return pro[0], tokens.add_member(pro[0], "A colleague", "colleague@example.org")


@pytest.fixture
def used(tokens: Tokens, pro: Person, other: Person) -> Person:
    """Both have charges with metadata; the first person on two wallets, with holds and a quest."""
    for person in (pro, other):
        tokens.deduct_tokens(*person, "generate_goal", metadata={"prompt": "a name"})
    tokens.deduct_tokens(*pro, "generate_goal")
    tokens.deduct_tokens(*pro, "generate_insight", metadata={"prompt": "another name"})
    tokens.release(tokens.reserve(*pro, "generate_leads", metadata={"prompt": "a third"}))
    tokens.reserve(*pro, "generate_leads", metadata={"prompt": "a fourth"})
    for organization, user in (pro, other):
        quest = {"organization_id": organization, "user_id": user, "title": "Q1", "quarter": "Q1"}
        words = {"description": "", "target": 1000, "metadata": Jsonb({"steps": []})}
        tokens.database.call(statements("plans")["save_quest"], {**quest, **words})
    return pro


def log(connection: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Every column but the metadata."""
    return connection.execute(
        "select organization_id, user_id, token_type, feature_used, tokens_deducted,"
        " remaining_balance, created_at, number, units, tokens_waived, reservation_id, held,"
        " returned, idempotency_key, request_hash, metadata_digest, hash_version, hash"
        " from ai_token_usage_log order by id"
    ).fetchall()


def remains(connection: psycopg.Connection, user: UUID) -> tuple[int, int, int]:
    """How many rows of a person still have metadata: log, reservations, quests."""
    row = connection.execute(
        "select (select count(*) from ai_token_usage_log where user_id = %(user)s"
        "   and metadata is not null),"
        " (select count(*) from ai_token_reservations where user_id = %(user)s"
        "   and metadata is not null),"
        " (select count(*) from quests where created_by = %(user)s and metadata <> '{}')",
        {"user": user},
    ).fetchone()
    assert row is not None
    return row


@pytest.mark.usefixtures("books_close")
def test_it_takes_out_one_person_s_and_nothing_else(
    tokens: Tokens, owner: psycopg.Connection, used: Person, other: Person
) -> None:
    before = log(owner)
    assert remains(owner, used[1]) == (2, 2, 1)
    found = tokens.erase(*used, **WHY)
    assert (found.log_entries, found.reservations, found.quests) == (2, 2, 1)
    assert remains(owner, used[1]) == (0, 0, 0)
    assert remains(owner, other[1]) == (1, 0, 1)
    assert log(owner) == before


def test_it_is_on_record(tokens: Tokens, owner: psycopg.Connection, used: Person) -> None:
    tokens.erase(*used, **WHY)
    events = owner.execute(
        "select token_type, actor, reason, subject_id, data, balance_change, used_change"
        " from ai_token_events where kind = 'metadata_erased' order by token_type"
    ).fetchall()
    wrote = ("privacy desk", "request 12", used[1], {"log_entries": 1}, 0, 0)
    assert events == [("general", *wrote), ("goal_generation", *wrote)]
    changes = owner.execute(
        "select organization_id, actor, reason, after from ai_token_changes"
        " where action = 'erase_metadata'"
    ).fetchall()
    counted = {"user_id": str(used[1]), "log_entries": 2, "reservations": 2, "quests": 1}
    assert changes == [(used[0], "privacy desk", "request 12", counted)]


@pytest.mark.usefixtures("books_close")
def test_a_second_time_finds_what_came_since(tokens: Tokens, used: Person) -> None:
    tokens.erase(*used, **WHY)
    assert tokens.erase(*used, **WHY).log_entries == 0
    tokens.deduct_tokens(*used, "generate_goal", metadata={"prompt": "later"})
    assert tokens.erase(*used, **WHY).log_entries == 1


@pytest.mark.usefixtures("books_close")
def test_a_live_hold_is_charged_without_its_metadata(
    tokens: Tokens, owner: psycopg.Connection, pro: Person
) -> None:
    hold = tokens.reserve(*pro, "generate_goal", metadata={"prompt": "a name"})
    tokens.erase(*pro, **WHY)
    tokens.deduct(hold)
    assert remains(owner, pro[1]) == (0, 0, 0)


@pytest.mark.usefixtures("books_close")
def test_a_deleted_person_and_a_deleted_organization(
    tokens: Tokens, owner: psycopg.Connection, used: Person, other: Person
) -> None:
    owner.execute("delete from user_profiles")
    assert tokens.erase(*used, **WHY).log_entries == 2
    owner.execute("delete from organizations")
    assert tokens.erase(*other, **WHY).log_entries == 1
    assert remains(owner, other[1]) == (0, 0, 0)


@pytest.mark.usefixtures("books_close")
def test_nobody_is_no_erasure(
    tokens: Tokens, owner: psycopg.Connection, used: Person, join: Callable[[str], Person]
) -> None:
    before = owner.execute("select * from ai_token_changes").fetchall()
    stranger = join("pro")[1]
    for unknown in (uuid4(), stranger):
        with pytest.raises(NotAMember):
            tokens.erase(used[0], unknown, **WHY)
    assert owner.execute("select * from ai_token_changes").fetchall() == before
    # A member who never did anything is somebody.
    idle = tokens.add_member(used[0], "An idle member", "idle@example.org")
    assert tokens.erase(used[0], idle, **WHY).log_entries == 0


def test_rows_of_the_old_system(
    tokens: Tokens, owner: psycopg.Connection, pro: Person, token_database: TestDatabase
) -> None:
    owner.execute(
        "insert into organizations (id, name, plan) values (%s, 'Old', 'pro')", (uuid4(),)
    )
    organization = owner.execute("select id from organizations where name = 'Old'").fetchone()
    assert organization is not None
    user = tokens.add_member(organization[0], "A member", "old@example.org")
    owner.execute(
        "insert into ai_token_usage_log (organization_id, user_id, token_type, feature_used,"
        " tokens_deducted, remaining_balance, metadata)"
        " values (%s, %s, 'general', 'generate_insight', 1, 49, '{\"prompt\": \"a name\"}')",
        (organization[0], user),
    )
    tokens.initialize_tokens(organization[0])
    assert tokens.verify().closed
    assert tokens.erase(organization[0], user, **WHY).log_entries == 1
    assert remains(owner, user) == (0, 0, 0)


def test_who_asks_and_why_must_be_said(tokens: Tokens, used: Person) -> None:
    with pytest.raises(InvalidInput, match="reason"):
        tokens.erase(*used, actor="privacy desk", reason=" ")
    with pytest.raises(UnknownOrganization):
        tokens.erase(uuid4(), used[1], **WHY)


# Only the function, and only the metadata ---------------------------------------------------------

REFUSED = [
    "update ai_token_usage_log set metadata = null where metadata is not null",
    "update ai_token_usage_log set metadata = '{}' where metadata is not null",
    """update ai_token_usage_log set metadata = null, metadata_digest = null
    where metadata is not null""",
    "update ai_token_usage_log set tokens_deducted = 0",
    "delete from ai_token_usage_log",
]


def test_the_owner_by_hand_changes_nothing(
    tokens: Tokens, owner: psycopg.Connection, used: Person
) -> None:
    before = log(owner)
    for statement in REFUSED:
        with pytest.raises(psycopg.Error, match="append-only"):
            owner.execute(statement.encode())
    assert log(owner) == before
    assert remains(owner, used[1]) == (2, 2, 1)


def test_an_entry_opens_the_door_for_its_person_and_its_past_alone(
    tokens: Tokens, owner: psycopg.Connection, used: Person, other: Person
) -> None:
    by_hand = b"update ai_token_usage_log set metadata = null where number = %s"
    by_hand += b" and token_type = 'goal_generation'"
    tokens.erase(*other, **WHY)
    with pytest.raises(psycopg.Error, match="append-only"):
        owner.execute(by_hand, (1,))  # somebody else's
    tokens.erase(*used, **WHY)
    later = tokens.deduct_tokens(*used, "generate_goal", metadata={"prompt": "later"})
    assert later.remaining_balance == 8
    with pytest.raises(psycopg.Error, match="append-only"):
        owner.execute(by_hand, (4,))  # what came after it
    assert remains(owner, used[1])[0] == 1


def test_another_column_does_not_slip_through_with_it(
    tokens: Tokens, owner: psycopg.Connection, pro: Person
) -> None:
    """Even where the entry stands already, as it does inside the function."""
    tokens.deduct_tokens(*pro, "generate_goal", metadata={"prompt": "a name"})
    with owner.transaction(force_rollback=True):
        owner.execute(
            "select tokenlib.store_wallet(tokenlib.append_event(w, 'metadata_erased',"
            " tokenlib.clock(), p_subject => %s), tokenlib.clock()) from ai_tokens w"
            " where token_type = 'goal_generation'",
            (pro[1],),
        )
        for column in (b"tokens_deducted = 1", b"created_at = now()", b"metadata_digest = null"):
            with pytest.raises(psycopg.Error, match="append-only"), owner.transaction():
                owner.execute(b"update ai_token_usage_log set metadata = null, " + column)
        owner.execute("update ai_token_usage_log set metadata = null")


@pytest.fixture
def admin(token_database: TestDatabase) -> Iterator[psycopg.Connection]:
    with token_database.connect("postgres") as connection:
        connection.execute("alter table ai_token_usage_log disable trigger append_only")
        yield connection


def test_verify_finds_metadata_that_went_without_an_entry(
    tokens: Tokens, admin: psycopg.Connection, used: Person, other: Person
) -> None:
    tokens.erase(*used, **WHY)
    assert tokens.verify().closed
    admin.execute("update ai_token_usage_log set metadata = null")
    [problem] = tokens.verify().problems
    assert (problem.kind, problem.entry) == ("metadata_missing", "log 2")


def test_the_member_and_the_service_change_nothing(
    token_database: TestDatabase, tokens: Tokens, used: Person
) -> None:
    with token_database.connect("tokenlib_service") as service:
        for statement in REFUSED:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                service.execute(statement.encode())
        service.execute("set role authenticated")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            service.execute("select tokenlib.erase_metadata(%s, %s, 'me', 'mine')", used)


def test_an_erasure_waits_for_a_charge_and_covers_it(
    tokens: Tokens, token_database: TestDatabase, owner: psycopg.Connection, pro: Person
) -> None:
    tokens.deduct_tokens(*pro, "generate_goal", metadata={"prompt": "a name"})
    with token_database.connect("tokenlib_service") as charging:
        charging.execute("begin")
        charging.execute(
            "select tokenlib.deduct(%s, %s, 'generate_goal', 1, '{\"a\": 1}', null, false, null)",
            pro,
        )
        with token_database.connect("tokenlib_service") as erasing:
            erasing.execute("set lock_timeout = '200ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                erasing.execute("select tokenlib.erase_metadata(%s, %s, 'me', 'mine')", pro)
        charging.execute("commit")
    assert tokens.erase(*pro, **WHY).log_entries == 2
    assert tokens.verify().closed


def test_an_erasure_waits_for_whoever_deducts_a_hold(
    tokens: Tokens, token_database: TestDatabase, owner: psycopg.Connection, pro: Person
) -> None:
    """The hold is all that the wallet has of the person: what it says goes to the log, and then."""
    held = tokens.reserve(*pro, "generate_goal", metadata={"prompt": "a name"})
    with (
        token_database.connect("tokenlib_service") as charging,
        token_database.connect("tokenlib_service") as erasing,
        ThreadPoolExecutor(1) as thread,
    ):
        charging.execute("begin")
        charging.execute(
            "select tokenlib.deduct_reservation(%s, %s, null, null)", (pro[0], held.id)
        )
        erase = "select tokenlib.erase_metadata(%s, %s, 'privacy desk', 'request 12')"
        erased = thread.submit(erasing.execute, erase, pro)
        while owner.execute("select count(*) from pg_locks where not granted").fetchone() == (0,):
            assert not erased.done()
        charging.execute("commit")
        erased.result(30)
    assert remains(owner, pro[1]) == (0, 0, 0)
    assert tokens.verify().closed
