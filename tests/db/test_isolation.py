"""An attack on one organization from outside: through every table, view, function and message.

What is attacked comes from the system catalog, so that whatever is new is attacked by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors, sql

from tests.db import reports_world
from tests.db.reports_world import World
from tokenlib import Reservation, TokenlibError, Tokens
from tokenlib.embedded import Embedded

# Ordinary tables, partitions, views, materialized views, foreign tables.
RELATIONS = """
select format('%I.%I', n.nspname, c.relname), n.nspname, c.relname,
    (select count(*) from pg_attribute where attrelid = c.oid and attname = 'organization_id')
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema'
    and c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname || c.relname <> 'tokenlibtest_clock'
order by 1
"""
FUNCTIONS = """
select p.oid::regprocedure::text, p.proname, coalesce(p.proargnames, '{}'),
    array(select format_type(t, null) from unnest(p.proargtypes) with ordinality as a (t, n)
        order by n)
from pg_proc p join pg_namespace n on n.oid = p.pronamespace
where n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema'
    and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype) and p.prokind = 'f'
order by 1
"""
# Functions that answer without a look at any table: what they are told is what they say.
PURE = {
    "digest",
    "microseconds",
    "usage_hash",
    "charge_hash",
    "event_hash",
    "legacy_hash",
    "clock",
    "stricter",
}
# Functions that read as who asks: staff see everything through them, and others nothing.
READING = {
    "active_between",
    "bars",
    "movers",
    "organization_rows",
    "organizations_between",
    "cost_effects",
    "refused_by_rule",
    "refused_edges",
    "refused_most",
    "refused_moves",
    "window_edges",
    "cost_states",
    "organizations_by_wallets",
    "organizations_moved",
    "refused_between",
    "rolling_requests",
    "run_outs",
    "sum_wallets",
    "hasty_figures",
    "hasty_hours",
    "hasty_peaks",
    "hasty_people",
    "least_limits",
    "plans_changed",
    "scoped_organizations",
    "top_usage",
    "usage_archived_to",
    "usage_bars",
    "usage_between",
    "usage_closed",
    "usage_edge",
    "usage_organizations",
    "usage_parts",
    "usage_person",
    "usage_persons",
    "usage_plans",
    "usage_raw",
    "usage_wallet",
    "wallets_closed_to",
    "wallets_moved",
    "whole_scope",
}


@dataclass(frozen=True)
class Target:
    """Whom the attack is on, seen by somebody with every right."""

    world: World
    root: psycopg.Connection
    relations: list[tuple[str, str, str, int]]

    def rows(self) -> dict[str, list[str]]:
        """Every row of organization b, whole."""
        found = {}
        for name, _, relation, has_organization in self.relations:
            column = "organization_id" if has_organization else "id"
            if has_organization or relation == "organizations":
                query = f"select x::text from {name} x where {column} = %s order by 1"  # noqa: S608
                rows = self.root.execute(query.encode(), [self.world.b]).fetchall()
                found[name] = [row for (row,) in rows]
        return found

    def marks(self) -> set[str]:
        """What only rows of b have: its ids, its people, what they wrote."""
        marks = {"Organization B", "b1@example.org", "User B1", "a secret of b"}
        for name, _, relation, has_organization in self.relations:
            if has_organization or relation == "organizations":
                column = "organization_id" if has_organization else "id"
                for (row,) in self.root.execute(
                    f"select to_jsonb(x) from {name} x where {column} = %s".encode(),  # noqa: S608
                    [self.world.b],
                ):
                    marks |= {value for value in row.values() if _is_uuid(value)}
        return marks - {str(UUID(int=0)), str(self.world.staff)}


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and str(UUID(value)) == value
    except ValueError:
        return False


def fill(root: psycopg.Connection, name: str, organization: UUID) -> None:
    """A row of an organization in a table that the verbs left without one."""
    columns = root.execute(
        "select attname::text, format_type(atttypid, null) from pg_attribute"
        " where attrelid = %s::regclass and attnum > 0 and not attisdropped and attnotnull"
        " and not atthasdef and attname <> 'organization_id'",
        [name],
    ).fetchall()
    values = {
        "uuid": "gen_random_uuid()",
        "timestamp with time zone": "now()",
        "text": "'a secret of b'",
        "text[]": "'{read}'",
        "bytea": "sha256('b')",
        "jsonb": "'{}'",
        "boolean": "true",
    }
    names = ["organization_id", *(column for column, _ in columns)]
    chosen = ["%s", *(values.get(kind, "1") for _, kind in columns)]
    root.execute(
        f"insert into {name} ({', '.join(names)}) values ({', '.join(chosen)})".encode(),  # noqa: S608
        [organization],
    )


@pytest.fixture(scope="module")
def target(token_server: Embedded) -> Iterator[Target]:
    with (
        reports_world.made(token_server) as world,
        world.database.connect("postgres") as root,
        world.database.connect("tokenlib_owner") as owner,
    ):
        reports_world.break_books(owner, world.a, world.b)
        relations = root.execute(RELATIONS).fetchall()
        root.execute("set session_replication_role = replica")  # no foreign keys here
        for name, _, _, has_organization in relations:
            query = f"select count(*) from {name} where organization_id = %s"  # noqa: S608
            if has_organization and root.execute(query.encode(), [world.b]).fetchone() == (0,):
                fill(root, name, world.b)
        root.execute("reset session_replication_role")
        root.execute("analyze")
        root.execute("create role attacker login noinherit")
        root.execute("grant authenticated, anon, tokenlib_reader to attacker")
        try:
            yield Target(world, root, relations)
        finally:
            root.execute("drop role attacker")


Claims = dict[str, object] | None
Attacker = tuple[str, Callable[[World], Claims]]
ATTACKERS: dict[str, Attacker] = {
    "a member": ("authenticated", lambda w: {"sub": str(w.a1)}),
    "a member with claims that are not its own to make": (
        "authenticated",
        lambda w: {
            "sub": str(w.a1),
            "role": "service_role",
            "organization_id": str(w.b),
            "app_metadata": {"organization_id": str(w.b), "role": "admin"},
        },
    ),
    "a stranger": ("authenticated", lambda _: {"sub": str(uuid4())}),
    "somebody without a name": ("authenticated", lambda _: None),
    "a member among staff": ("tokenlib_reader", lambda w: {"sub": str(w.a1)}),
    "nobody": ("anon", lambda _: None),
    "nobody with the claims of a member of b": ("anon", lambda w: {"sub": str(w.b1)}),
    "the login alone": ("attacker", lambda w: {"sub": str(w.b1)}),
}


@pytest.fixture(params=ATTACKERS)
def attack(target: Target, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection]:
    """A session of somebody; whatever it did, the rows of b are as they were."""
    role, claims = ATTACKERS[request.param]
    before = target.rows()
    with psycopg.connect(
        target.world.database.server.conninfo(target.world.database.name, "attacker")
    ) as connection:
        connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
        made = claims(target.world)
        if made is not None:
            connection.execute(
                "select set_config('request.jwt.claims', %s, false)", [json.dumps(made)]
            )
        connection.commit()
        yield connection
        connection.rollback()
    assert target.rows() == before


@contextmanager
def tried(connection: psycopg.Connection) -> Iterator[None]:
    with connection.transaction(force_rollback=True):
        yield


def answer(connection: psycopg.Connection, query: str) -> str:
    """Everything that comes back: rows, or the error with all its fields."""
    try:
        with tried(connection):
            return repr(connection.execute(query.encode()).fetchall())
    except psycopg.Error as error:
        said = error.diag
        return " ".join(
            str(getattr(said, field)) for field in dir(said) if not field.startswith("_")
        )


def told(text: str, marks: set[str]) -> set[str]:
    return {mark for mark in marks if mark in text}


def test_the_target_has_a_row_in_every_table(target: Target) -> None:
    rows = target.rows()
    assert len(rows) > 10
    assert [name for name, found in rows.items() if not found] == []
    everything = " ".join(row for found in rows.values() for row in found)
    assert len(told(everything, target.marks())) == len(target.marks() - {"a secret of b"}) + (
        "a secret of b" in everything
    )


# Reading -----------------------------------------------------------------------------------------

# Ways to read a relation; the later ones make an error or a notice out of what they read, which
# must not see a row before the policy has.
READS = (
    "select x::text from {} x",
    "table {}",
    "select count(*) from {} x where x::text::integer = 0",
    "select count(*) from {} x where (x::text || '%')::jsonb is not null",
    "select x.* from {} x tablesample bernoulli (100)",
    "select to_jsonb(x) from {} x order by 1",
    "select x::text from {} x for share",
)


def test_no_relation_is_read(target: Target, attack: psycopg.Connection) -> None:
    marks = target.marks()
    for name, *_ in target.relations:
        for read in READS:
            assert told(answer(attack, read.format(name)), marks) == set(), read.format(name)
        try:
            with tried(attack), attack.cursor().copy(f"copy {name} to stdout".encode()) as copy:
                copied = b"".join(bytes(part) for part in copy).decode()
        except psycopg.Error as error:
            copied = str(error)
        assert told(copied, marks) == set(), name


def test_no_view_of_the_system_tells(target: Target, attack: psycopg.Connection) -> None:
    """Statistics of columns, running statements, and whatever else the catalog shows to all."""
    views = target.root.execute(
        "select c.oid::regclass::text from pg_class c where c.relkind in ('v', 'r')"
        " and c.relnamespace in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
    ).fetchall()
    marks = target.marks()
    assert len(views) > 100
    for (view,) in views:
        found = answer(attack, f"select x::text from {view} x")  # noqa: S608
        assert told(found, marks) == set(), view


def test_a_policy_cannot_be_switched_off(target: Target, attack: psycopg.Connection) -> None:
    attack.execute("set row_security = off")
    attack.commit()
    for name, *_ in target.relations:
        assert told(answer(attack, READS[0].format(name)), target.marks()) == set(), name


# Writing -----------------------------------------------------------------------------------------

WRITES = (
    "delete from {}",
    "truncate {}",
    "insert into {} default values",
    "lock table {} in exclusive mode",
    "drop table {} cascade",
    "alter table {} disable row level security",
    "alter table {} owner to attacker",
    "create policy mine on {} using (true)",
    "create trigger mine before insert on {} execute function suppress_redundant_updates_trigger()",
    "create index on {} ((true))",
    "comment on table {} is 'mine'",
)
# A view says before it asks for a right that it is no table.
REFUSED = (
    errors.InsufficientPrivilege,
    errors.WrongObjectType,
    errors.ObjectNotInPrerequisiteState,
)


def test_no_relation_is_written(target: Target, attack: psycopg.Connection) -> None:
    for name, schema, relation, _ in target.relations:
        columns = target.root.execute(
            "select column_name::text from information_schema.columns"
            " where table_schema = %s and table_name = %s and is_generated = 'NEVER'",
            [schema, relation],
        ).fetchall()
        by_column = [
            write.format(column, column)
            for (column,) in columns
            for write in ("update {{}} set {} = {}", "insert into {{}} ({}) select {} from {{}}")
        ]
        for write in (*WRITES, *by_column):
            with pytest.raises(REFUSED), tried(attack):
                attack.execute(write.format(name, name).encode())


def test_nothing_is_made_where_others_would_run_it(attack: psycopg.Connection) -> None:
    for statement in (
        "create function tokenlib.clock(integer) returns integer language sql as 'select 1'",
        "create function public.mine() returns integer language sql as 'select 1'",
        "create table public.mine (a integer)",
        "create view public.mine as select 1",
        "create schema mine",
        "set role tokenlib_owner",
        "set role tokenlib_service",
        "set role postgres",
        "set session authorization tokenlib_owner",
        "set session_replication_role = replica",
        "alter role attacker superuser",
        "copy (select 1) to program 'true'",
    ):
        with pytest.raises(errors.InsufficientPrivilege), tried(attack):
            attack.execute(statement.encode())


# Functions ---------------------------------------------------------------------------------------


def arguments(target: Target, names: Sequence[str], kinds: Sequence[str]) -> list[object]:
    """Arguments that name b and what is b's."""
    world = target.world
    [[usage]] = target.root.execute(
        "select id from ai_token_usage_log where organization_id = %s limit 1", [world.b]
    ).fetchall()
    [[hold]] = target.root.execute(
        "select id from ai_token_reservations where organization_id = %s and state = 'held'"
        " limit 1",
        [world.b],
    ).fetchall()
    by_name = {
        "p_organization": world.b,
        "p_user": world.b1,
        "p_actor": world.staff,
        "p_usage": usage,
        "p_reservation": hold,
        "p_token_type": "general",
        "p_feature": "generate_insight",
        "p_kind": "gift",
        "p_plan": "pro",
        "p_mode": "off",
        "p_status": "active",
        "p_reason": "an attack",
        "p_zone": "UTC",
        "p_bucket": "day",
    }
    by_kind = {"uuid": world.b, "bigint": 1, "integer": 1, "text": "x", "boolean": True}
    return [
        by_name.get(name, by_kind.get(kind))
        for name, kind in zip([*names, *[""] * len(kinds)], kinds, strict=False)
    ]


