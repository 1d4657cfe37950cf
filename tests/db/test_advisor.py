"""What Supabase's advisor would say of our schema: its checks, by its numbers, in our own words.

The database is as generous as one there: default privileges give everything to everybody. Each
check must find nothing, and must find the defect that is planted for it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest

from tests.db import old_system
from tokenlib import migrations
from tokenlib.adoption import adopt
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.testing import TestDatabase

OWNER = "tokenlib_owner"
# What a product on Supabase brings along, with faults of its own.
PRODUCT = ("organizations", "user_profiles", "touch()", "auth.users", "auth.uid()")


@dataclass(frozen=True)
class Check:
    """One check: the names that it objects to, and defects for it, each called `planted`."""

    number: str
    objects_to: str
    sql: str
    defect: str
    another: str = ""


# Exposed is what Supabase's HTTP interface shows: public, and not tokenlib (docs/deploy.md).
# Each check sees the relations, policies and functions below, all of them with a `name`.
WORLD = r"""
with relations as (
    select c.*, n.nspname = 'public' as exposed, c.oid::regclass::text as name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname not like 'pg\_%' and n.nspname <> 'information_schema'
), tables as (
    select * from relations where relkind in ('r', 'p')
), policies as (
    select p.*, t.relrowsecurity, t.name || '.' || p.polname as name,
        concat_ws(' and ', pg_get_expr(polqual, t.oid), pg_get_expr(polwithcheck, t.oid)) as rule
    from pg_policy p join tables t on t.oid = p.polrelid
), functions as (
    select f.*, n.nspname = 'public' as exposed, f.oid::regprocedure::text as name
    from pg_proc f join pg_namespace n on n.oid = f.pronamespace
    where n.nspname not like 'pg\_%' and n.nspname <> 'information_schema'
)
"""

CHECKS = [
    Check(
        "0001",
        "a foreign key whose columns begin no index",
        """select t.name || '.' || k.conname
        from pg_constraint k join tables t on t.oid = k.conrelid
        where k.contype = 'f' and not exists (
            select from pg_index i where i.indrelid = t.oid and i.indisvalid and i.indpred is null
                and (i.indkey::smallint[])[0:cardinality(k.conkey) - 1] = k.conkey)""",
        """create table public.other (id int primary key, other int);
        alter table public.other add constraint planted foreign key (other)
            references public.other (id)""",
    ),
    Check(
        "0003",
        "a policy that asks for the user again for every row",
        r"""select name from policies
        where regexp_replace(rule, '\( *SELECT [^()]*\([^()]*\)', '', 'g')
            ~ '\m(current_setting|(auth|tokenlib)\.\w+)\('""",
        """create policy planted on public.ai_tokens for select to authenticated
            using (id = (current_setting('request.jwt.claims', true)::jsonb ->> 'sub')::uuid)""",
        """create policy planted on public.ai_tokens for select to authenticated
            using (organization_id = any (tokenlib.my_organizations()))""",
    ),
    Check(
        "0004",
        "a table without a primary key",
        """select t.name from tables t where not exists (
            select from pg_index i where i.indrelid = t.oid and i.indisprimary)""",
        "create table public.planted (id int not null unique)",
    ),
    Check(
        "0006",
        "several permissive policies for one role and one command",
        """select t.name || ' ' || r.rolname || ' ' || command || ' ' || min(p.polname)
        from policies p join tables t on t.oid = p.polrelid
        join pg_roles r on not r.rolsuper and not r.rolbypassrls and r.rolname not like 'pg\\_%'
            and (p.polroles = '{0}' or exists (select from unnest(p.polroles) as given (role)
                where role <> 0 and pg_has_role(r.oid, role, 'usage')))
        cross join unnest(array['r', 'a', 'w', 'd']) as command
        where p.polpermissive and p.polcmd in (command::"char", '*')
        group by t.name, r.rolname, command having count(*) > 1""",
        """create policy "a planted" on public.ai_tokens for select to authenticated
            using (balance > 0)""",
    ),
    Check(
        "0007",
        "policies on a table whose row-level security is off",
        "select name from policies where not relrowsecurity",
        """create table public.other (id int primary key);
        create policy planted on public.other for select using (id = 1)""",
    ),
    Check(
        "0008",
        "row-level security without a policy, so that nobody sees anything",
        """select t.name from tables t where t.relrowsecurity
            and not exists (select from policies p where p.polrelid = t.oid)""",
        """create table public.planted (id int primary key);
        alter table public.planted enable row level security""",
    ),
    Check(
        "0009",
        "two indexes that are one",
        """select min(i.indexrelid::regclass::text) from pg_index i
        join relations t on t.oid = i.indrelid
        group by i.indrelid, i.indkey::text, i.indclass::text, i.indcollation::text,
            i.indoption::text, pg_get_expr(i.indexprs, i.indrelid),
            pg_get_expr(i.indpred, i.indrelid)
        having count(*) > 1""",
        "create index a_planted on public.ai_token_usage_log (created_at)",
    ),
    Check(
        "0010",
        "a view that reads as its owner",
        """select name from relations where relkind = 'v' and exposed
            and not coalesce(reloptions, '{}') && '{security_invoker=true,security_invoker=on}'""",
        "create view public.planted as select * from public.ai_tokens",
    ),
    Check(
        "0011",
        "a function that looks where its caller says",
        """select name from functions where not exists (
            select from unnest(proconfig) as setting where setting like 'search\\_path=%')""",
        "create function tokenlib.planted() returns int language sql as 'select 1'",
    ),
    Check(
        "0013",
        "a table without row-level security in a schema that everybody can ask",
        "select name from tables where exposed and not relrowsecurity",
        "create table public.planted (id int primary key)",
    ),
    Check(
        "0015",
        "a policy that believes what users write about themselves",
        "select name from policies where rule like '%user_metadata%'",
        """create policy planted on public.ai_tokens as restrictive for select to authenticated
            using ((select current_setting('request.jwt.claims', true)::jsonb
                #>> '{user_metadata,role}') = 'admin')""",
    ),
    Check(
        "0016",
        "a materialized view, which no policy holds back, open to members or to everybody",
        """select name from relations where relkind = 'm' and exposed
            and (has_table_privilege('anon', oid, 'select')
                or has_table_privilege('authenticated', oid, 'select'))""",
        """create materialized view public.planted as select * from public.ai_tokens;
        grant select on public.planted to authenticated""",
    ),
    Check(
        "0023",
        "a column that sounds secret, and no row-level security before it",
        """select t.name || '.' || a.attname from tables t
        join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
        where not t.relrowsecurity
            and lower(a.attname) ~ '(passw|secret|token|key|credential|digest|card|iban|ssn|tax_id)'
            and (has_column_privilege('anon', t.oid, a.attnum, 'select')
                or has_column_privilege('authenticated', t.oid, a.attnum, 'select'))""",
        """create table public.planted (id int primary key, api_key text);
        revoke all on public.planted from anon, authenticated;
        grant select on public.planted to anon""",
        """create table public.planted (id int primary key, api_key text);
        revoke all on public.planted from anon, authenticated;
        grant select (api_key) on public.planted to authenticated""",
    ),
    Check(
        "0024",
        "a policy under which anybody may write anything",
        r"""select distinct name from policies
        cross join lateral (values (rule), (pg_get_expr(polqual, polrelid)),
            (pg_get_expr(polwithcheck, polrelid))) as part (text)
        where polpermissive and relrowsecurity and polcmd <> 'r'
            and (polroles = '{0}' or exists (select from unnest(polroles) as given (role)
                where role <> 0 and role::regrole::text in ('anon', 'authenticated')))
            and regexp_replace(part.text, '[\s()]', '', 'g') in ('', 'true', '1=1')""",
        """create policy planted on public.ai_tokens for update to authenticated
            using ((1 = 1)) with check (balance > 0)""",
        "create policy planted on public.ai_tokens for insert with check (true)",
    ),
    Check(
        "0028",
        "a function with its owner's rights that everybody can call",
        """select name from functions
        where exposed and prosecdef and has_function_privilege('anon', oid, 'execute')""",
        """create function public.planted() returns int language sql security definer
            set search_path = '' as 'select 1'""",
    ),
    Check(
        "0029",
        "a function with its owner's rights that every member can call",
        """select name from functions
        where exposed and prosecdef and has_function_privilege('authenticated', oid, 'execute')""",
        """create function public.planted() returns int language sql security definer
            set search_path = '' as 'select 1';
        revoke all on function public.planted() from public, anon""",
    ),
]
BY_NUMBER = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.number)


