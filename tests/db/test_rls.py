"""Who may read and write what, asked of the database itself, role by role and table by table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors, sql

from tokenlib import TokenlibError, Tokens
from tokenlib.db import Database
from tokenlib.testing import TestDatabase

Person = tuple[UUID, UUID]
Join = Callable[[str], Person]

BOOKS = {
    "ai_tokens",
    "ai_token_usage_log",
    "ai_token_events",
    "ai_token_grants",
    "ai_token_reservations",
    "ai_token_refusals",
    "ai_token_findings",
    "ai_token_organization_settings",
    "ai_token_organization_allowances",
    "ai_token_user_settings",
    "quests",
}
CATALOG = {
    "ai_token_types",
    "ai_token_plans",
    "ai_token_allowances",
    "ai_token_features",
    "ai_token_packs",
}
INTERNAL = {
    "ai_token_parameters",
    "ai_token_limits",
    "ai_token_changes",
    "ai_token_latencies",
    "ai_token_verifications",
    "tokenlib_staff",
    "tokenlib_staff_claims",
    "tokenlib_signed_out",
    "ai_token_api_keys",
    "ai_token_api_requests",
    "ai_token_archived_keys",
    "ai_token_usage_active",
    "ai_token_usage_closed",
    "ai_token_usage_costs",
    "ai_token_usage_cost_sums",
    "ai_token_usage_days",
    "ai_token_usage_bursts",
    "ai_token_usage_hasty",
    "ai_token_usage_kept",
    "ai_token_usage_pace",
    "ai_token_usage_seen",
    "ai_token_usage_sums",
    "ai_token_usage_windows",
    "ai_token_wallet_sums",
    "ai_token_refusal_sums",
    "ai_token_refusal_windows",
    "ai_token_refusal_rules",
    "ai_token_refusal_seen",
}
NOBODY = [UUID(int=0)]
HOST = {"organizations", "user_profiles"}
TABLES = BOOKS | CATALOG | INTERNAL | HOST

# The verbs: the service runs them, and nobody else.
VERBS = {
    "add_member",
    "advance_quest",
    "api_balances",
    "api_can_use",
    "api_has_enough",
    "api_charges",
    "api_keys",
    "api_metrics",
    "api_write",
    "authenticate_key",
    "balances",
    "can_use",
    "change_plan",
    "close_usage",
    "create_organization",
    "deduct",
    "deduct_many",
    "deduct_reservation",
    "erase_metadata",
    "forget_usage",
    "grant_tokens",
    "has_enough",
    "initialize",
    "pause_user",
    "record_failed_attempt",
    "record_latency",
    "record_verification",
    "refresh",
    "refund",
    "release",
    "reserve",
    "save_quest",
    "set_mode",
    "set_status",
    "settle_finding",
    "sign_out",
    "staff_by_claim",
    "staff_change_plan",
    "staff_create_key",
    "staff_grant",
    "staff_pause_user",
    "staff_refund",
    "staff_release",
    "staff_revoke_key",
    "staff_rotate_key",
    "staff_set_allowance",
    "staff_set_cost",
    "staff_set_unit_size",
    "staff_set_limits",
    "staff_set_mode",
    "staff_set_parameters",
    "staff_set_request_limit",
    "staff_set_staff",
    "staff_set_status",
    "staff_settle_finding",
}
# What reads and computes, and writes nothing.
HASHES = {
    "charge_hash",
    "clock",
    "digest",
    "event_hash",
    "legacy_hash",
    "microseconds",
    "usage_hash",
}
# What reads the rollups, as far as who asks may see them.
ROLLUPS = {
    "active_between",
    "bars",
    "movers",
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
    "stricter",
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
MAY_EXECUTE = {
    "tokenlib_service": VERBS | HASHES | ROLLUPS | {"organization_rows", "uid", "whoami"},
    "tokenlib_reader": HASHES | ROLLUPS | {"is_staff", "organization_rows", "uid", "whoami"},
    "authenticated": {"clock", "my_organizations", "organization_rows", "uid", "whoami"},
    "anon": set[str](),
}
ROLES = ("tokenlib_service", "tokenlib_reader", "authenticated", "anon")


@pytest.fixture
def filled(tokens: Tokens, join: Join, owner: psycopg.Connection) -> tuple[Person, Person]:
    """Two organizations, each with a row in every table of the books."""
    people = join("pro"), join("pro")
    for organization, user in people:
        usage = tokens.deduct_tokens(organization, user, "generate_goal")
        tokens.refund(usage, "a drill")
        tokens.reserve(organization, user, "generate_goal")
        with pytest.raises(TokenlibError):
            tokens.deduct_tokens(organization, user, "generate_goal", 100)
        tokens.set_status(organization, "active", actor="an operator", reason="a drill")
        tokens.pause_user(organization, user, False, actor="an operator", reason="a drill")
        owner.execute(
            "insert into ai_token_organization_allowances values (%s, 'general', 60)",
            (organization,),
        )
        owner.execute(
            "insert into ai_token_findings (organization_id, token_type, kind, detail, found_at)"
            " values (%s, 'general', 'drill', 'a drill', now())",
            (organization,),
        )
        owner.execute(
            "select tokenlib.save_quest(%s, %s, 'A quest', '', 'Q1', 1, '{}')", (organization, user)
        )
    owner.execute("select tokenlib.record_latency('check', 1)")
    owner.execute("insert into ai_token_usage_closed (closed_to) values (now())")
    owner.execute("insert into ai_token_usage_sums values (%s, '', '', now(), 1, 1, 1, 1)", NOBODY)
    owner.execute("insert into ai_token_usage_kept (scope, closed_to) values (%s, now())", NOBODY)
    owner.execute(
        "insert into ai_token_usage_windows values (%s, gen_random_uuid(), 1, 1, 1)", NOBODY
    )
    owner.execute("insert into ai_token_usage_active values (1, now(), 1, 1)")
    owner.execute("insert into ai_token_usage_seen values (%s, now(), '')", NOBODY)
    owner.execute("insert into ai_token_usage_pace values (%s, 'general', 1)", NOBODY)
    owner.execute(
        "insert into ai_token_usage_costs values (%s, 'general', '', 1, 1, 1, 1, 1, 1, 1)", NOBODY
    )
    owner.execute("insert into ai_token_usage_cost_sums values ('', 0, 1, 1, 1)")
    owner.execute("insert into ai_token_usage_days values (%s, now(), 1, now(), now())", NOBODY)
    owner.execute("insert into ai_token_usage_hasty values (now(), %s, gen_random_uuid())", NOBODY)
    owner.execute(
        "insert into ai_token_usage_bursts"
        " values (%s, gen_random_uuid(), 6, now(), 1, 1, 1, now(), 1, null, 1)",
        NOBODY,
    )
    owner.execute(
        "insert into ai_token_wallet_sums values (%s, 1, 1, now(), null, 1, true, true)", NOBODY
    )
    owner.execute("insert into ai_token_refusal_sums values (now(), 1)")
    owner.execute(
        "insert into ai_token_refusal_windows values (1, %s, gen_random_uuid(), 1, 1, 1, now())",
        NOBODY,
    )
    owner.execute("insert into ai_token_refusal_rules values (1, '', 1, 1, 1, 1)")
    owner.execute("insert into ai_token_refusal_seen values ('', false, %s, now())", NOBODY)
    tokens.verify()
    owner.execute(
        "insert into tokenlib_staff (user_id, email, full_name, role)"
        " values (%s, 'staff@example.org', 'A staff member', 'support')",
        (uuid4(),),
    )
    owner.execute(
        "insert into ai_token_api_keys (id, name, start, digest, scopes, owner_id, created_at)"
        " values (gen_random_uuid(), 'A key', 'tkl_', '', '{read}', gen_random_uuid(), now())"
    )
    owner.execute("select tokenlib.sign_out('a session', interval '1 hour')")
    owner.execute(
        "insert into tokenlib_staff_claims values ('https://id', '{groups}', 'a', 'admin')"
    )
    owner.execute(
        "insert into ai_token_api_requests values (%s, %s, 'k', '', 'deduct', null, '{}', now())",
        people[0],
    )
    owner.execute("insert into ai_token_archived_keys values (%s, 'k')", (people[0][0],))
    return people


@contextmanager
def acting(connection: psycopg.Connection, role: str, user: UUID | None) -> Iterator[None]:
    """As a role, with a signed-in user's claims or none; nothing is kept."""
    with connection.transaction(force_rollback=True):
        connection.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
        if user is not None:
            claims = json.dumps({"sub": str(user), "role": role})
            # In this form Citus hands them on to its nodes.
            connection.execute(
                sql.SQL('set local "request.jwt.claims" = {}').format(sql.Literal(claims))
            )
        yield


