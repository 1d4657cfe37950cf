"""The old token system as a product on Supabase runs it: tables, policies, rights, wrong figures.

The product's objects belong to `product_owner`, which lends its rights to tokenlib_owner. Every
organization is made for one thing that adoption has to survive.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg

from tests.db.test_migrations import CATALOG
from tokenlib import migrations
from tokenlib.embedded import SUPERUSER, Embedded
from tokenlib.testing import TestDatabase

OWNER = "tokenlib_owner"
ORGANIZATIONS = {
    name: UUID(int=number)
    for number, name in enumerate(
        ("healthy", "emergency", "raised", "unlogged", "departed", "starter", "overdue", "odd"), 1
    )
}
MEMBERS = {name: UUID(int=100 + number) for number, name in enumerate(ORGANIZATIONS, 1)}
DEPARTED = UUID(int=200)

# What adoption has to keep.
LOG = (
    "select id, organization_id, user_id, token_type, feature_used, tokens_deducted,"
    " remaining_balance, metadata, created_at from ai_token_usage_log order by id"
)
WALLETS = "select organization_id, token_type, balance from ai_tokens order by 1, 2"

_ROLES = """
create role product_owner login;
create role service_role nologin bypassrls;
grant product_owner to tokenlib_owner;
grant service_role to product_owner;
"""

_HOST = """
alter default privileges in schema public
    grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public
    grant all on functions to anon, authenticated, service_role;
grant usage on schema public, auth to anon, authenticated, service_role;
create table auth.users (id uuid primary key, email text);
create function auth.uid() returns uuid language sql stable as $$
    select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid
$$;
create table public.organizations (
    id uuid primary key default gen_random_uuid(),
    name text not null,
    plan text default 'starter',
    created_at timestamptz default now()
);
create table public.user_profiles (
    id uuid primary key references auth.users (id) on delete cascade,
    organization_id uuid references public.organizations (id) on delete cascade,
    full_name text,
    email text,
    role text default 'member'
);
alter table public.organizations enable row level security;
alter table public.user_profiles enable row level security;
create policy "own organization" on public.organizations for select to authenticated
    using (id in (select organization_id from public.user_profiles where id = auth.uid()));
create policy "own profile" on public.user_profiles for select to authenticated
    using (id = auth.uid());
"""

_BOOKS = """
create table public.ai_tokens (
    id uuid primary key default gen_random_uuid(),
    organization_id uuid not null references public.organizations (id) on delete cascade,
    token_type text not null check (token_type in ('lead_generation', 'goal_generation',
        'strategy_analysis', 'forecast', 'general')),
    balance integer not null default 0,
    total_allocated integer not null default 0,
    total_used integer not null default 0,
    refresh_date timestamptz not null default (now() + interval '30 days'),
    last_used_at timestamptz,
    created_at timestamptz default now(),
    updated_at timestamptz default now(),
    unique (organization_id, token_type)
);
create table public.ai_token_usage_log (
    id uuid primary key default gen_random_uuid(),
    organization_id uuid not null references public.organizations (id) on delete cascade,
    user_id uuid references auth.users (id) on delete cascade,
    token_type text not null,
    feature_used text not null,
    tokens_deducted integer not null check (tokens_deducted > 0),
    remaining_balance integer not null,
    metadata jsonb default '{}',
    created_at timestamptz default now()
);
create index idx_ai_tokens_org on public.ai_tokens (organization_id);
create index idx_usage_org on public.ai_token_usage_log (organization_id);
create index idx_usage_created on public.ai_token_usage_log (created_at desc);
create function public.touch() returns trigger language plpgsql as $$
begin
    new.updated_at := now();
    return new;
end
$$;
create trigger touch before update on public.ai_tokens
    for each row execute function public.touch();
alter table public.ai_tokens enable row level security;
alter table public.ai_token_usage_log enable row level security;
create policy "Users see their tokens" on public.ai_tokens for select
    using (organization_id in (select organization_id from user_profiles where id = auth.uid()));
-- The fault behind the others: any member may raise the own balance.
create policy "Users update their tokens" on public.ai_tokens for update
    using (organization_id in (select organization_id from user_profiles where id = auth.uid()));
create policy "Users see their usage" on public.ai_token_usage_log for select
    using (organization_id in (select organization_id from user_profiles where id = auth.uid()));
create policy "Users log their usage" on public.ai_token_usage_log for insert
    with check (organization_id in (select organization_id from user_profiles
        where id = auth.uid()));
grant update (balance) on public.ai_tokens to anon;
-- Stands for a role that tokenlib knows nothing of.
grant insert, update on public.ai_tokens, public.ai_token_usage_log to pg_monitor;
"""

_DATA = """
insert into auth.users select unnest(%(members)s::uuid[] || %(departed)s::uuid);
insert into public.organizations (id, name, plan)
select id, name, case name when 'starter' then 'starter' when 'odd' then 'legacy' else 'pro' end
from unnest(%(ids)s::uuid[], %(names)s::text[]) as o (id, name);
insert into public.user_profiles (id, organization_id, full_name, email)
select member, id, 'Member of ' || name, name || '@example.org'
from unnest(%(ids)s::uuid[], %(members)s::uuid[], %(names)s::text[]) as o (id, member, name);
-- Two charges a day on two wallets, over four months.
insert into public.ai_token_usage_log (organization_id, user_id, token_type, feature_used,
    tokens_deducted, remaining_balance, metadata, created_at)
