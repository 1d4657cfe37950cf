"""Take the database of the old token system into tokenlib: in place, in one transaction.

The two old tables keep their names, columns and rows. What let members write, or deleted log rows
together with users, goes; our columns, keys and rules come; each wallet gets an opening entry that
keeps what can be spent, and what was wrong with its figures becomes a finding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from typing import Literal
from uuid import UUID

import sqlalchemy as sa

from tokenlib import migrations
from tokenlib.db import SCHEMA_VERSION, statements
from tokenlib.errors import ConfigurationError
from tokenlib.snapshot import packaged

_BOOKS = {"ai_tokens", "ai_token_usage_log"}
_HOST = {"organizations", "user_profiles", "quests"}
# What opening the books writes down itself; the others are written here.
_FOUND_BY_OPENING = {
    "emergency_balance",
    "balance_above_allocated",
    "used_differs_from_log",
    "log_of_deleted_users",
}


@dataclass(frozen=True, slots=True)
class Found:
    """One fault of the old figures. The usable balance is kept all the same."""

    organization_id: UUID
    token_type: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Adoption:
    """What `adopt` found and did, or with `dry_run` would do.

    `before` says what the database was: the old system's, or tokenlib's already.
    """

    before: Literal["old", "tokenlib"]
    dry_run: bool
    wallets: int = 0
    log_rows: int = 0
    steps: tuple[str, ...] = ()
    findings: tuple[Found, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything in the database is different now."""
        return self.before != "tokenlib" and not self.dry_run


def adopt(url: str, *, dry_run: bool = False) -> Adoption:
    """Make the database at `url` tokenlib's, as its owner. A second time it does nothing.

    With `dry_run` it reads only, blocks nobody, and says what it would do and what it found. Else
    the old tables are locked while it runs, and nothing has changed if it fails. Raises
    ConfigurationError, which names every difference, for a database that is neither the old
    system's nor tokenlib's, and DatabaseUnavailable when the tables stay in use.
    """
    return migrations.in_transaction(url, lambda connection: _adopt(connection, dry_run))


def _adopt(connection: sa.Connection, dry_run: bool) -> Adoption:
    if migrations.version(connection) is not None:
        return Adoption("tokenlib", dry_run)
    named = statements("inspect", "adopt")
    connection.exec_driver_sql(named["prepare"])
    if dry_run:
        connection.exec_driver_sql(named["read_only"])
    if not connection.exec_driver_sql(statements("system")["old_tables"]).scalar():
        raise ConfigurationError(
            "There are no old tables here. Use `tokenlib migrate` for a new database."
        )
    differences = _words(connection, named["collisions"], names=_new_tables())
    _refuse(differences + _words(connection, named["differences"]))
    if not dry_run:
        connection.exec_driver_sql(named["lock"])
    _refuse(_words(connection, named["bad_rows"]))
    counts = connection.exec_driver_sql(named["counts"]).one()
    removals = connection.exec_driver_sql(named["removals"]).mappings().all()
    findings = [Found(**row) for row in connection.exec_driver_sql(named["findings"]).mappings()]
    if not dry_run:
        for removal in removals:
            migrations.run_script(connection, removal["statement"])
        migrations.run_script(connection, _script("shape"))
        _create(connection)
        migrations.run_script(connection, _script("open"))
        for finding in findings:
            if finding.kind not in _FOUND_BY_OPENING:
                connection.exec_driver_sql(named["record_finding"], asdict(finding))
        connection.commit()
    return Adoption(
        "old",
        dry_run,
        wallets=counts.wallets,
        log_rows=counts.log_rows,
        steps=(*(removal["step"] for removal in removals), _SHAPE, _CREATE, _OPEN),
        findings=tuple(findings),
    )


_SHAPE = "widen the figures to bigint; add columns, keys and constraints"
_OPEN = "open the books of every wallet, with the balance that it has"
_CREATE = f"create the tables, functions, policies and rights of schema version {SCHEMA_VERSION}"


def _create(connection: sa.Connection) -> None:
    connection.exec_driver_sql(statements("inspect", "adopt")["own_policies"])
    migrations.create_schema(connection)
    migrations.upgrade_within(connection)


def _script(name: str) -> str:
    return resources.files("tokenlib").joinpath(f"sql/adopt/{name}.sql").read_text("utf-8")


def _new_tables() -> list[str]:
    names = {table.removeprefix("public.") for table in packaged()["table"] if "public." in table}
    return sorted(names - _BOOKS - _HOST)


def _words(connection: sa.Connection, question: str, **params: object) -> list[str]:
    return list(connection.exec_driver_sql(question, params).scalars())


def _refuse(differences: list[str]) -> None:
    if differences:
        raise ConfigurationError(
            "The database is not that of the old token system, so nothing was changed: "
            + "; ".join(differences)
            + "."
        )
