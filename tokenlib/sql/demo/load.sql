-- The bulk path of the demo, for the owner alone: nobody else may insert. Rows come through
-- temporary tables, since COPY into a table with row-level security is refused; every constraint
-- of the books stays on.

-- name: lock
-- One load or reset of a database at a time; held until the connection ends.
select pg_advisory_lock(7305403)

-- name: loaded
select after from public.ai_token_changes where action = 'demo_loaded' limit 1

-- name: begun
select after from public.ai_token_changes where action = 'demo_begun' limit 1

-- name: terms
select tokenlib.clock() as now, p.top_up_block, l.requests_per_minute,
    ceil(l.seconds_between_requests)::bigint as seconds_between_requests, l.tokens_per_request
from public.ai_token_parameters p
left join public.ai_token_limits l on l.organization_id is null

-- name: stage
create temporary table stage_organizations (id uuid, name text, plan text) on commit drop;
create temporary table stage_members (id uuid, organization_id uuid, full_name text, email text,
    role text) on commit drop;
create temporary table stage_contracts (organization_id uuid, token_type text, allowance bigint)
    on commit drop;
create temporary table stage_settings (organization_id uuid, status text, status_since timestamptz)
    on commit drop;
create temporary table stage_paused (organization_id uuid, user_id uuid, paused_at timestamptz)
    on commit drop;
create temporary table stage_changes (organization_id uuid, action text, actor text, reason text,
    before jsonb, after jsonb, created_at timestamptz) on commit drop;
create temporary table stage_staff (user_id uuid, email text, full_name text, role text,
    grants_per_day bigint) on commit drop;
create temporary table stage_wallets (id uuid, organization_id uuid, token_type text,
    balance bigint, total_allocated bigint, total_used bigint, refresh_date timestamptz,
    last_used_at timestamptz, created_at timestamptz, updated_at timestamptz,
    period_start timestamptz, plan text, allowance bigint, pending bigint, due_at timestamptz,
    log_number bigint, log_hash bytea, event_number bigint, event_hash bytea,
    last_entry_at timestamptz) on commit drop;
create temporary table stage_log (id uuid, organization_id uuid, user_id uuid, token_type text,
    feature_used text, tokens_deducted bigint, remaining_balance bigint, metadata jsonb,
    created_at timestamptz, number bigint, units bigint, tokens_waived bigint, held bigint,
    returned bigint, metadata_digest bytea, hash_version smallint, hash bytea) on commit drop;
create temporary table stage_events (id uuid, organization_id uuid, token_type text, number bigint,
    after_log bigint, kind text, balance_change bigint, reserved_change bigint, used_change bigint,
    balance_after bigint, effective_at timestamptz, created_at timestamptz, actor text, reason text,
    subject_id uuid, data jsonb, hash_version smallint, hash bytea) on commit drop;
create temporary table stage_grants (id uuid, organization_id uuid, token_type text, kind text,
    source text, amount bigint, used bigint, used_before bigint, remaining bigint,
    created_at timestamptz, effective_at timestamptz, arrived_at timestamptz,
    expires_at timestamptz, closed_at timestamptz) on commit drop;
create temporary table stage_refusals (organization_id uuid, user_id uuid, feature text, rule text,
    minute timestamptz, token_type text, needed bigint, available bigint, count bigint,
    first_at timestamptz, last_at timestamptz, data jsonb) on commit drop

-- name: copy_organizations
copy stage_organizations from stdin

-- name: copy_members
copy stage_members from stdin

-- name: copy_contracts
copy stage_contracts from stdin

-- name: copy_settings
copy stage_settings from stdin

-- name: copy_paused
copy stage_paused from stdin

-- name: copy_changes
copy stage_changes from stdin

-- name: copy_staff
copy stage_staff from stdin

-- name: copy_wallets
copy stage_wallets from stdin

-- name: copy_log
copy stage_log from stdin