def test_no_function_tells_or_changes(target: Target, attack: psycopg.Connection) -> None:
    marks, ran = target.marks(), set()
    functions = target.root.execute(FUNCTIONS).fetchall()
    assert len(functions) > 40
    for signature, name, names, kinds in functions:
        given = arguments(target, names, kinds)
        call = f"tokenlib.{name}({', '.join(f'%s::{kind}' for kind in kinds)})"
        assert signature.startswith(f"tokenlib.{name}("), "a function outside our schema"
        try:
            with attack.transaction():
                said = repr(attack.execute(f"select {call}".encode(), given).fetchall())
        except errors.InsufficientPrivilege as error:
            said = str(error)
        else:
            ran.add(name)
        if name not in PURE:
            assert told(said, marks) <= {str(value) for value in given}, call
    assert ran <= {"uid", "whoami", "my_organizations", "is_staff", *READING, *PURE}


# The service, on behalf of one organization ------------------------------------------------------

# The service reads and writes for every organization. What it is asked on behalf of one never
# reaches into another, and says of what is another's just what it says of what is nowhere.
Verb = Callable[[Tokens, UUID, UUID, UUID], object]
WHY = {"actor": "an operator", "reason": "an attack"}
VERBS: dict[str, tuple[str, Verb]] = {
    "refund": ("usage", lambda t, org, _, x: t.refund(x, "mine", organization=org)),
    "deduct a hold": ("hold", lambda t, org, user, x: t.deduct(held(org, user, x))),
    "release": ("hold", lambda t, org, user, x: t.release(held(org, user, x))),
    "charge": ("user", lambda t, org, _, x: t.deduct_tokens(org, x, "generate_insight")),
    "hold": ("user", lambda t, org, _, x: t.reserve(org, x, "generate_insight")),
    "ask": ("user", lambda t, org, _, x: t.can_use(org, x, "generate_insight")),
    "pause": ("user", lambda t, org, _, x: t.pause_user(org, x, True, **WHY)),
    "settle": ("finding", lambda t, org, _, x: t.settle_finding(org, x, **WHY)),
    "erase": ("user", lambda t, org, _, x: t.erase(org, x, **WHY)),
}