def give_everything_away(connection: psycopg.Connection) -> None:
    """As on Supabase, and for our owner too."""
    for scope in ("", "in schema public"):
        for kind in ("tables", "functions", "sequences"):
            connection.execute(
                f"alter default privileges for role {OWNER} {scope}"
                f" grant all on {kind} to anon, authenticated, service_role".encode()
            )


@contextmanager
def migrated(server: Embedded) -> Iterator[TestDatabase]:
    """A database that had nothing."""
    database = TestDatabase(server, f"advisor_{uuid.uuid4().hex[:12]}")
    migrations.create_database(server.url("postgres", SUPERUSER), database.name)
    try:
        with database.connect(SUPERUSER) as connection:
            give_everything_away(connection)
        migrations.upgrade(database.url(OWNER))
        yield database
    finally:
        with TestDatabase(server, "postgres").connect(SUPERUSER) as connection:
            connection.execute(f"drop database {database.name} with (force)".encode())


@contextmanager
def adopted(server: Embedded) -> Iterator[TestDatabase]:
    """A product's database, old token system and all."""
    with old_system.database(server) as database:
        with database.connect(SUPERUSER) as connection:
            give_everything_away(connection)
        adopt(database.url(OWNER))
        yield database


@pytest.fixture(scope="module")
def worlds(token_server: Embedded) -> Iterator[dict[str, TestDatabase]]:
    """The two ways to our schema."""
    with (
        old_system.roles(token_server),
        migrated(token_server) as new,
        adopted(token_server) as old,
    ):
        yield {"migrated": new, "adopted": old}