-- name: copy_events
copy stage_events from stdin

-- name: copy_grants
copy stage_grants from stdin

-- name: copy_refusals
copy stage_refusals from stdin

-- name: store
-- The log in order of time, as real use would have written it.
set local work_mem = '64MB';
insert into public.organizations (id, name, plan) select id, name, plan from stage_organizations;
insert into public.user_profiles (id, organization_id, full_name, email, role)
select id, organization_id, full_name, email, role from stage_members;
insert into public.tokenlib_staff (user_id, email, full_name, role, grants_per_day)
select user_id, email, full_name, role, grants_per_day from stage_staff;
insert into public.ai_token_organization_allowances (organization_id, token_type, allowance)
select organization_id, token_type, allowance from stage_contracts;
insert into public.ai_token_organization_settings (organization_id, status, status_since)
select organization_id, status, status_since from stage_settings;
insert into public.ai_token_user_settings (organization_id, user_id, paused_at)
select organization_id, user_id, paused_at from stage_paused;
insert into public.ai_token_changes (organization_id, action, actor, reason, before, after,
    created_at)
select organization_id, action, actor, reason, before, after, created_at from stage_changes;
insert into public.ai_tokens (id, organization_id, token_type, balance, total_allocated, total_used,
    refresh_date, last_used_at, created_at, updated_at, period_start, plan, allowance, pending,
    due_at, log_number, log_hash, event_number, event_hash, last_entry_at)
select id, organization_id, token_type, balance, total_allocated, total_used, refresh_date,
    last_used_at, created_at, updated_at, period_start, plan, allowance, pending, due_at,
    log_number, log_hash, event_number, event_hash, last_entry_at
from stage_wallets;
insert into public.ai_token_usage_log (id, organization_id, user_id, token_type, feature_used,
    tokens_deducted, remaining_balance, metadata, created_at, number, units, tokens_waived, held,
    returned, metadata_digest, hash_version, hash)
select id, organization_id, user_id, token_type, feature_used, tokens_deducted, remaining_balance,
    metadata, created_at, number, units, tokens_waived, held, returned, metadata_digest,
    hash_version, hash
from stage_log order by created_at;
insert into public.ai_token_events (id, organization_id, token_type, number, after_log, kind,
    balance_change, reserved_change, used_change, balance_after, effective_at, created_at, actor,
    reason, subject_id, data, hash_version, hash)
select id, organization_id, token_type, number, after_log, kind, balance_change, reserved_change,
    used_change, balance_after, effective_at, created_at, actor, reason, subject_id, data,
    hash_version, hash
from stage_events order by created_at;
insert into public.ai_token_grants (id, organization_id, token_type, kind, source, amount, used,
    used_before, remaining, created_at, effective_at, arrived_at, expires_at, closed_at)
select id, organization_id, token_type, kind, source, amount, used, used_before, remaining,
    created_at, effective_at, arrived_at, expires_at, closed_at
from stage_grants;
insert into public.ai_token_refusals (organization_id, user_id, feature, rule, minute, token_type,
    needed, available, count, first_at, last_at, data)
select organization_id, user_id, feature, rule, minute, token_type, needed, available, count,
    first_at, last_at, data
from stage_refusals order by first_at

-- name: analyze
analyze public.organizations, public.user_profiles, public.ai_tokens, public.ai_token_usage_log,
    public.ai_token_events, public.ai_token_grants, public.ai_token_refusals

-- name: mark
insert into public.ai_token_changes (action, actor, reason, after, created_at)
values (%(action)s, 'demo', 'demo data', %(after)s, tokenlib.clock())

-- name: counts
select (select count(*) from public.organizations) as organizations,
    (select count(*) from public.user_profiles) as users,
    (select count(*) from public.ai_token_usage_log) as charges,
    (select count(*) from public.ai_token_events) as events,
    (select coalesce(sum(count), 0)::bigint from public.ai_token_refusals) as refusals
