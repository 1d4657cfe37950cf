"""Old log rows in files: the books still close, the files are proved, and nothing goes unkept."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from pyarrow import parquet  # type: ignore[import-untyped]  # ships no types

from tests.db.archiving import CUT, Old
from tests.db.crowd import Crowd
from tests.db.demo_loaded import OWNER
from tokenlib import (
    IdempotencyConflict,
    PermissionDenied,
    ReservationOver,
    Tokens,
    UnknownUsage,
    Usage,
    archives,
    demo,
)
from tokenlib.archives import archive
from tokenlib.errors import InvalidInput
from tokenlib.reports import Reports
from tokenlib.testing import TestDatabase


def rows(connection: psycopg.Connection) -> int:
    row = connection.execute("select count(*) from ai_token_usage_log").fetchone()
    assert row is not None
    return int(row[0])


def test_old_rows_go_into_files_and_the_books_close(
    old: Old, owner: psycopg.Connection, tmp_path: Path
) -> None:
    whole = owner.execute(
        f"select {', '.join(archives.COLUMNS)} from ai_token_usage_log"  # noqa: S608
        " where created_at < %s order by organization_id, token_type, number",
        (CUT,),
    ).fetchall()
    stats = old.tokens.get_token_stats(old.person[0])
    found = old.archive()
    assert (found.rows, found.wallets, len(found.files)) == (11, 3, 1)
    assert rows(owner) == 2
    assert old.kinds() == set()
    assert old.kinds(folder=old.folder) == set()
    assert old.tokens.get_token_stats(old.person[0]) == stats
    [file] = old.folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    with owner.transaction():
        owner.execute(
            "create temporary table archived_log (like ai_token_usage_log) on commit drop"
        )
        archives.stage(owner, file)
        again = owner.execute(
            f"select {', '.join(archives.COLUMNS)} from archived_log"  # noqa: S608
            " order by organization_id, token_type, number"
        ).fetchall()
    assert again == whole


def test_charges_and_archives_go_on_after_it(old: Old, owner: psycopg.Connection) -> None:
    old.archive()
    old.tokens.deduct_tokens(*old.person, "generate_goal")
    assert old.archive().rows == 0
    assert old.archive(datetime(2026, 4, 20, tzinfo=UTC)).rows == 2
    assert rows(owner) == 1
    assert old.kinds(folder=old.folder) == set()
    assert old.tokens.verify(old.person[0], archive=old.folder).closed


def test_a_wallet_may_be_archived_to_its_last_entry(
    old: Old, owner: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_FILE_ROWS", 3)  # a wallet of 8 is cut into several files
    found = old.archive(datetime(2026, 4, 20, tzinfo=UTC))
    assert (found.rows, len(found.files)) == (13, 5)
    assert rows(owner) == 0
    assert old.kinds(folder=old.folder) == set()
    assert old.tokens.deduct_tokens(*old.person, "generate_goal").remaining_balance == 17
    assert old.kinds() == set()


def test_an_archived_key_is_not_charged_again(old: Old) -> None:
    old.archive()
    balance = old.tokens.get_token_balance(old.person[0], "goal_generation").balance
    for key in ("first", "held"):
        with pytest.raises(IdempotencyConflict):
            old.tokens.deduct_tokens(*old.person, "generate_goal", idempotency_key=key)
        with pytest.raises(IdempotencyConflict):
            old.tokens.reserve(*old.person, "generate_goal", idempotency_key=key)
        with pytest.raises(IdempotencyConflict):
            old.tokens.grant(old.person[0], "general", 5, idempotency_key=key)
    with pytest.raises(ReservationOver, match="deducted and archived"):
        old.tokens.deduct(old.hold)
    assert old.tokens.get_token_balance(old.person[0], "goal_generation").balance == balance
    again = old.tokens.deduct_tokens(*old.person, "generate_goal", idempotency_key="later")
    assert again.replayed


def test_an_archived_key_is_not_charged_again_in_company(
    old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    old.archive()
    old.tokens.get_all_token_balances(old.person[0])

    def charge(key: str) -> Callable[[], Usage]:
        return partial(
            old.tokens.deduct_tokens, *old.person, "generate_insight", idempotency_key=key
        )

    crowd = Crowd(monkeypatch)
    first, new = crowd.run(old.tokens, [charge("first"), charge("new")])
    assert isinstance(first, IdempotencyConflict)
    assert not new.replayed


def test_a_refund_of_an_archived_charge_says_why_not(old: Old) -> None:
    with pytest.raises(UnknownUsage, match="There is no usage"):
        old.tokens.refund(uuid4(), "unusable", organization=old.person[0])
    old.archive()
    with pytest.raises(UnknownUsage, match="charged until 2026-03-01 is archived"):
        old.tokens.refund(old.first, "unusable")


@pytest.mark.parametrize(
    "before",
    [datetime(2026, 4, 30, tzinfo=UTC), datetime(2026, 4, 1)],  # noqa: DTZ001
    ids=["too young", "naive"],
)
def test_a_time_that_is_too_near_or_has_no_zone_is_refused(
    old: Old, owner: psycopg.Connection, before: datetime
) -> None:
    with pytest.raises(InvalidInput, match="before must"):
        old.archive(before)
    assert rows(owner) == 13


def test_the_database_itself_keeps_what_is_younger(old: Old, owner: psycopg.Connection) -> None:
    owner.execute("update tokenlib.test_clock set stopped_at = '2026-06-01'")
    call = "select tokenlib.archive_log(%s, 'goal_generation', 2, 1, 'a file', 'nobody')"
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="92 days"):
        owner.execute(call, (old.person[0],))
    assert rows(owner) == 13


def test_nobody_but_the_owner_can(old: Old, token_database: TestDatabase) -> None:
    call = "select tokenlib.archive_log(%s, 'goal_generation', 2, 1, 'a file', 'nobody')"
    with token_database.connect("tokenlib_service") as service:
        for statement, values in ((call, (old.person[0],)), (DELETE, ())):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), service.transaction():
                service.execute(statement, values)
    with pytest.raises(PermissionDenied):
        archive(token_database.url("tokenlib_service"), old.folder, CUT, actor="nobody")
    assert old.kinds() == set()


DELETE = b"delete from ai_token_usage_log where number = 1"
ANCHORED = (
    b"select tokenlib.store_wallet(tokenlib.append_event(w, 'archived', tokenlib.clock(),"
    b" p_data => '{\"through\": 2}'), tokenlib.clock()) from ai_tokens w"
    b" where token_type = 'goal_generation' and log_number > 0"
)


def test_no_row_goes_without_its_entry(
    old: Old, owner: psycopg.Connection, token_database: TestDatabase
) -> None:
    with pytest.raises(psycopg.Error, match="append-only"):
        owner.execute(DELETE)
    with owner.transaction(force_rollback=True):
        owner.execute(ANCHORED)
        for condition in (b"number = 3", b"number = 1"):
            # What comes after the entry, and what is another wallet's.
            with pytest.raises(psycopg.Error, match="append-only"), owner.transaction():
                owner.execute(b"delete from ai_token_usage_log where " + condition)
        only = b" and token_type = 'goal_generation'"
        with owner.transaction(force_rollback=True):
            assert owner.execute(DELETE + only).rowcount == 1
        with pytest.raises(psycopg.Error, match="append-only"), owner.transaction():
            owner.execute(b"update ai_token_usage_log set held = 1 where number = 1" + only)
        # Right after its entry, and not later.
        owner.execute(ANCHORED.replace(b"archived", b"finding_settled"))
        with pytest.raises(psycopg.Error, match="append-only"), owner.transaction():
            owner.execute(DELETE + only)
    old.archive()
    old.tokens.deduct_tokens(*old.person, "generate_goal")
    with pytest.raises(psycopg.Error, match="append-only"):
        owner.execute(b"delete from ai_token_usage_log where number = 3")
    with (
        token_database.connect("postgres") as superuser,
        superuser.transaction(force_rollback=True),
    ):
        superuser.execute(ANCHORED.replace(b"2", b"9"))
        with pytest.raises(psycopg.Error, match="append-only"), superuser.transaction():
            superuser.execute(DELETE.replace(b"1", b"3"))


def test_an_erasure_in_between_stops_it(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    write = archives._write

    def meanwhile(path: Path, found: list[dict[str, object]]) -> None:
        write(path, found)
        old.tokens.erase(*old.person, actor="privacy desk", reason="request 12")

    monkeypatch.setattr(archives, "_write", meanwhile)
    with pytest.raises(Exception, match="changed while it was archived"):
        old.archive()
    monkeypatch.undo()
    assert old.archive().rows == 11
    assert old.kinds(folder=old.folder) == set()
    texts = [value for file in old.folder.iterdir() for value in _column(file, "metadata")]
    assert texts.count('{"q": "Q1"}') == 1  # in the file that no entry names


def test_an_archive_that_ends_before_its_commit_took_nothing_out(
    old: Old, owner: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_path: Path, _rows: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, "_FILE_ROWS", 6)
    done = archives._write
    monkeypatch.setattr(
        archives,
        "_write",
        lambda path, found: killed(path, found) if any(old.folder.iterdir()) else done(path, found),
    )
    with pytest.raises(KeyboardInterrupt):
        old.archive()
    assert rows(owner) == 7
    assert old.kinds(folder=old.folder) == set()
    monkeypatch.undo()
    assert old.archive().rows == 5
    assert old.kinds(folder=old.folder) == set()


def _column(file: Path, name: str) -> list[object]:
    values: list[object] = parquet.read_table(file).column(name).to_pylist()
    return values


def test_the_questions_answer_as_before(
    token_database: TestDatabase, tokens: Tokens, tmp_path: Path
) -> None:
    size = demo.Size(3_000, organizations=40, users=120)
    demo.load_rows(token_database.url(OWNER), tokens, size)
    reports = Reports(tokens.database)
    now = datetime.now(UTC)

    def answers(*days: int) -> list[object]:
        found: list[object] = []
        for since in (now - timedelta(days=n) for n in days):
            found.append(reports.usage_by_feature(since, now))
            found.append(reports.top_organizations(since, now))
            found.append(reports.usage_by_day(since, now))
        return found

    def closed(*, anew: bool = False) -> bool:
        tokens.close_usage(anew=anew)
        return tokens.close_usage() is not None

    recent = answers(7, 30, 90)
    assert closed()
    everything = answers(119)
    before = (now - timedelta(days=92)).replace(hour=0, minute=0, second=0, microsecond=0)
    assert archive(token_database.url(OWNER), tmp_path, before, actor="keeper").rows > 100
    assert answers(7, 30, 90) == recent
    assert tokens.verify(archive=tmp_path).closed
    assert answers(119)[0] == everything[0]  # the rollups know it still
    assert closed(anew=True)
    assert answers(7, 30, 90) == recent
