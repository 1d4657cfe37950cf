"""Examine a database: is everything there, as it was packaged, and nobody let in who should not be?

Each line says the way out. The schema is held against the packaged snapshot, in words of
PostgreSQL's catalog that are the same in every version from 15 on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Literal

import sqlalchemy as sa

from tokenlib import latency
from tokenlib.db import Database, Row, statements
from tokenlib.domain import Feature
from tokenlib.errors import ConfigurationError, LoginRefused, PermissionDenied, TokenlibError
from tokenlib.reports import Reports
from tokenlib.snapshot import Schema, on_citus, packaged
from tokenlib.tokens import Tokens

_ROLLUP_DAYS, _ROLLUP_LAG = timedelta(days=2), timedelta(minutes=30)
_SHOWN = 5  # of many alike
_CLOCK_WARNING_SECONDS = 2
_CLOCK_FAILURE_SECONDS = 60
# A lock or a right that is missing, changed, or there although it was not packaged.
_MEND = "Apply what `tokenlib migrate --sql` prints for it, as tokenlib_owner."
_MEND_CITUS = "Apply what `tokenlib migrate --citus` prints, on the coordinator."
_PLURALS = {"index": "indexes", "policy": "policies", "function body": "function bodies"}
_EXTRA: dict[str, tuple[Literal["warning", "failed"], str]] = {
    "privilege": ("failed", "Revoke it, as tokenlib_owner."),
    "policy": ("failed", "Drop it, as tokenlib_owner: policies add up."),
    "trigger": ("failed", "Drop it, as tokenlib_owner: it runs inside every charge."),
    "function": ("warning", "Drop it, or move it to a schema of your own."),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `way_out` says what to do unless it is ok."""

    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    way_out: str = ""


def examine(tokens: Tokens, *, smoke: bool = False) -> Iterator[Check]:
    """Look at everything, one check after the other; with `smoke`, also charge and refund.

    The charge is made in an organization of its own and rolled back. Raises DatabaseUnavailable
    when the database does not answer, and LoginRefused when it refuses the login.
    """
    database = tokens.database
    try:
        database.check()
    except LoginRefused:  # as when it does not answer: there is nothing to look at
        raise
    except (ConfigurationError, PermissionDenied) as error:
        yield Check("start", "failed", error.message, "tokenlib does not work until then.")
    else:
        yield Check("start", "ok", "version, durability settings and schema version fit")
    [tables] = database.rows(statements("doctor")["there"])
    if tables["ours"]:
        login = _login(database)
        yield login
        if database.spread():
            yield from differences(on_citus(packaged()), found(database), _MEND_CITUS)
        else:
            yield from differences(packaged(), found(database))
        if login.status == "ok":
            yield _switch(database)
            yield from _books(Reports(database))
            yield _rollups(Reports(database))
    yield _clock(database)
    if smoke and tables["ours"]:
        yield _smoke(tokens)


def found(database: Database, tables: Iterable[str] | None = None) -> Schema:
    """The schema as the database has it, of these tables; unless named, those of the package."""
    wanted = list(packaged()["table"] if tables is None else tables)
    named = statements("doctor")
    schema: dict[str, dict[str, str]] = {}
    with database.transaction() as connection:
        connection.exec_driver_sql(named["no_path"])
        for row in connection.exec_driver_sql(named["schema"], {"tables": wanted}):
            schema.setdefault(row.kind, {})[row.name] = row.definition
    return schema