select o.id, u.id, t.token_type, t.feature, 1, 1000 - n,
    jsonb_build_object('prompt', 'quarter ' || n), now() - n * interval '12 hours'
from public.organizations o
join public.user_profiles u on u.organization_id = o.id
cross join (values ('general', 'generate_insight'), ('forecast', 'forecast_revenue'))
    as t (token_type, feature)
cross join generate_series(1, 240) as n
where o.name <> 'starter';
insert into public.ai_tokens (organization_id, token_type, balance, total_allocated, total_used,
    refresh_date, created_at, updated_at)
select o.id, t.token_type, a.allowance - l.used, a.allowance, l.used, now() + interval '15 days',
    now() - interval '100 days', now() - interval '1 day'
from public.organizations o
cross join (values ('lead_generation', 50), ('goal_generation', 20), ('strategy_analysis', 100),
    ('forecast', 30), ('general', 50)) as t (token_type, pro)
cross join lateral (select case o.name when 'starter' then 0 else t.pro end) as a (allowance)
cross join lateral (select count(*) as used from public.ai_token_usage_log l
    where l.organization_id = o.id and l.token_type = t.token_type
        and l.created_at >= now() - interval '15 days') as l;
update public.ai_tokens w set balance = 9999
from public.organizations o
where o.id = w.organization_id and o.name = 'emergency' and token_type = 'goal_generation';
update public.ai_tokens w set balance = total_allocated + 75
from public.organizations o
where o.id = w.organization_id and o.name = 'raised' and token_type = 'lead_generation';
update public.ai_tokens w set total_used = total_used / 2
from public.organizations o
where o.id = w.organization_id and o.name = 'unlogged' and token_type = 'general';
update public.ai_token_usage_log l set user_id = %(departed)s
from public.organizations o
where o.id = l.organization_id and o.name = 'departed' and token_type = 'forecast'
    and tokens_deducted = 1 and l.created_at < now() - interval '90 days';
update public.ai_tokens w set refresh_date = now() - interval '40 days', balance = 7
from public.organizations o
where o.id = w.organization_id and o.name = 'overdue';
update public.ai_tokens w set balance = -4, updated_at = null
from public.organizations o
where o.id = w.organization_id and o.name = 'odd' and token_type = 'general';
delete from public.ai_tokens w using public.organizations o
where o.id = w.organization_id and o.name = 'odd' and token_type = 'forecast';
"""


@contextmanager
def roles(server: Embedded) -> Iterator[None]:
    """The product's roles on a server; dropped afterwards, when its databases are gone."""
    with TestDatabase(server, "postgres").connect(SUPERUSER) as connection:
        connection.execute(_ROLES)
        try:
            yield
        finally:
            connection.execute("drop role product_owner, service_role")


def fill(
    superuser: psycopg.Connection, *, owner: str = "product_owner", books: bool = True
) -> None:
    """Make the product's tables in an empty database, with the old system in it or without."""
    superuser.execute(f"alter schema public owner to {owner}".encode())
    superuser.execute(f"create schema auth authorization {owner}".encode())
    superuser.execute(f"set role {owner}".encode())
    superuser.execute(_HOST)
    if books:
        superuser.execute(_BOOKS)
        values = {
            "ids": list(ORGANIZATIONS.values()),
            "names": list(ORGANIZATIONS),
            "members": list(MEMBERS.values()),
            "departed": DEPARTED,
        }
        for statement in _DATA.split(";\n"):
            superuser.execute(statement.encode(), values)
    superuser.execute("reset role")


@contextmanager
def database(server: Embedded, *, books: bool = True) -> Iterator[TestDatabase]:
    """A database of the product, with the old system in it or with its own tables alone."""
    made = TestDatabase(server, f"old_{uuid.uuid4().hex[:12]}")
    migrations.create_database(server.url("postgres", SUPERUSER), made.name)
    try:
        with made.connect(SUPERUSER) as connection:
            fill(connection, books=books)
            connection.execute("grant create on schema public to tokenlib_owner")
        yield made
    finally:
        with TestDatabase(server, "postgres").connect(SUPERUSER) as connection:
            connection.execute(f"drop database {made.name} with (force)".encode())


def rows(database: TestDatabase, question: str, role: str = SUPERUSER) -> list[tuple[Any, ...]]:
    """What a question brings, as somebody."""
    with database.connect(role) as connection:
        return connection.execute(question.encode()).fetchall()


def tables(database: TestDatabase) -> list[list[str]]:
    """Every table in the catalog's words, with or without tokenlib's schema."""
    kinds = ("relations", "columns", "constraints", "indexes", "triggers", "policies")
    return [sorted(map(repr, rows(database, CATALOG[kind]))) for kind in kinds]