def visible(connection: psycopg.Connection, table: str) -> set[UUID] | int | None:
    """The organizations whose rows are seen; their number where rows have none; None: refused."""
    key = "id" if table == "organizations" else "organization_id"
    everyone = table in CATALOG | INTERNAL
    column = sql.SQL("count(*)") if everyone else sql.Identifier(key)
    query = sql.SQL("select {} from public.{}").format(column, sql.Identifier(table))
    try:
        with connection.transaction():
            rows = connection.execute(query).fetchall()
    except errors.InsufficientPrivilege:
        return None
    return int(rows[0][0]) if everyone else {row[0] for row in rows}


@pytest.fixture
def root(token_database: TestDatabase) -> Iterator[psycopg.Connection]:
    """A superuser, who then becomes whoever is asked about."""
    with token_database.connect("postgres") as connection:
        connection.execute("set citus.propagate_set_commands = 'local'")  # as the service's login
        yield connection


@pytest.mark.one_node
def test_every_table_is_named_here(root: psycopg.Connection) -> None:
    rows = root.execute(
        "select relname, relrowsecurity, relforcerowsecurity from pg_class"
        " where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f')"
    ).fetchall()
    # Row-level security on all of them; forced on ours, or the owner's functions could see past it.
    assert {row[0] for row in rows} == TABLES
    assert {row for row in rows if not row[1]} == set()
    assert {row[0] for row in rows if not row[2]} == HOST