def differences(wanted: Schema, there: Schema, mend: str = _MEND) -> Iterator[Check]:
    """Each kind of thing: all as packaged, or what is missing, changed or should not be there."""
    for kind, definitions in wanted.items():
        have = there.get(kind, {})
        missing = [name for name in definitions if name not in have]
        changed = [name for name in definitions if have.get(name, "") != definitions[name]]
        changed = [name for name in changed if name in have]
        plural = _PLURALS.get(kind, f"{kind}s")
        fine = True
        for problem, names in (("missing", missing), ("not as packaged", changed)):
            if names:
                fine = False
                way_out = mend
                if kind == "constraint":  # no statement of its own in what `migrate --sql` prints
                    way_out = _constraints({name: definitions[name] for name in names}, have)
                yield Check(plural, "failed", f"{problem}: {_listed(names)}", way_out)
        if kind in _EXTRA and (extra := [name for name in have if name not in definitions]):
            fine = False
            status, way_out = _EXTRA[kind]
            yield Check(plural, status, f"not of tokenlib: {_listed(extra)}", way_out)
        if fine:
            yield Check(plural, "ok", f"{len(definitions)} as packaged")


def _constraints(wanted: Mapping[str, str], there: Mapping[str, str]) -> str:
    """The statements that bring these constraints back, as many as are listed."""
    said = []
    for name in sorted(wanted)[:_SHOWN]:
        table, _, constraint = name.rpartition(".")
        drop = f"drop constraint {constraint}, " if name in there else ""
        said.append(f"alter table {table} {drop}add constraint {constraint} {wanted[name]};")
    return " ".join(["Run as tokenlib_owner:", *said])


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + rest


def _login(database: Database) -> Check:
    [login] = database.rows(statements("doctor")["login"])
    reasons = {
        "superuser": "is a superuser, whom no right and no policy holds back",
        "bypasses_policies": "has BYPASSRLS: a mistake in one query shows every organization",
        "owner": "has the owner's rights: it could change tables and switch off triggers",
        "service_role": "is in service_role, which bypasses policies",
        "stranger": "is not in tokenlib_service, so it may not charge",
    }
    for name, reason in reasons.items():
        if login[name]:
            way_out = "Set TOKENLIB_DATABASE_URL to the login tokenlib_service."
            return Check("login", "failed", f"{login['login']} {reason}", way_out)
    return Check("login", "ok", f"{login['login']} has the gate's rights and no more")


def _switch(database: Database) -> Check:
    """A warning while anybody's AI is free. Else information: an own enforce differs from nothing
    now, but will in an emergency."""
    modes = {row["organization_id"]: row for row in database.rows(statements("doctor")["modes"])}
    everyone = modes.pop(None)
    detail = f"{_mode(everyone)} for everyone"
    ways = []
    if free := everyone["mode"] != "enforce":
        ways.append(
            "Nobody's balance pays for AI meanwhile. To end that:"
            " select tokenlib.set_mode(null, 'enforce', null, 'who', 'why');"
        )
    if modes:
        own = _listed(
            [f"{organization_id} ({_mode(row)})" for organization_id, row in modes.items()]
        )
        detail += f"; with a mode of its own: {own}"
        ways.append(
            "Everyone's switch does not reach a mode of its own. To take it away:"
            " select tokenlib.set_mode('…', 'enforce', now(), 'who', 'why');"
        )
        free = free or any(row["mode"] != "enforce" for row in modes.values())
    else:
        detail += ", no organization has a mode of its own"
    return Check("switch", "warning" if free else "ok", detail, " ".join(ways))


def _mode(row: Row) -> str:
    """Enforce is how it should be: until when is of interest for what ends."""
    if row["mode"] == "enforce" and row["until"] is None:
        return "enforce"
    until = row["until"]
    ends = "taken back" if until is None else f"{until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{row['mode']} until {ends}"


