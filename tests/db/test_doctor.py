"""doctor: says ok of a fresh database, and finds each thing that is not as it was packaged."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial

import psycopg
import pytest

from tests.schema_snapshot import fresh
from tokenlib import LoginRefused, Tokens, migrations
from tokenlib.db import Database
from tokenlib.doctor import Check, examine
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.snapshot import Schema, packaged
from tokenlib.testing import TestClock, TestDatabase

OWNER, SERVICE = "tokenlib_owner", "tokenlib_service"


@pytest.fixture(scope="module")
def plain(token_server: Embedded) -> Iterator[TestDatabase]:
    """A migrated database with the real clock. Whoever changes it, changes it back."""
    database = TestDatabase(token_server, f"plain_{uuid.uuid4().hex[:12]}")
    migrations.create_database(token_server.url("postgres", SUPERUSER), database.name)
    migrations.upgrade(database.url(OWNER))
    yield database
    with TestDatabase(token_server, "postgres").connect(SUPERUSER) as connection:
        connection.execute(f"drop database {database.name} with (force)".encode())


@pytest.fixture(scope="module")
def snapshot(plain: TestDatabase) -> Schema:
    return fresh(plain.url(OWNER), plain.url(SERVICE))


def checks(database: TestDatabase, role: str = SERVICE, *, smoke: bool = False) -> list[Check]:
    with Tokens(Database(database.url(role))) as tokens:
        return list(examine(tokens, smoke=smoke))


def wrong(database: TestDatabase, role: str = SERVICE) -> list[tuple[str, str, str]]:
    return [
        (check.name, check.status, check.detail)
        for check in checks(database, role)
        if check.status != "ok"
    ]


def test_the_snapshot_is_what_the_migrations_make(snapshot: Schema) -> None:
    written = packaged()
    for kind, definitions in snapshot.items():
        assert written[kind] == definitions, "the schema changed: run `make schema`"
    assert set(written) == set(snapshot)
    assert len(snapshot["function"]) == len(snapshot["function body"]), "no overloads"


def test_no_setting_changes_its_words(plain: TestDatabase, snapshot: Schema) -> None:
    settings = ("datestyle = 'German'", "intervalstyle = 'sql_standard'", "bytea_output = 'escape'")
    with plain.connect(SUPERUSER) as connection:
        for setting in (*settings, "search_path = tokenlib, public"):
            connection.execute(f"alter database {plain.name} set {setting}".encode())
        try:
            assert wrong(plain) == []
            assert fresh(plain.url(OWNER), plain.url(SERVICE)) == snapshot
        finally:
            connection.execute(f"alter database {plain.name} reset all".encode())


def test_a_fresh_database_is_ok(plain: TestDatabase) -> None:
    found = checks(plain, smoke=True)
    assert [check for check in found if check.status != "ok"] == []
    names = {check.name for check in found}
    assert names >= {"start", "login", "tables", "functions", "privileges", "policies", "clock"}
    assert found[-1] == Check("smoke", "ok", "a charge and its refund, rolled back")


def test_the_smoke_test_leaves_nothing(plain: TestDatabase) -> None:
    checks(plain, smoke=True)
    with plain.connect(SUPERUSER) as connection:
        for table in ("organizations", "ai_tokens", "ai_token_usage_log", "ai_token_refusals"):
            assert connection.execute(f"table {table}".encode()).fetchall() == [], table


# Each change, how it is undone, and what is said of it.
CHANGES = [
    (
        "alter table ai_tokens rename reserved to held",
        "alter table ai_tokens rename held to reserved",
        ("columns", "failed", "missing: public.ai_tokens.reserved"),
    ),
    (
        "alter table ai_tokens drop constraint sums_close",
        """alter table ai_tokens add constraint sums_close
            check (total_allocated = balance + reserved + total_used)""",
        ("constraints", "failed", "missing: public.ai_tokens.sums_close"),
    ),
    (
        "drop index usage_by_time",
        "create index usage_by_time on ai_token_usage_log (created_at)",
        ("indexes", "failed", "missing: public.ai_token_usage_log.usage_by_time"),
    ),
    (
        "alter table ai_token_events enable trigger append_only",
        "alter table ai_token_events enable always trigger append_only",
        ("triggers", "failed", "not as packaged: public.ai_token_events.append_only"),
    ),
    (
        "alter table ai_token_usage_log disable trigger append_only",
        "alter table ai_token_usage_log enable always trigger append_only",
        ("triggers", "failed", "not as packaged: public.ai_token_usage_log.append_only"),
    ),
    (
        "alter table ai_tokens no force row level security",
        "alter table ai_tokens force row level security",
        ("tables", "failed", "not as packaged: public.ai_tokens"),
    ),
    (
        "create policy raise on ai_tokens for update to authenticated using (true)",
        "drop policy raise on ai_tokens",
        ("policies", "failed", "not of tokenlib: public.ai_tokens.raise"),
    ),
    (
        "alter policy member_reads_own on ai_tokens using (true)",
        """alter policy member_reads_own on ai_tokens using (
            organization_id = any ((select tokenlib.my_organizations())::uuid[]))""",
        ("policies", "failed", "not as packaged: public.ai_tokens.member_reads_own"),
    ),
    (
        "grant update (balance) on ai_tokens to authenticated",
        "revoke update (balance) on ai_tokens from authenticated",
        (
            "privileges",
            "failed",
            "not of tokenlib: column public.ai_tokens.balance to authenticated",
        ),
    ),
    (
        "grant delete on ai_token_usage_log to tokenlib_service",
        "revoke delete on ai_token_usage_log from tokenlib_service",
        (
            "privileges",
            "failed",
            "not as packaged: table public.ai_token_usage_log to tokenlib_service",
        ),
    ),
    (
        "grant execute on function tokenlib.my_organizations to public",
        "revoke execute on function tokenlib.my_organizations from public",
        ("privileges", "failed", "not of tokenlib: function my_organizations() to public"),
    ),
    (
        """create function tokenlib.extra() returns int language sql as 'select 1';
            revoke all on function tokenlib.extra from public""",
        "drop function tokenlib.extra",
        ("functions", "warning", "not of tokenlib: extra()"),
    ),
    (
        "alter function tokenlib.balances reset search_path",
        "alter function tokenlib.balances set search_path = pg_catalog, pg_temp",
        (
            "functions",
            "failed",
            "not as packaged: balances(p_organization uuid, p_token_type text)",
        ),
    ),
    (
        "drop policy service_reads on organizations",
        "create policy service_reads on organizations for select to tokenlib_service using (true)",
        ("policies", "failed", "missing: public.organizations.service_reads"),
    ),
]


@pytest.mark.parametrize(("change", "undo", "said"), CHANGES)
def test_each_change_is_found(
    plain: TestDatabase, change: str, undo: str, said: tuple[str, str, str]
) -> None:
    with plain.connect(OWNER) as owner:
        owner.execute(change.encode())
        try:
            assert said in wrong(plain)
        finally:
            owner.execute(undo.encode())
    assert wrong(plain) == []


def test_a_changed_function_is_found(plain: TestDatabase) -> None:
    with plain.connect(OWNER) as owner:
        row = owner.execute("select pg_get_functiondef('tokenlib.lock_key'::regproc)").fetchone()
        assert row is not None
        owner.execute(row[0].replace("return pg_advisory", "perform 1; return pg_advisory"))
        try:
            [found] = wrong(plain)
            assert found == ("function bodies", "failed", "not as packaged: lock_key")
        finally:
            owner.execute(row[0])


# Who logs in --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logins(plain: TestDatabase) -> Iterator[None]:
    with plain.connect(SUPERUSER) as connection:
        connection.execute(
            "create role service_role nologin bypassrls;"
            " create role bypassing login bypassrls in role tokenlib_service;"
            " create role generous login in role tokenlib_service, service_role;"
            " create role stranger login"
        )
        yield
        connection.execute("drop role bypassing, generous, stranger, service_role")


@pytest.mark.usefixtures("logins")
@pytest.mark.parametrize(
    ("role", "said"),
    [
        (SUPERUSER, "is a superuser"),
        (OWNER, "has the owner's rights"),
        ("bypassing", "has BYPASSRLS"),
        ("generous", "is in service_role"),
        ("stranger", "is not in tokenlib_service"),
    ],
)
def test_a_login_with_too_many_or_too_few_rights(plain: TestDatabase, role: str, said: str) -> None:
    [found] = [check for check in checks(plain, role) if check.name == "login"]
    assert found.status == "failed"
    assert found.detail.startswith(f"{role} {said}")
    assert found.way_out == "Set TOKENLIB_DATABASE_URL to the login tokenlib_service."


# What does not stop it, but should be known -------------------------------------------------------


def test_drift_and_what_is_due_are_warnings(
    tokens: Tokens, owner: psycopg.Connection, token_database: TestDatabase
) -> None:
    organization = tokens.create_organization("Acme", "pro")
    owner.execute("update organizations set plan = 'enterprise'")
    owner.execute("update ai_tokens set refresh_date = now() - interval '1 day'")
    owner.execute(
        "insert into ai_token_findings (organization_id, token_type, kind, detail, found_at)"
        " values (%s, 'general', 'emergency_balance', 'balance 9999', now())",
        (organization,),
    )
    found = {check.name: check for check in examine(tokens)}
    assert [found[name].status for name in ("plans", "findings", "periods")] == ["warning"] * 3
    assert found["plans"].detail == "1 organization whose plan was changed outside tokenlib"
    assert found["findings"].detail == "1 open finding"
    assert found["periods"].detail.startswith("5 wallets")


def test_the_way_out_for_a_finding_can_be_followed_in_sql(
    tokens: Tokens, owner: psycopg.Connection, token_database: TestDatabase
) -> None:
    organization = tokens.create_organization("Acme", "pro")
    added = owner.execute(
        "insert into ai_token_findings (organization_id, token_type, kind, detail, found_at)"
        " values (%s, 'general', 'emergency_balance', 'balance 9999', now()) returning id",
        (organization,),
    ).fetchone()
    assert added is not None
    [said] = [check.way_out for check in examine(tokens) if check.name == "findings"]
    statement = said[said.index("select ") :].replace("…", str(added[0]))
    with token_database.connect() as service:
        assert service.execute(statement.encode()).fetchall() == [("ok",)]
    [found] = [check for check in examine(tokens) if check.name == "findings"]
    assert found == Check("findings", "ok", "no open findings")


def test_a_mode_that_is_an_organization_s_own_is_told(
    tokens: Tokens, token_database: TestDatabase
) -> None:
    def switch() -> Check:
        [found] = [check for check in examine(tokens) if check.name == "switch"]
        return found

    nobody = Check("switch", "ok", "enforce for everyone, no organization has a mode of its own")
    assert switch() == nobody
    organization = tokens.create_organization("Acme", "pro")
    tokens.set_mode("enforce", organization, actor="on call", reason="an own enforce, which lasts")
    told = switch()
    assert told.detail == f"enforce for everyone; with a mode of its own: {organization} (enforce)"
    statement = told.way_out[told.way_out.index("select ") :].replace("…", str(organization))
    with token_database.connect() as service:
        service.execute(statement.replace("now()", "tokenlib.clock()").encode())
    assert switch() == nobody


def test_a_switch_that_lets_charges_through_is_a_warning(
    tokens: Tokens, token_database: TestDatabase, token_clock: TestClock
) -> None:
    def switch() -> Check:
        [found] = [check for check in examine(tokens) if check.name == "switch"]
        return found

    ends = token_clock.now() + timedelta(hours=1)
    tokens.set_mode("log_only", until=ends, actor="on call", reason="an incident")
    told = switch()
    assert told.status == "warning"
    assert told.detail.startswith(f"log_only until {ends:%Y-%m-%d %H:%M} UTC for everyone")
    with token_database.connect() as service:
        service.execute(told.way_out[told.way_out.index("select ") :].encode())
    assert switch().status == "ok"
    tokens.set_mode("off", actor="on call", reason="an incident")
    assert switch().detail.startswith("off until taken back for everyone")
    tokens.set_mode("enforce", actor="on call", reason="it is over")
    organization = tokens.create_organization("Acme", "pro")
    tokens.set_mode("log_only", organization, until=ends, actor="on call", reason="a launch")
    assert switch().status == "warning"
    token_clock.advance(timedelta(hours=1))
    assert switch().status == "ok"


def test_the_way_out_for_a_constraint_brings_it_back(plain: TestDatabase) -> None:
    with plain.connect(OWNER) as owner:
        for change in ("", ", add constraint sums_close check (true)"):
            owner.execute(f"alter table ai_tokens drop constraint sums_close{change}".encode())
            [failed] = [check for check in checks(plain) if check.status == "failed"]
            statement = failed.way_out.removeprefix("Run as tokenlib_owner: ")
            owner.execute(statement.encode())
            assert wrong(plain) == []


def test_durability_that_is_off_is_said(plain: TestDatabase) -> None:
    with plain.connect(SUPERUSER) as connection:
        connection.execute(f"alter database {plain.name} set synchronous_commit = off".encode())
        try:
            [found] = wrong(plain)
        finally:
            connection.execute(f"alter database {plain.name} reset synchronous_commit".encode())
    assert found[:2] == ("start", "failed")
    assert "synchronous_commit off" in found[2]


def test_a_clock_that_is_wrong_is_said(
    plain: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    for ahead, status in ((10, "warning"), (-120, "failed")):
        monkeypatch.setattr("tokenlib.doctor.time.time", partial(_ahead, now, ahead))
        [found] = wrong(plain)
        monkeypatch.undo()
        assert found[:2] == ("clock", status)


def _ahead(now: Callable[[], float], seconds: int) -> float:
    return now() + seconds


def test_a_database_without_tokenlib_is_said(token_server: Embedded) -> None:
    found = wrong(TestDatabase(token_server, "postgres"), SUPERUSER)
    assert [line[:2] for line in found] == [("start", "failed")]
    assert "Run `tokenlib migrate`" in found[0][2]


def test_the_smoke_test_fails_where_a_charge_would(plain: TestDatabase) -> None:
    with plain.connect(OWNER) as owner:
        owner.execute("alter table ai_token_usage_log add constraint none check (false)")
        try:
            found = checks(plain, smoke=True)
        finally:
            owner.execute("alter table ai_token_usage_log drop constraint none")
    assert found[-1].name == "smoke"
    assert found[-1].status == "failed"
    assert "violates check constraint" in found[-1].detail


def test_the_smoke_test_borrows_where_the_product_keeps_the_people(plain: TestDatabase) -> None:
    """A product whose users come from elsewhere takes no organization or member of ours."""
    with plain.connect(OWNER) as owner:
        owner.execute("alter table user_profiles alter id drop default")
        try:
            assert checks(plain, smoke=True)[-1].status == "failed", "nobody to borrow"
            owner.execute("insert into organizations (name, plan) values ('Theirs', 'enterprise')")
            owner.execute(
                "insert into user_profiles (id, organization_id)"
                " select gen_random_uuid(), id from organizations"
            )
            found = checks(plain, smoke=True)
            wallets = owner.execute("select * from ai_tokens").fetchall()
        finally:
            owner.execute("delete from user_profiles; delete from organizations")
            owner.execute("alter table user_profiles alter id set default gen_random_uuid()")
    assert found[-1] == Check("smoke", "ok", "a charge and its refund, rolled back")
    assert wallets == []


def test_a_login_that_is_refused_is_said_once(token_database: TestDatabase) -> None:
    url = token_database.server.url(token_database.name, "nobody_known")
    with Tokens(Database(url)) as tokens, pytest.raises(LoginRefused, match="nobody_known"):
        list(examine(tokens))