@pytest.mark.parametrize("who", ["member", "stranger", "nobody"])
def test_a_signed_in_person_sees_its_own_organization_and_no_other(
    filled: tuple[Person, Person], root: psycopg.Connection, who: str
) -> None:
    (organization, user), _ = filled
    claims = {"member": user, "stranger": uuid4(), "nobody": None}[who]
    own = {organization} if who == "member" else set()
    with acting(root, "authenticated", claims):
        for table in BOOKS | HOST:
            assert visible(root, table) == own, table
        for table in CATALOG:
            assert visible(root, table), table
        for table in INTERNAL:
            assert visible(root, table) is None, table


def test_anonymous_people_see_nothing(
    filled: tuple[Person, Person], root: psycopg.Connection
) -> None:
    for claims in (None, filled[0][1]):
        with acting(root, "anon", claims):
            assert {table: visible(root, table) for table in TABLES} == dict.fromkeys(TABLES)


@pytest.mark.parametrize("staff", [True, False])
def test_staff_see_everything_and_others_nothing_through_the_reader(
    filled: tuple[Person, Person], root: psycopg.Connection, staff: bool
) -> None:
    row = root.execute("select user_id from tokenlib_staff").fetchone()
    assert row is not None
    # A member's own role says nothing here.
    root.execute("update user_profiles set role = 'admin'")
    everyone = {organization for organization, _ in filled}
    for claims in (row[0],) if staff else (filled[0][1], uuid4(), None):
        with acting(root, "tokenlib_reader", claims):
            for table in BOOKS | HOST:
                assert visible(root, table) == (everyone if staff else set()), table
            for table in CATALOG | INTERNAL:
                assert bool(visible(root, table)) is staff, table