def _books(reports: Reports) -> Iterator[Check]:
    drift = {row.organization_id for row in reports.plan_drift()}
    open_findings = reports.findings(settled=False)
    overdue = reports.overdue_periods()
    for name, count, noun, detail, way_out in (
        (
            "plans",
            len(drift),
            "organization",
            "whose plan was changed outside tokenlib",
            "Applied when a wallet is next used; `tokenlib stats ORG` does it now.",
        ),
        (
            "findings",
            len(open_findings),
            "open finding",
            "",
            (
                "Settle each: on the console's page Health, with `tokenlib settle`, or in SQL with"
                " select tokenlib.settle_finding(organization_id, id, 'who', 'why')"
                " from public.ai_token_findings where id = '…';"
            ),
        ),
        (
            "periods",
            len(overdue),
            "wallet",
            "past the refresh date",
            "Refreshed when next used; `tokenlib refresh` does it now, `serve` every minute.",
        ),
    ):
        nouns = noun if count == 1 else f"{noun}s"
        if count:
            yield Check(name, "warning", f"{count:,} {nouns} {detail}".rstrip(), way_out)
        else:
            yield Check(name, "ok", f"no {nouns} {detail}".rstrip())


def _rollups(reports: Reports) -> Check:
    """What reports are answered from: whether the last days of it are what the log adds up to."""
    closing = reports.closing()
    if closing is None:
        return Check("rollups", "ok", "none yet: `serve` or `tokenlib rollup` makes them")
    detail = f"closed up to {closing.closed_to:%Y-%m-%d %H:%M} UTC"
    wrong = reports.rollup_differences(closing.closed_to - _ROLLUP_DAYS)
    if wrong:
        detail += f", but not what the log adds up to in {len(wrong):,} places"
        return Check("rollups", "failed", detail, "Make them again: `tokenlib rollup --anew`.")
    if closing.lag > _ROLLUP_LAG:
        way_out = "A transaction stays open, or nobody closes: `tokenlib rollup`."
        return Check("rollups", "warning", detail, way_out)
    return Check("rollups", "ok", f"{detail}, as the log adds up")


def _clock(database: Database) -> Check:
    """The books keep the database's time; JWTs are checked by this machine's."""
    before = time.time()
    [row] = database.rows(statements("doctor")["clock"])
    after = time.time()
    skew = row["now"].timestamp() - (before + after) / 2
    detail = f"the database is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
    # What the answer took may be all on one side of it.
    apart = abs(skew) - (after - before) / 2
    if apart <= _CLOCK_WARNING_SECONDS:
        return Check("clock", "ok", detail)
    status: Literal["warning", "failed"] = (
        "warning" if apart <= _CLOCK_FAILURE_SECONDS else "failed"
    )
    return Check("clock", status, detail, "Let a time service (NTP) set both clocks.")


def _smoke(tokens: Tokens) -> Check:
    try:
        feature, plan = latency.chargeable(tokens.catalog())
        with tokens.database.transaction() as connection:
            try:
                problem = _charge_and_refund(connection, feature, plan)
            finally:
                connection.rollback()
    except TokenlibError as error:
        problem = error.message
    if problem:
        return Check("smoke", "failed", problem, "Look at the failed lines above, then at the log.")
    return Check("smoke", "ok", "a charge and its refund, rolled back")


def _charge_and_refund(connection: sa.Connection, feature: Feature, plan: str) -> str:
    """Charge the probe and give it back; what went wrong, or nothing."""
    organization_id, user_id = latency.open_probe(connection, feature, plan)
    organization = {"organization_id": organization_id}

    def balance() -> int:
        wallet = {**organization, "token_type": feature.token_type}
        return int(latency.answer(connection, "gate", "balances", **wallet)["balance"])

    request = {"feature": feature.feature, "units": 1, "metadata": None, "key": None}
    rules = {"limits": False, "mode": "enforce"}
    before = balance()
    who = {**organization, "user_id": user_id}
    charge = latency.answer(connection, "gate", "deduct", **who, **request, **rules)
    if charge["status"] != "ok" or balance() != before - feature.cost:
        return (
            f"the charge ended as {charge['status']}, with {balance():,} of {before:,} tokens left"
        )
    why = {"actor": "doctor", "reason": "smoke test", "key": None}
    refund = latency.answer(
        connection, "gate", "refund", **organization, usage_id=charge["id"], **why
    )
    if refund["status"] != "ok" or balance() != before:
        return f"the refund ended as {refund['status']}, with {balance():,} of {before:,} tokens"
    return ""