def held(organization: UUID, user: UUID, name: UUID) -> Reservation:
    return Reservation(
        name, organization, user, "generate_leads", "lead_generation", 1, 5, 0, reports_world.NOW
    )


THEIRS = {
    "usage": "select id from ai_token_usage_log where organization_id = %s limit 1",
    "hold": "select id from ai_token_reservations where organization_id = %s and state = 'held'",
    "user": "select id from user_profiles where organization_id = %s",
    "finding": "select id from ai_token_findings where organization_id = %s",
}


def outcome(verb: Callable[[], Any], *ids: UUID) -> str:
    try:
        said = repr(verb())
    except TokenlibError as error:
        said = f"{type(error).__name__} {error.message} {error.data}"
    for number, name in enumerate(ids):
        said = said.replace(str(name), f"id {number}")
    return said


@pytest.mark.parametrize("verb", VERBS)
def test_the_service_reaches_nothing_of_another_organization(target: Target, verb: str) -> None:
    world = target.world
    what, call = VERBS[verb]
    row = target.root.execute(THEIRS[what].encode(), [world.b]).fetchone()
    assert row is not None
    theirs, nowhere = row[0], uuid4()
    before = target.rows()
    assert outcome(lambda: call(world.tokens, world.a, world.a1, theirs), theirs) == outcome(
        lambda: call(world.tokens, world.a, world.a1, nowhere), nowhere
    )
    assert target.rows() == before


def test_a_key_of_another_organization_is_free(target: Target) -> None:
    """Neither a conflict nor a replay tells that somebody else has used it."""
    world = target.world
    request = ("generate_insight", 1, None, "a key of b")
    target.world.tokens.set_status(world.b, "active", **WHY)
    theirs = world.tokens.deduct_tokens(world.b, world.b1, *request)
    world.tokens.pause_user(world.a, world.a2, False, **WHY)
    world.tokens.grant(world.a, "general", 10)
    ours = world.tokens.deduct_tokens(world.a, world.a1, *request)
    assert not ours.replayed
    assert ours.id != theirs.id
