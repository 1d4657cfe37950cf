"""Migrations: once, by program or by hand, the same schema; versions that do not fit are named."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from importlib import resources
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command

from tokenlib import (
    ConfigurationError,
    NotMigrated,
    PermissionDenied,
    Tokens,
    connect,
    db,
    migrations,
)
from tokenlib.db import Database, statements
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.testing import TestDatabase

SQL = resources.files("tokenlib").joinpath("sql")
OWNER = "tokenlib_owner"
Empty = Callable[[], TestDatabase]


@pytest.fixture
def empty(token_server: Embedded) -> Iterator[Empty]:
    """Makes empty databases that belong to the owner role."""
    made: list[TestDatabase] = []

    def create() -> TestDatabase:
        database = TestDatabase(token_server, f"empty_{uuid.uuid4().hex[:12]}")
        migrations.create_database(token_server.url("postgres", SUPERUSER), database.name)
        made.append(database)
        return database

    yield create
    with TestDatabase(token_server, "postgres").connect(SUPERUSER) as connection:
        for database in made:
            connection.execute(f"drop database {database.name} with (force)")


@contextmanager
def superuser(server: Embedded) -> Iterator[psycopg.Connection]:
    with TestDatabase(server, "postgres").connect(SUPERUSER) as connection:
        yield connection


# What the schema is, in the catalog's words; access lists sorted, since their order means nothing.
CATALOG = {
    "relations": """select c.oid::regclass::text, relkind, relowner::regrole::text, relrowsecurity,
        relforcerowsecurity, reloptions,
        (select array_agg(item::text order by item::text) from unnest(relacl) as item)
        from pg_class c
        where relnamespace::regnamespace::text in ('public', 'tokenlib') and relkind <> 'c'""",
    "columns": """select attrelid::regclass::text, attname, format_type(atttypid, atttypmod),
        attnotnull, pg_get_expr(adbin, adrelid)
        from pg_attribute a join pg_class c on c.oid = attrelid
        left join pg_attrdef d on d.adrelid = attrelid and d.adnum = attnum
        where relnamespace::regnamespace::text in ('public', 'tokenlib')
            and relkind in ('r', 'c') and attnum > 0""",
    "constraints": """select conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        from pg_constraint
        where connamespace::regnamespace::text in ('public', 'tokenlib')""",
    "indexes": """select pg_get_indexdef(c.oid) from pg_class c
        where relnamespace::regnamespace::text in ('public', 'tokenlib') and relkind = 'i'""",
    "triggers": """select tgrelid::regclass::text, tgname, tgenabled, pg_get_triggerdef(oid)
        from pg_trigger where not tgisinternal""",
    "policies": """select tablename, policyname, roles::text, cmd, qual, with_check
        from pg_policies""",
    "functions": """select oid::regprocedure::text, pg_get_functiondef(oid),
        proowner::regrole::text,
        (select array_agg(item::text order by item::text) from unnest(proacl) as item)
        from pg_proc where pronamespace = 'tokenlib'::regnamespace""",
    "schemas": """select nspname, nspowner::regrole::text,
        (select array_agg(item::text order by item::text) from unnest(nspacl) as item)
        from pg_namespace where nspname = 'tokenlib'""",
    "version": "select version_num from tokenlib.alembic_version",
    "features": "select * from ai_token_features",
    "allowances": "select * from ai_token_allowances",
    "packs": "select * from ai_token_packs",
    "parameters": "select * from ai_token_parameters",
    "limits": "select * from ai_token_limits",
}


def schema(database: TestDatabase) -> dict[str, list[Any]]:
    with database.connect(OWNER) as connection:
        return {
            name: sorted(connection.execute(query).fetchall(), key=repr)
            for name, query in CATALOG.items()
        }


def test_migrating_twice_is_the_same_as_once(empty: Empty) -> None:
    database = empty()
    assert migrations.upgrade(database.url(OWNER)) is True
    before = schema(database)
    assert migrations.upgrade(database.url(OWNER)) is False
    assert schema(database) == before
    assert all(before.values())


def test_two_migrations_at_once_are_one(empty: Empty) -> None:
    url = empty().url(OWNER)
    with ThreadPoolExecutor(4) as threads:
        changed = list(threads.map(migrations.upgrade, [url] * 4))
    assert sorted(changed) == [False, False, False, True]


def test_the_printed_sql_makes_the_same_schema(empty: Empty) -> None:
    by_program, by_hand = empty(), empty()
    migrations.upgrade(by_program.url(OWNER))
    with by_hand.connect(OWNER) as connection:
        connection.execute(migrations.upgrade_sql())
    assert schema(by_hand) == schema(by_program)
    with Tokens(Database(by_hand.url())) as tokens:
        tokens.database.check()
        tokens.create_organization("Acme", "pro")
        assert tokens.verify().closed


def test_the_printed_roles_can_be_applied_again(token_server: Embedded) -> None:
    query = "select rolname, rolsuper, rolbypassrls, rolcanlogin, rolinherit from pg_roles"
    with superuser(token_server) as connection:
        before = connection.execute(query).fetchall()
        connection.execute(migrations.roles_sql())
        assert connection.execute(query).fetchall() == before
    roles = {row[0]: row[1:] for row in before}
    assert roles[OWNER] == (False, False, True, True)
    assert roles["tokenlib_service"] == (False, False, True, False)
    for role in ("tokenlib_reader", "authenticated", "anon"):
        assert roles[role][:3] == (False, False, False)


def test_the_function_files_are_what_the_migrations_made(empty: Empty) -> None:
    database = empty()
    migrations.upgrade(database.url(OWNER))
    before = schema(database)["functions"]
    files = sorted(SQL.joinpath("functions").iterdir(), key=lambda file: file.name)
    text = "\n".join(file.read_text("utf-8") for file in files)
    text = re.sub(r"create type .*?;", "", text, flags=re.DOTALL)
    names = re.findall(r"^create function tokenlib\.(\w+)\(", text, flags=re.MULTILINE)
    with database.connect(OWNER) as connection:
        connection.execute(text.replace("create function", "create or replace function"))
    assert schema(database)["functions"] == before
    # Triggers come with their tables, and the row policies' helpers with the privileges.
    others = {"refuse_change", "refuse_change_to_log", "refuse_broken_sums", "uid"}
    others |= {"my_organizations", "is_staff"}
    found = [re.sub(r"^tokenlib\.(\w+)\(.*", r"\1", row[0]) for row in before]
    assert sorted(found) == sorted([*names, *others, "whoami"])


def test_the_frozen_functions_are_the_files_one_after_another() -> None:
    files = sorted(SQL.joinpath("functions").iterdir(), key=lambda file: file.name)
    frozen = SQL.joinpath("migrations/0001_functions.sql").read_text("utf-8")
    assert "".join(file.read_text("utf-8") for file in files) == frozen


def test_the_way_down_leaves_the_host_s_tables(empty: Empty) -> None:
    database = empty()
    migrations.upgrade(database.url(OWNER))
    before = schema(database)
    with Tokens(Database(database.url())) as tokens:
        organization = tokens.create_organization("Acme", "pro")

    engine = sa.create_engine(database.url(OWNER), poolclass=sa.NullPool)
    with engine.begin() as connection:
        config = migrations._config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with database.connect(OWNER) as owner:
        tables = owner.execute(
            "select relname from pg_class where relkind = 'r' and relnamespace"
            " = 'public'::regnamespace"
        ).fetchall()
        assert {row[0] for row in tables} == {"organizations", "user_profiles"}
        assert owner.execute("select * from pg_policies").fetchall() == []
        functions = "select * from pg_proc where pronamespace = 'tokenlib'::regnamespace"
        assert owner.execute(functions).fetchall() == []

    assert migrations.upgrade(database.url(OWNER)) is True
    assert schema(database) == before
    with Tokens(Database(database.url())) as tokens:
        assert tokens.organizations_to_initialize() == [organization]


def test_a_migration_that_fails_leaves_nothing(empty: Empty) -> None:
    database = empty()
    with database.connect(OWNER) as owner:
        owner.execute("create table ai_token_types (mine integer)")
        with pytest.raises(ConfigurationError, match='"ai_token_types" already exists'):
            migrations.upgrade(database.url(OWNER))
        assert owner.execute("select to_regnamespace('tokenlib')").fetchone() == (None,)
        owner.execute("drop table ai_token_types")
    assert migrations.upgrade(database.url(OWNER)) is True


# A product with tables of its own ----------------------------------------------------------------

HOST_TABLES = """
create table organizations (id uuid primary key, name text, plan text);
create table user_profiles (id uuid primary key, organization_id uuid, full_name text, email text,
    role text);
