"""Rows for measuring: real books, the same organizations at every size, and nothing half done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.databases import copied
from tests.db.demo_loaded import OWNER
from tokenlib import Tokens, demo, doctor
from tokenlib.db import Database
from tokenlib.demo import PERSONAS, Size, rows
from tokenlib.embedded import Embedded
from tokenlib.errors import ConfigurationError, PermissionDenied
from tokenlib.testing import TestDatabase

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
SIZE = Size(6_000, organizations=150, users=600)


def load(
    database: TestDatabase, tokens: Tokens, size: Size = SIZE, **options: Any
) -> demo.DemoSummary:
    return demo.load_rows(database.url(OWNER), tokens, size, now=NOW, **options)


@dataclass(frozen=True)
class Loaded:
    """A database with rows that no test changes, and what was told while they were loaded."""

    database: TestDatabase
    tokens: Tokens
    told: list[tuple[int, int]]


@pytest.fixture(scope="module")
def loaded(token_server: Embedded) -> Iterator[Loaded]:
    with copied(token_server) as database, Tokens(Database(database.url())) as tokens:
        told: list[tuple[int, int]] = []
        load(database, tokens, progress=lambda done, total: told.append((done, total)))
        yield Loaded(database, tokens, told)


def found(database: TestDatabase, statement: str) -> list[tuple[Any, ...]]:
    with database.connect("postgres") as connection:
        return connection.execute(statement).fetchall()


@pytest.mark.parametrize("slices", [1_000_000, 500], ids=["one slice", "many slices"])
def test_the_books_close_and_hold_every_kind_of_entry(
    token_database: TestDatabase, tokens: Tokens, monkeypatch: pytest.MonkeyPatch, slices: int
) -> None:
    monkeypatch.setattr(rows, "_SLICE_CHARGES", slices)
    summary = load(token_database, tokens)
    assert (summary.organizations, summary.users) == (150, 600)
    assert abs(summary.charges - 6_000) < 150
    verified = tokens.verify()
    assert verified.problems == ()
    assert verified.entries == summary.charges + summary.events
    kinds = found(token_database, "select distinct kind from ai_token_events")
    assert {kind for (kind,) in kinds} == {
        "opening",
        "refresh",
        "grant",
        "reserve",
        "release",
        "hold_expired",
        "refund",
    }
    assert summary.refusals > 50
    shares = found(
        token_database,
        "select count(*) filter (where reservation_id is not null)::float / count(*),"
        " count(idempotency_key)::float / count(*), count(metadata)::float / count(*),"
        " count(*) filter (where returned > 0)"
        " from ai_token_usage_log",
    )
    ((holds, keys, documents, returned),) = shares
    assert 0.01 < holds < 0.03
    assert 0.45 < keys < 0.55
    assert 0.05 < documents < 0.09
    assert returned > 10
    assert found(token_database, "select 1 from ai_token_usage_log where created_at > now()") == []


def test_the_gate_goes_on_from_there(token_database: TestDatabase, tokens: Tokens) -> None:
    load(token_database, tokens)
    ((organization, user, usage, key, feature, balance),) = found(
        token_database,
        "select l.organization_id, l.user_id, l.id, idempotency_key, feature_used,"
        " remaining_balance from ai_token_usage_log l"
        " join user_profiles u on u.id = l.user_id and u.organization_id = l.organization_id"
        " where idempotency_key is not null and metadata is null and reservation_id is null"
        " order by l.created_at desc limit 1",
    )
    again = tokens.deduct_tokens(organization, user, feature, idempotency_key=key)
    assert (again.id, again.replayed, again.remaining_balance) == (usage, True, balance)
    tokens.refund(again, "unusable", actor="support")
    new = tokens.deduct_tokens(organization, user, feature)
    assert not new.replayed
    assert tokens.refresh_tokens() > 0
    assert tokens.verify().problems == ()


def test_the_same_arguments_store_the_same_entries(loaded: Loaded) -> None:
    # What this digest was on another server and day it is on this one.
    ((digest,),) = found(
        loaded.database,
        "select md5(string_agg(encode(log_hash, 'hex') || encode(event_hash, 'hex'), ''"
        " order by organization_id, token_type)) from ai_tokens",
    )
    assert digest == "7c96f9c306925f40044d68fcd9d56fae"


def test_organizations_and_users_are_the_same_at_every_size(
    token_database: TestDatabase, tokens: Tokens
) -> None:
    load(token_database, tokens, Size(1_000, organizations=150, users=600))
    ((digest,),) = found(
        token_database,
        "select md5((select string_agg(o::text, '|' order by id) from organizations o)"
        " || (select string_agg(u::text, '|' order by id) from user_profiles u))",
    )
    assert digest == "3f2ff2f57280ef30d45ed725194cb62c"


def test_the_largest_of_them_makes_much_and_most_make_little(
    token_database: TestDatabase, tokens: Tokens
) -> None:
    load(token_database, tokens, Size(20_000, organizations=2_000, users=8_000))
    counts = [
        count
        for (count,) in found(
            token_database,
            "select count(l.id) from organizations o left join ai_token_usage_log l"
            " on l.organization_id = o.id group by o.id order by 1 desc",
        )
    ]
    assert 0.1 < counts[0] / sum(counts) < 0.2  # of 100,000 organizations it is a tenth
    assert counts[1000] < 5
    ((users, largest),) = found(
        token_database,
        "select sum(n), max(n) from"
        " (select count(*) as n from user_profiles group by organization_id) as members",
    )
    assert users == 8_000
    assert largest < 800


def test_indexes_are_built_again_as_they_were(token_database: TestDatabase, tokens: Tokens) -> None:
    before = doctor.found(tokens.database)
    oldest = (
        "select min(indexrelid::oid::bigint) from pg_index where indrelid in"
        " ('ai_tokens'::regclass, 'ai_token_usage_log'::regclass)"
    )
    was = found(token_database, oldest)
    with token_database.connect("postgres") as connection:
        connection.execute(f"grant create on schema public to {OWNER}")
    load(token_database, tokens)
    assert doctor.found(tokens.database) == before
    assert found(token_database, oldest) > was
    assert tokens.verify().closed


def test_a_load_that_fails_leaves_nothing(
    token_database: TestDatabase, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = doctor.found(tokens.database)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with token_database.connect("postgres") as connection:
        connection.execute(f"grant create on schema public to {OWNER}")
    for step in ("_player", "_create"):
        with monkeypatch.context() as patch:
            patch.setattr(rows, step, fail)
            with pytest.raises(KeyboardInterrupt):
                load(token_database, tokens)
        assert doctor.found(tokens.database) == before
        assert found(token_database, "select 1 from organizations") == []
    assert load(token_database, tokens).fresh


def test_only_an_empty_database_of_the_owner_is_filled(
    token_database: TestDatabase, tokens: Tokens
) -> None:
    with pytest.raises(PermissionDenied):
        demo.load_rows(token_database.url("tokenlib_service"), tokens, SIZE)
    tokens.create_organization("Mine", "pro")
    with pytest.raises(ConfigurationError, match="holds organizations already"):
        load(token_database, tokens)


def test_the_personas_can_sign_in_and_there_is_nothing_to_reset(loaded: Loaded) -> None:
    assert demo.loaded(loaded.tokens)
    member = PERSONAS["member"]
    assert found(
        loaded.database,
        "select organization_id from user_profiles where email like '%.000002-1@example.org'"
        " union all select id from user_profiles where email like '%.000002-1@example.org'",
    ) == [(member.organization_id,), (member.user_id,)]
    assert found(loaded.database, "select count(*) from tokenlib_staff") == [(2,)]
    with pytest.raises(ConfigurationError, match="rows for measuring"):
        demo.reset(loaded.database.url(OWNER), loaded.tokens)


def test_progress_goes_up_to_all(loaded: Loaded) -> None:
    assert loaded.told == sorted(loaded.told)
    assert loaded.told[-1] == (18_000, 18_000)