def test_the_service_reads_everything(
    filled: tuple[Person, Person], root: psycopg.Connection
) -> None:
    with acting(root, "tokenlib_service", None):
        for table in TABLES:
            assert visible(root, table), table


@pytest.mark.parametrize("role", ROLES)
def test_nobody_writes_a_table(root: psycopg.Connection, role: str) -> None:
    """Privileges, so whatever the policies say; TRUNCATE would pass them by."""
    allowed = root.execute(
        """select c.relname, p.privilege
        from pg_class c cross join unnest(array['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE',
            'REFERENCES', 'TRIGGER']) as p (privilege)
        where c.relnamespace in ('public'::regnamespace, 'tokenlib'::regnamespace)
            and c.relkind in ('r', 'p', 'v', 'm', 'S')
            and (has_table_privilege(%(role)s, c.oid, p.privilege)
                or p.privilege in ('INSERT', 'UPDATE', 'REFERENCES')
                    and has_any_column_privilege(%(role)s, c.oid, p.privilege))""",
        {"role": role},
    ).fetchall()
    assert allowed == []


@pytest.mark.parametrize("role", ["authenticated", "tokenlib_reader", "tokenlib_service"])
def test_a_write_is_refused_in_practice(
    filled: tuple[Person, Person], root: psycopg.Connection, role: str
) -> None:
    """The hole of the old system: any member could raise its own balance."""
    with acting(root, role, filled[0][1]):
        for table in sorted(BOOKS | INTERNAL):
            name = sql.Identifier(table)
            for statement in ("delete from public.{}", "truncate public.{}"):
                with pytest.raises(errors.InsufficientPrivilege), root.transaction():
                    root.execute(sql.SQL(statement).format(name))
        for statement in (
            "update ai_tokens set balance = balance + 1, total_allocated = total_allocated + 1",
            "insert into ai_token_findings select * from ai_token_findings",
        ):
            with pytest.raises(errors.InsufficientPrivilege), root.transaction():
                root.execute(statement)


@pytest.mark.parametrize("role", ROLES)
def test_only_the_service_executes_what_writes(root: psycopg.Connection, role: str) -> None:
    rows = root.execute(
        "select proname from pg_proc where pronamespace = 'tokenlib'::regnamespace"
        " and has_function_privilege(%s, oid, 'EXECUTE')",
        (role,),
    ).fetchall()
    assert {row[0] for row in rows} == MAY_EXECUTE[role]


def test_every_function_looks_in_the_catalog_first_and_only_the_verbs_run_as_the_owner(
    root: psycopg.Connection,
) -> None:
    rows = root.execute(
        "select proname, prosecdef, coalesce(proconfig, '{}') from pg_proc"
        " where pronamespace = 'tokenlib'::regnamespace"
    ).fetchall()
    assert {
        name for name, _, config in rows if "search_path=pg_catalog, pg_temp" not in config
    } == set()
    definers = {name for name, definer, _ in rows if definer}
    assert definers == VERBS | {"is_staff", "my_organizations", "whoami"}


def test_a_temporary_type_cannot_take_over_what_runs_as_the_owner(
    filled: tuple[Person, Person], root: psycopg.Connection
) -> None:
    """The temporary schema is searched for types even where the search path is empty."""
    with acting(root, "authenticated", filled[0][1]):
        for name in ("uuid", "jsonb", "text"):
            root.execute(f"create domain pg_temp.{name} as pg_catalog.{name} check (false)")
        assert visible(root, "ai_tokens") == {filled[0][0]}