insert into organizations values ('00000000-0000-0000-0000-000000000001', 'Acme', 'pro');
insert into user_profiles values ('00000000-0000-0000-0000-000000000002',
    '00000000-0000-0000-0000-000000000001', 'A member', 'member@example.org', 'admin');
"""
HOST_POLICY = """
alter table user_profiles enable row level security;
create policy themselves on user_profiles for select to authenticated using (false);
"""


def test_the_product_s_own_tables_are_used_and_not_opened(empty: Empty) -> None:
    database = empty()
    with database.connect(OWNER) as owner:
        owner.execute(HOST_TABLES + HOST_POLICY)
    migrations.upgrade(database.url(OWNER))
    with Tokens(Database(database.url())) as tokens:
        usage = tokens.deduct_tokens(str(uuid.UUID(int=1)), str(uuid.UUID(int=2)), "generate_goal")
        assert usage.remaining_balance == 17
        member = {"reader": "authenticated", "user_id": uuid.UUID(int=2)}
        assert tokens.database.rows("select balance from ai_tokens", **member) == [{"balance": 17}]  # type: ignore[arg-type]
        # Its own policy stands alone.
        assert tokens.database.rows("select * from user_profiles", **member) == []  # type: ignore[arg-type]
        # Without row-level security a grant would show every organization to everybody.
        with pytest.raises(PermissionDenied):
            tokens.database.rows("select * from organizations", **member)  # type: ignore[arg-type]


# Versions that do not fit ------------------------------------------------------------------------


def test_a_database_that_is_not_migrated_is_named(empty: Empty) -> None:
    url = empty().url(OWNER)
    with pytest.raises(NotMigrated, match=r"no tokenlib tables\. Run `tokenlib migrate`"):
        connect(url.replace("+psycopg", ""))
    with Tokens(Database(url)) as tokens, pytest.raises(NotMigrated):
        tokens.deduct_tokens(uuid.uuid4(), uuid.uuid4(), "generate_goal")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("0000", "at schema version 0000, this tokenlib needs .* Run `tokenlib migrate`"),
        ("9999", "at schema version 9999, newer than this tokenlib .* Install the newer tokenlib"),
        (None, "at schema version none, this tokenlib needs"),
    ],
)
def test_another_version_is_named(
    token_database: TestDatabase, owner: psycopg.Connection, version: str | None, message: str
) -> None:
    if version is None:
        owner.execute("delete from tokenlib.alembic_version")
    else:
        owner.execute("update tokenlib.alembic_version set version_num = %s", (version,))
    with pytest.raises(NotMigrated, match=message):
        connect(token_database.url().replace("+psycopg", ""))
    if version == "9999":
        with pytest.raises(ConfigurationError, match="newer than this tokenlib"):
            migrations.upgrade(token_database.url(OWNER))


def test_a_server_that_is_too_old_is_named(
    token_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This server, held against a minimum that it does not reach.
    monkeypatch.setattr(db, "MIN_SERVER_VERSION", 990000)
    with pytest.raises(ConfigurationError, match=r"The server is PostgreSQL .* or later"):
        connect(token_database.url().replace("+psycopg", ""))
    with pytest.raises(ConfigurationError, match=r"The server is PostgreSQL .* or later"):
        migrations.upgrade(token_database.url(OWNER))


def test_roles_that_are_missing_are_named(token_server: Embedded, empty: Empty) -> None:
    database = empty()
    with superuser(token_server) as connection:
        connection.execute("alter role anon rename to hidden")
        try:
            with pytest.raises(
                ConfigurationError, match=r"roles anon do not exist\. Apply `tokenl"
            ):
                migrations.upgrade(database.url(OWNER))
        finally:
            connection.execute("alter role hidden rename to anon")
    assert migrations.upgrade(database.url(OWNER)) is True


# Where default privileges give everything away ---------------------------------------------------

RIGHTS = """
select r.rolname, c.oid::regclass::text, p.privilege
from pg_roles r, pg_class c, unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE',
    'REFERENCES', 'TRIGGER']) as p (privilege)