def objections(connection: psycopg.Connection, check: Check) -> list[str]:
    rows = connection.execute(f"{WORLD} {check.sql} order by 1".encode()).fetchall()
    return [str(name) for (name,) in rows]


@BY_NUMBER
@pytest.mark.parametrize("world", ["migrated", "adopted"])
def test_the_advisor_has_no_objection(
    worlds: dict[str, TestDatabase], world: str, check: Check
) -> None:
    with worlds[world].connect(SUPERUSER) as connection:
        found = objections(connection, check)
    if world == "adopted":
        found = [name for name in found if not name.startswith(PRODUCT)]
    assert found == [], check.objects_to


@pytest.mark.parametrize(
    ("check", "defect"),
    [(check, defect) for check in CHECKS for defect in (check.defect, check.another) if defect],
    ids=lambda value: value.number if isinstance(value, Check) else "",
)
def test_each_check_finds_its_defect(
    worlds: dict[str, TestDatabase], check: Check, defect: str
) -> None:
    with (
        worlds["migrated"].connect(SUPERUSER) as connection,
        connection.transaction(force_rollback=True),
    ):
        # What this role makes is as open as what our owner makes.
        connection.execute(f"set local role {OWNER}".encode())
        connection.execute(defect.encode())
        connection.execute("reset role")
        found = objections(connection, check)
    assert len(found) == 1
    assert "planted" in found[0]


def test_in_our_own_schema_members_call_only_what_policies_ask(
    worlds: dict[str, TestDatabase],
) -> None:
    """Should somebody expose the schema tokenlib: these two answer about the caller alone."""
    question = """select proname from pg_proc
        where pronamespace = 'tokenlib'::regnamespace and prosecdef
            and has_function_privilege(%s, oid, 'execute') order by 1"""
    for database in worlds.values():
        with database.connect(SUPERUSER) as connection:
            may = {
                role: [name for (name,) in connection.execute(question, (role,))]
                for role in ("anon", "authenticated")
            }
        assert may == {"anon": [], "authenticated": ["my_organizations", "whoami"]}