def test_the_login_of_the_gate_cannot_run_code_as_the_owner_through_a_temporary_type(
    filled: tuple[Person, Person], token_database: TestDatabase
) -> None:
    organization, user = filled[0]
    with token_database.connect("tokenlib_service") as service:
        for name in ("uuid", "jsonb", "text", "timestamptz", "interval"):
            service.execute(f"create domain pg_temp.{name} as pg_catalog.{name} check (false)")
        charged = service.execute(
            "select status from tokenlib.deduct(%s, %s, 'generate_goal', 1, '{\"a\": 1}',"
            " 'a key', false, null)",
            (organization, user),
        ).fetchone()
    assert charged == ("ok",)


@pytest.mark.parametrize("end", ["commit", "rollback", "exception"])
def test_claims_do_not_leak_to_the_next_transaction_of_a_pooled_connection(
    token_database: TestDatabase, filled: tuple[Person, Person], end: str
) -> None:
    (organization, user), _ = filled
    state = "select current_user as who, current_setting('request.jwt.claims', true) as claims"
    database = Database(token_database.url(), pool_size=1)
    # One connection and no more, so that the next transaction must take the same.
    database._engine.pool._max_overflow = 0  # type: ignore[attr-defined]
    try:
        backend = database.rows("select pg_backend_pid() as pid")
        try:
            with database.transaction(reader="authenticated", user_id=user) as connection:
                seen = connection.exec_driver_sql("select organization_id from ai_tokens").scalars()
                assert set(seen) == {organization}
                assert connection.exec_driver_sql(state).one().who == "authenticated"
                if end == "rollback":
                    connection.exec_driver_sql("rollback")
                elif end == "exception":
                    raise KeyError(end)
        except KeyError:
            assert end == "exception"
        assert database.rows("select pg_backend_pid() as pid") == backend
        # In a transaction as the service, outside any, and as a member without a name.
        nobody = {"who": "tokenlib_service", "claims": ""}
        assert database.rows(state) == [nobody]
        assert database.call(state, {}) == nobody
        assert database.rows("select * from ai_tokens", reader="authenticated") == []
        assert database.rows("select * from ai_tokens", reader="tokenlib_reader") == []
        assert database.call("select pg_backend_pid() as pid", {}) == backend[0]
    finally:
        database.close()


@pytest.mark.one_node
@pytest.mark.parametrize("table", ["ai_tokens", "ai_token_usage_log", "ai_token_events"])
def test_a_member_s_rows_are_found_by_index(
    tokens: Tokens, join: Join, owner: psycopg.Connection, root: psycopg.Connection, table: str
) -> None:
    person = join("pro")
    tokens.deduct_tokens(*person, "generate_goal")
    row = owner.execute(
        f"select * from {table} where organization_id = %s limit 1",  # noqa: S608
        (person[0],),
    ).fetchone()
    assert row is not None
    columns = sql.SQL(", ").join(
        sql.SQL("gen_random_uuid()")
        if column.name in ("id", "organization_id")
        else sql.SQL("null")
        if column.name == "idempotency_key"
        else sql.Identifier(column.name)
        for column in owner.execute(f"select * from {table} limit 0").description or []  # noqa: S608
    )
    root.execute(
        sql.SQL(
            "insert into {table} select {columns} from {table}, generate_series(1, 20000)"
            " where organization_id = {organization} limit 20000"
        ).format(table=sql.Identifier(table), columns=columns, organization=sql.Literal(person[0]))
    )
    root.execute(sql.SQL("analyze {}").format(sql.Identifier(table)))
    with acting(root, "authenticated", person[1]):
        plan = "\n".join(
            line[0]
            for line in root.execute(
                sql.SQL("explain (costs off) select * from {}").format(sql.Identifier(table))
            )
        )
    assert "Index" in plan
    assert "Seq Scan" not in plan
    # The memberships are asked for once, not for every row.
    assert "InitPlan" in plan