where c.relkind = 'r' and r.rolname = any (%(roles)s)
    and c.relnamespace::regnamespace::text in ('public', 'tokenlib')
    and has_table_privilege(r.oid, c.oid, p.privilege)
union all
select r.rolname, f.oid::regprocedure::text, 'EXECUTE'
from pg_roles r, pg_proc f
where f.pronamespace = 'tokenlib'::regnamespace and r.rolname = any (%(roles)s)
    and has_function_privilege(r.oid, f.oid, 'EXECUTE')
"""


def rights(database: TestDatabase) -> set[tuple[str, str, str]]:
    """Who may do what with which table and function."""
    roles = ["anon", "authenticated", "service_role", "tokenlib_reader", "tokenlib_service"]
    with database.connect(OWNER) as connection:
        found = connection.execute(RIGHTS, {"roles": roles}).fetchall()
    return {(str(role), str(thing), str(right)) for role, thing, right in found}


def test_default_privileges_as_on_supabase_give_nothing_away(
    token_server: Embedded, empty: Empty
) -> None:
    plain, generous = empty(), empty()
    migrations.upgrade(plain.url(OWNER))
    with superuser(token_server) as connection:
        connection.execute("create role service_role nologin bypassrls")
    try:
        with generous.connect(SUPERUSER) as connection:
            for scope in ("", "in schema public"):
                for kind in ("tables", "functions", "sequences"):
                    connection.execute(
                        f"alter default privileges for role tokenlib_owner {scope}"
                        f" grant all on {kind} to anon, authenticated, service_role"
                    )
        migrations.upgrade(generous.url(OWNER))
        # A product's own server role keeps what it got on the product's own tables.
        found = {
            right
            for right in rights(generous)
            if right[:2]
            not in {("service_role", table) for table in ("organizations", "user_profiles")}
        }
        assert found == rights(plain)
    finally:
        with generous.connect(SUPERUSER) as connection:
            connection.execute("drop owned by service_role")
        with superuser(token_server) as connection:
            connection.execute("drop role service_role")


def test_a_connection_without_startup_options_reads_the_same(
    token_server: Embedded, token_database: TestDatabase
) -> None:
    """As behind a pooler in transaction mode, which refuses them."""
    with superuser(token_server) as connection:
        for setting in ("timezone = 'Asia/Kathmandu'", "datestyle = 'German'"):
            connection.execute(f"alter database {token_database.name} set {setting}".encode())
    for prepare in (True, False):
        with Tokens(Database(token_database.url(), prepare=prepare)) as tokens:
            [row] = tokens.database.rows("select now(), current_setting('timezone') as zone")
            assert row["zone"] == "UTC"
            assert row["now"].utcoffset() == timedelta(0)


def test_a_sign_in_finds_an_address_by_an_index(token_database: TestDatabase) -> None:
    question = statements("system")["by_email"]
    with token_database.connect() as owner:
        owner.execute("set enable_seqscan = off")
        rows = owner.execute(
            f"explain {question}".encode(), {"email": "Somebody@example.org"}
        ).fetchall()
    assert "user_profiles_by_email" in "\n".join(row[0] for row in rows)
