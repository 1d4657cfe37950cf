"""Old log rows out of the database, into Parquet files that the books still vouch for.

Each file has the first entries of some wallets, whole rows in their order. In the books an entry
of the wallet says which file, and the hash where its chain goes on: so a file is proved bit by bit
from the chain, and may lie anywhere. A file that no entry names is left of a run that was
interrupted before its commit; its rows are still in the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import psycopg
import sqlalchemy as sa
from psycopg.rows import DictRow, dict_row

from tokenlib.db import Database, statements, translate
from tokenlib.domain import Problem
from tokenlib.errors import ConfigurationError, InvalidInput

_FILE_ROWS, _FILE_WALLETS = 20_000, 500
# What a wallet's log has, in the order of `rows`.
_TEXT = (
    "id",
    "organization_id",
    "user_id",
    "token_type",
    "feature_used",
    "metadata",
    "reservation_id",
    "idempotency_key",
)
_BYTES = ("request_hash", "metadata_digest", "hash")
COLUMNS = (
    "id",
    "organization_id",
    "user_id",
    "token_type",
    "feature_used",
    "tokens_deducted",
    "remaining_balance",
    "metadata",
    "created_at",
    "number",
    "units",
    "tokens_waived",
    "reservation_id",
    "held",
    "returned",
    "idempotency_key",
    "request_hash",
    "metadata_digest",
    "hash_version",
    "hash",
)


@dataclass(frozen=True, slots=True)
class Archived:
    """What one run moved out of the log. `files` are their names, in the order of organizations."""

    rows: int
    wallets: int
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """Entries of one wallet that go into one file."""

    organization_id: UUID
    token_type: str
    first: int
    through: int


def archive(
    url: str,
    folder: Path,
    before: datetime,
    *,
    actor: str,
    progress: Callable[[int, int], None] | None = None,
) -> Archived:
    """Move log rows from before a time into Parquet files in `folder`, as the owner.

    At least 92 days old: what can still be refunded within its period, retried, or asked about by
    the console's ranges stays. Each file is complete and on disk before its rows go, in one
    transaction with the entries that say so; a run that is interrupted has archived whole files,
    and the next one goes on. Charges of a wallet wait while its rows are taken out, about a second.
    `progress(done, total)` counts rows. Raises InvalidInput for a time that is too near or has no
    zone, ConfigurationError without pyarrow, PermissionDenied, DatabaseUnavailable.
    """
    if before.tzinfo is None:
        raise InvalidInput("before", "must have a time zone")
    _arrow()
    named = statements("archives")
    folder.mkdir(parents=True, exist_ok=True)
    rows, wallets, files = 0, set[tuple[UUID, str]](), list[str]()
    with _owner(url) as connection:
        if _one(connection, named["too_young"], {"before": before})["too_young"]:
            raise InvalidInput("before", "must be at least 92 days ago")
        psycopg.ClientCursor(connection).execute(named["due"], {"before": before})
        connection.execute(named["analyze_due"])
        total = _one(connection, named["due_rows"])["rows"]
        for parts in _files(connection):
            name = f"log-before-{before:%Y-%m-%d}-{uuid4()}.parquet"
            rows += _move(connection, folder, name, parts, actor)
            wallets |= {(part.organization_id, part.token_type) for part in parts}
            files.append(name)
            if progress is not None:
                progress(rows, total)
    return Archived(rows, len(wallets), tuple(files))


def roll_up(
    url: str, folder: Path, *, progress: Callable[[int, int], None] | None = None
) -> datetime | None:
    """Make the rollups of the archived time anew, from the log and the files in `folder`, as the
    owner; returns up to when, None where nothing is archived.

    `close_usage` goes on from there. Each file is proved first, as `verify` does. One transaction:
    reports stand on the old rollups until it is committed, charges go on, and the rows take room
    in temporary files meanwhile. `progress(done, total)` counts files. Raises InvalidInput for
    files that are missing or not what their entries say, DatabaseUnavailable while usage is not
    closed beyond the archived time, ConfigurationError without pyarrow, PermissionDenied.
    """
    _arrow()
    named = statements("archives")
    with _owner(url) as connection, connection.transaction():
        until: datetime | None = _one(connection, named["archived_to"])["until"]
        if until is None:
            return None
        connection.execute(named["stage"])
        connection.execute(named["whole_log"])
        files = connection.execute(named["files"], {"only": None}).fetchall()
        for done, row in enumerate(files, 1):
            name = row["file"]
            try:
                stage(connection, folder / Path(name).name)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "is no archive of tokenlib"
                raise InvalidInput("archive", f"{name}: {reason}") from None
            params = {"file": name, "only": None}
            if wrong := connection.execute(named["against_file"], params).fetchone():
                raise InvalidInput("archive", f"{name}: {wrong['entry']}: {wrong['detail']}")
            connection.execute(named["into_whole_log"])
            connection.execute(named["next_file"])
            if progress is not None:
                progress(done, len(files))
        for step in ("index_by_time", "index_by_user", "analyze_whole_log"):
            connection.execute(named[step])
        connection.execute(named["roll_up"], {"until": until})
    return until


def _move(
    connection: psycopg.Connection[DictRow],
    folder: Path,
    name: str,
    parts: list[_Part],
    actor: str,
) -> int:
    """One file, and its rows out of the log, in this order: nothing goes that is not kept."""
    named = statements("archives")
    with connection.transaction():
        found = connection.execute(
            named["rows"],
            {
                "organizations": [part.organization_id for part in parts],
                "token_types": [part.token_type for part in parts],
                "firsts": [part.first for part in parts],
                "throughs": [part.through for part in parts],
            },
        ).fetchall()
        _write(folder / name, found)
        documents: dict[tuple[str, str], int] = {}
        for row in found:
            wallet = row["organization_id"], row["token_type"]
            documents[wallet] = documents.get(wallet, 0) + (row["metadata"] is not None)
        for part in parts:
            params = {
                "organization_id": part.organization_id,
                "token_type": part.token_type,
                "through": part.through,
                "documents": documents.get((str(part.organization_id), part.token_type), 0),
                "file": name,
                "actor": actor,
            }
            connection.execute(named["archive"], params)
    return len(found)


def _files(connection: psycopg.Connection[DictRow]) -> Iterator[list[_Part]]:
    """What is due, cut into files: by rows, so that a large wallet is spread over several."""
    parts: list[_Part] = []
    room = _FILE_ROWS
    for row in _due(connection):
        first, through = row["first"], row["through"]
        while first <= through:
            last = min(through, first + room - 1)
            parts.append(_Part(row["organization_id"], row["token_type"], first, last))
            room -= last - first + 1
            first = last + 1
            if room == 0 or len(parts) == _FILE_WALLETS:
                yield parts
                parts, room = [], _FILE_ROWS
    if parts:
        yield parts


def _due(connection: psycopg.Connection[DictRow]) -> Iterator[DictRow]:
    last: dict[str, Any] = {"organization_id": UUID(int=0), "token_type": ""}
    named = statements("archives")
    while rows := connection.execute(named["next_due"], {**last, "limit": 1000}).fetchall():
        yield from rows
        last = {name: rows[-1][name] for name in last}


def _write(path: Path, rows: list[DictRow]) -> None:
    """A file that stands under its name only once it is complete and on disk."""
    arrow = _arrow()
    from pyarrow import parquet  # type: ignore[import-untyped]  # ships no types

    def kind(name: str) -> Any:
        if name in _TEXT:
            return arrow.string()
        if name in _BYTES:
            return arrow.binary()
        return arrow.timestamp("us", tz="UTC") if name == "created_at" else arrow.int64()

    schema = arrow.schema([(name, kind(name)) for name in COLUMNS])
    columns = [[row[name] for row in rows] for name in COLUMNS]
    table = arrow.table(
        [arrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )
    begun = path.with_name(f".{path.name}")
    try:
        descriptor = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            parquet.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        begun.rename(path)
    finally:
        begun.unlink(missing_ok=True)
    there = os.open(path.parent, os.O_RDONLY)
    os.fsync(there)
    os.close(there)


def read(path: Path) -> Iterator[tuple[Any, ...]]:
    """The rows of a file, in the order of COLUMNS.

    Raises ConfigurationError without pyarrow, OSError for a file that cannot be read, ValueError
    for one that is no archive.
    """
    _arrow()
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=5_000, columns=list(COLUMNS)):
            columns = batch.to_pydict()
            if set(columns) != set(COLUMNS):
                raise ValueError("columns are missing")
            yield from zip(*(columns[name] for name in COLUMNS), strict=True)


def stage(connection: psycopg.Connection[Any], path: Path) -> None:
    """Copy a file into the temporary table `archived_log`, which has the columns of the log."""
    statement = f"copy pg_temp.archived_log ({', '.join(COLUMNS)}) from stdin"
    with connection.cursor().copy(statement) as copy:
        for row in read(path):
            copy.write_row(row)


def problems(database: Database, folder: Path, only: UUID | None) -> Iterator[Problem]:
    """What the files in `folder` are not, though the books say so: a file at a time."""
    _arrow()
    named = statements("archives")
    found: Sequence[Mapping[Any, Any]]
    for row in database.rows(named["files"], {"only": only}):
        params = {"file": row["file"], "only": only}
        try:
            with database.transaction() as connection:
                connection.exec_driver_sql(statements("audit")["unbounded"])
                connection.exec_driver_sql(named["stage"])
                # The name comes from the books, and leads nowhere but into the folder.
                stage(_driver(connection), folder / Path(row["file"]).name)
                found = connection.exec_driver_sql(named["against_file"], params).mappings().all()
        except (OSError, ValueError) as error:
            params["problem"] = getattr(error, "strerror", None) or "is no archive of tokenlib"
            found = database.rows(named["without_file"], params)
        for problem in found:
            yield Problem(**problem)


def _driver(connection: sa.Connection) -> psycopg.Connection[Any]:
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]  # by our dialect
    return driver


@contextmanager
def _owner(url: str) -> Iterator[psycopg.Connection[DictRow]]:
    plain = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with psycopg.connect(
            plain,
            autocommit=True,
            row_factory=dict_row,
            options="-c timezone=UTC -c statement_timeout=0",
            application_name="tokenlib archive",
        ) as connection:
            yield connection
    except psycopg.Error as error:
        raise translate(error) from error


def _one(
    connection: psycopg.Connection[DictRow], statement: str, params: dict[str, Any] | None = None
) -> DictRow:
    row = connection.execute(statement, params).fetchone()
    if row is None:
        raise psycopg.DataError("a question had no answer")
    return row


def _arrow() -> ModuleType:
    try:
        import pyarrow
    except ImportError:
        raise ConfigurationError(
            "An archive needs pyarrow, which is not installed. Install tokenlib-ai[archive]."
        ) from None
    module: ModuleType = pyarrow
    return module
