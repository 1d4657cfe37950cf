-- The old system's tables and rows, and how the main database takes them in. For the owner.

-- name: beside
select exists (select from pg_catalog.pg_database where datname = %(name)s) as beside

-- name: made
select to_regclass('public.ai_tokens') is not null as made

-- name: tables
-- As the old system had them: nothing makes the sums close, and nothing ties the log to a user.
create table public.organizations (
    id uuid primary key default gen_random_uuid(),
    name text not null,
    plan text not null default 'starter' check (plan in ('starter', 'pro', 'enterprise'))
);
create table public.user_profiles (
    id uuid primary key default gen_random_uuid(),
    organization_id uuid references public.organizations (id),
    full_name text,
    email text,
    role text
);
create table public.ai_tokens (
    id uuid primary key default gen_random_uuid(),
    organization_id uuid not null references public.organizations (id) on delete cascade,
    token_type text not null,
    balance integer not null default 0,
    total_allocated integer not null default 0,
    total_used integer not null default 0,
    refresh_date timestamptz,
    last_used_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (organization_id, token_type)
);
create table public.ai_token_usage_log (
    id uuid primary key default gen_random_uuid(),
    organization_id uuid not null references public.organizations (id) on delete cascade,
    user_id uuid,
    token_type text not null,
    feature_used text not null,
    tokens_deducted integer not null,
    remaining_balance integer not null,
    metadata jsonb,
    created_at timestamptz not null default now()
);
create function public.my_organization() returns uuid language sql stable security definer
set search_path = '' as $$
    select organization_id from public.user_profiles
    where id = (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid
$$;
alter table public.ai_tokens enable row level security;
alter table public.ai_token_usage_log enable row level security;
create policy members_read on public.ai_tokens for select to authenticated
    using (organization_id = public.my_organization());
-- The fault behind the others: a member may set its own organization's balance.
create policy members_update on public.ai_tokens for update to authenticated
    using (organization_id = public.my_organization());
create policy members_read on public.ai_token_usage_log for select to authenticated
    using (organization_id = public.my_organization());
grant select, update on public.ai_tokens to authenticated;
grant select on public.ai_token_usage_log to authenticated;
-- The health view looks, and does not touch.
create policy service_reads on public.ai_tokens for select to tokenlib_service using (true);
create policy service_reads on public.ai_token_usage_log for select to tokenlib_service
    using (true);
grant select on public.organizations, public.user_profiles, public.ai_tokens,
    public.ai_token_usage_log to tokenlib_service

-- name: organization
insert into public.organizations (id, name, plan) values (%(id)s, %(name)s, %(plan)s)

-- name: member
insert into public.user_profiles (id, organization_id, full_name, email, role)
values (%(id)s, %(organization_id)s, %(name)s, %(email)s, %(role)s)

-- name: entry
insert into public.ai_token_usage_log (id, organization_id, user_id, token_type, feature_used,
    tokens_deducted, remaining_balance, created_at)
values (%(id)s, %(organization_id)s, %(user_id)s, %(token_type)s, %(feature_used)s,
    %(tokens_deducted)s, %(remaining_balance)s, %(created_at)s)

-- name: wallet
insert into public.ai_tokens (id, organization_id, token_type, balance, total_allocated, total_used,
    refresh_date, last_used_at, created_at, updated_at)
values (%(id)s, %(organization_id)s, %(token_type)s, %(balance)s, %(total_allocated)s,
    %(total_used)s, %(refresh_date)s, %(last_used_at)s, %(created_at)s, %(created_at)s)

-- name: adopted_wallet
insert into public.ai_tokens (id, organization_id, token_type, balance, total_allocated, total_used,
    refresh_date, last_used_at, created_at, updated_at)
values (%(id)s, %(organization_id)s, %(token_type)s, %(balance)s,
    %(balance)s::bigint + %(total_used)s::bigint, %(total_used)s, %(refresh_date)s,
    %(last_used_at)s, %(created_at)s, %(created_at)s)

-- name: adopt
with clock as materialized (select tokenlib.clock() as now)
select tokenlib.settle(tokenlib.open_books(w, %(plan)s, c.now, false, %(found)s), %(plan)s, c.now)
from public.ai_tokens w
cross join clock c
where w.organization_id = %(organization_id)s and w.token_type = %(token_type)s

-- name: figures
-- The old monitoring queries: emergency balances, stuck tokens, sums, orphans.
with logged as (
    select t.organization_id, t.token_type, coalesce(sum(l.tokens_deducted), 0)::bigint as tokens
    from public.ai_tokens t
    left join public.ai_token_usage_log l on l.organization_id = t.organization_id
        and l.token_type = t.token_type and l.created_at >= t.refresh_date - interval '30 days'
    group by t.organization_id, t.token_type
), faults as (
    select 1 as position, 'emergency_balance' as kind, organization_id, token_type,
        balance::bigint as stored, (total_allocated - total_used)::bigint as expected
    from public.ai_tokens where balance = 9999
    union all
    select 2, 'balance_above_allocated', organization_id, token_type, balance,
        total_allocated - total_used
    from public.ai_tokens where balance > total_allocated
    union all
    select 3, 'used_differs_from_log', t.organization_id, t.token_type, t.total_used, l.tokens
    from public.ai_tokens t
    join logged l using (organization_id, token_type)
    where t.total_used <> l.tokens
    union all
    select 4, 'log_of_deleted_users', l.organization_id, l.token_type, count(*), 0
    from public.ai_token_usage_log l
    where not exists (select from public.user_profiles u where u.id = l.user_id)
    group by l.organization_id, l.token_type
)
select f.kind, f.organization_id, o.name as organization, f.token_type, f.stored, f.expected
from faults f
join public.organizations o on o.id = f.organization_id
order by f.position, o.name, f.token_type
