"""What verify finds of an archive: edited files, missing rows, edited anchors, and nothing else."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pyarrow as pa  # type: ignore[import-untyped]  # ships no types
import pytest
from pyarrow import parquet

from tests.db.archiving import CUT, Old
from tokenlib.testing import TestClock, TestDatabase

CHANGES: dict[str, tuple[str, object]] = {
    "tokens_deducted": ("tokens_deducted", 1),
    "created_at": ("created_at", CUT),
    "user_id": ("user_id", str(uuid4())),
    "request_hash": ("request_hash", b"1"),
    "hash": ("hash", b"1"),
    "metadata": ("metadata", '{"q": "Q2"}'),
    "idempotency_key": ("idempotency_key", "another"),
    "reservation_id": ("reservation_id", str(uuid4())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_verify_finds_an_archived_row_that_was_edited(old: Old, change: str) -> None:
    old.archive()
    [file] = old.folder.iterdir()
    table = parquet.read_table(file)
    name, value = CHANGES[change]
    column = table.column(name).to_pylist()
    # The charge that has every field: with key and metadata, or the one that was held.
    place = (
        table.column("idempotency_key")
        .to_pylist()
        .index("held" if change == "reservation_id" else "first")
    )
    assert column[place] != value
    column[place] = value
    kind = table.schema.field(name).type
    index = table.schema.get_field_index(name)
    parquet.write_table(table.set_column(index, name, pa.array(column, kind)), file)
    expected = "metadata_differs" if change == "metadata" else "log_hash_differs"
    assert expected in old.kinds(folder=old.folder)


def test_verify_finds_an_archived_row_that_is_gone_or_too_much(old: Old) -> None:
    old.archive()
    [file] = old.folder.iterdir()
    table = parquet.read_table(file)
    for place in (0, 4, table.num_rows - 1):
        kept = [number for number in range(table.num_rows) if number != place]
        parquet.write_table(table.take(kept), file)
        assert "archive_differs" in old.kinds(folder=old.folder)
    parquet.write_table(pa.concat_tables([table, table.slice(0, 1)]), file)
    assert "log_number_gap" in old.kinds(folder=old.folder)
    file.write_bytes(b"no Parquet")
    assert old.kinds(folder=old.folder) == {"archive_missing"}
    file.unlink()
    found = old.tokens.verify(archive=old.folder)
    assert {problem.kind for problem in found.problems} == {"archive_missing"}
    assert len(found.problems) == 3
    assert old.kinds() == set()


SUMS = "update ai_token_events set data = data || '{\"balance_after\": 1}' where kind = 'archived'"
HASH = "update ai_token_events set data = data || '{\"hash\": \"00\"}' where kind = 'archived'"
KEY_USED = (
    "insert into ai_token_archived_keys select organization_id, 'later' from ai_token_events"
    " where kind = 'archived' and token_type = 'goal_generation'"
)
AGAIN = (
    "insert into ai_token_usage_log (organization_id, token_type, feature_used, tokens_deducted,"
    " remaining_balance, number, hash_version)"
    " select organization_id, token_type, feature_used, 0, 17, 2, 1 from ai_token_usage_log"
    " where token_type = 'goal_generation'"
)
NEXT_GONE = {"log_head_differs", "wallet_differs_from_entries", "balance_after_differs"}
PUT_BACK = {
    "archived_and_there",
    "log_hash_differs",
    "log_number_gap",
    "log_head_differs",
    "balance_after_differs",
}


@pytest.mark.parametrize(
    ("statement", "kinds"),
    [
        # The entry is an entry like others: its chain finds it, whatever was edited.
        (
            SUMS,
            {"event_hash_differs", "balance_after_differs"},
        ),
        (
            HASH,
            {"event_hash_differs", "log_hash_differs", "log_head_differs"},
        ),
        (
            "update ai_token_events set data = data || '{\"first\": 2}' where kind = 'archived'",
            {"event_hash_differs", "archive_gap"},
        ),
        (
            "delete from ai_token_events where kind = 'archived'",
            {
                "event_head_differs",
                "log_number_gap",
                "log_hash_differs",
                "log_head_differs",
                "wallet_differs_from_entries",
                "balance_after_differs",
                "reservation_differs",
                "reservation_terms_differ",
                "last_entry_differs",
            },
        ),
        (
            "delete from ai_token_archived_keys where idempotency_key = 'first'",
            {"archived_keys_differ"},
        ),
        (
            KEY_USED,
            {"archived_keys_differ", "key_used_twice"},
        ),
        ("delete from ai_token_usage_log where number = 3", NEXT_GONE),
        (
            AGAIN,
            PUT_BACK,
        ),
    ],
    ids=["sums", "hash", "first", "gone", "key gone", "key used", "next entry", "put back"],
)
def test_verify_finds_an_anchor_that_was_edited(
    old: Old, statement: str, kinds: set[str], token_database: TestDatabase
) -> None:
    old.archive()
    assert old.kinds(folder=old.folder) == set()
    with token_database.connect("postgres") as superuser:
        for table in ("ai_token_usage_log", "ai_token_events", "ai_token_archived_keys"):
            superuser.execute(f"alter table {table} disable trigger all")
        superuser.execute(statement)
    assert old.kinds() == kinds


def test_what_an_anchor_elsewhere_knew_is_said_to_be_archived(
    old: Old, token_clock: TestClock
) -> None:
    before = io.StringIO()
    old.tokens.anchor(before)
    old.archive(datetime(2026, 4, 20, tzinfo=UTC))  # to the last entry: the hash is in the books
    assert old.tokens.verify(anchor=before.getvalue().splitlines()).closed
    old.tokens.deduct_tokens(*old.person, "generate_goal")
    now = io.StringIO()
    old.tokens.anchor(now)
    token_clock.advance(timedelta(days=120))
    old.tokens.deduct_tokens(*old.person, "generate_goal")
    old.archive(datetime(2026, 8, 1, tzinfo=UTC))
    assert old.tokens.verify(anchor=now.getvalue().splitlines()).closed
    token_clock.advance(timedelta(days=120))
    old.archive(datetime(2026, 12, 1, tzinfo=UTC))
    found = old.tokens.verify(anchor=before.getvalue().splitlines())
    assert found.closed  # each cut is still known by its own entry
