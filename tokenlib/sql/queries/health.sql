-- Is the gate well? The first three are the operators' own checks on ai_tokens.

-- name: now
select tokenlib.clock() as now

-- name: stuck_tokens
select a.organization_id, coalesce(o.name, a.organization_id::text) as name, a.token_type,
    a.balance, a.total_allocated
from public.ai_tokens a
left join public.organizations o on o.id = a.organization_id
where a.balance > a.total_allocated
order by name, a.organization_id, a.token_type

-- name: open_sums
select a.organization_id, coalesce(o.name, a.organization_id::text) as name, a.token_type,
    a.balance, a.reserved, a.total_used, a.total_allocated,
    a.balance + a.reserved + a.total_used - a.total_allocated as difference
from public.ai_tokens a
left join public.organizations o on o.id = a.organization_id
where a.total_allocated <> a.balance + a.reserved + a.total_used
order by name, a.organization_id, a.token_type

-- name: overdue_periods
with clock as materialized (select tokenlib.clock() as now)
select a.organization_id, coalesce(o.name, a.organization_id::text) as name, a.token_type,
    a.refresh_date, c.now - a.refresh_date as overdue, count(*) over () as total
from public.ai_tokens a
cross join clock c
left join public.organizations o on o.id = a.organization_id
where a.refresh_date <= (select now from clock)
order by a.refresh_date, name, a.organization_id, a.token_type
limit %(limit)s::bigint

-- name: findings
select f.id, f.organization_id, coalesce(o.name, f.organization_id::text) as organization,
    f.token_type, f.kind, f.detail, f.found, f.found_at, f.settled_at, f.settled_by, f.settlement,
    count(*) over () as total
from public.ai_token_findings f
left join public.organizations o on o.id = f.organization_id
where %(settled)s::boolean is null or (f.settled_at is not null) = %(settled)s::boolean
order by f.settled_at desc nulls first, organization, f.token_type, f.kind, f.id
limit %(limit)s::bigint

-- name: verifications
select at, wallets, entries, problems from public.ai_token_verifications
order by at desc
limit %(limit)s::bigint

-- name: plan_drift
select a.organization_id, o.name, o.plan, a.plan as wallet_plan, count(*) as wallets
from public.ai_tokens a
join public.organizations o on o.id = a.organization_id
where a.plan is not null and a.token_type <> 'shared' and a.plan is distinct from o.plan
group by a.organization_id, o.name, o.plan, a.plan
order by o.name, a.organization_id, a.plan

-- name: plan_drift_closed
-- The same for staff and the service: of who may differ, by what the closing keeps.
with differing as (
    select s.organization_id
    from public.ai_token_wallet_sums s
    join public.organizations o on o.id = s.organization_id
    where s.least_plan is not null and (s.least_plan is distinct from o.plan
        or s.most_plan is distinct from o.plan)
    union
    select m.organization_id from (select tokenlib.clock() as now) as c
    cross join lateral tokenlib.organizations_moved(tokenlib.wallets_closed_to(c.now), c.now) as m
)
select a.organization_id, o.name, o.plan, a.plan as wallet_plan, count(*) as wallets
from public.ai_tokens a
join public.organizations o on o.id = a.organization_id
-- An array: few differ, and each is looked up.
where a.organization_id = any (array(select organization_id from differing))
    and a.plan is not null and a.token_type <> 'shared' and a.plan is distinct from o.plan
group by a.organization_id, o.name, o.plan, a.plan
order by o.name, a.organization_id, a.plan

-- name: latencies
select operation, measured_at, milliseconds from public.ai_token_latencies
where measured_at >= %(since)s::timestamptz
order by measured_at desc, operation

-- name: latest_latencies
select distinct on (operation) operation, measured_at, milliseconds
from public.ai_token_latencies
order by operation, measured_at desc

-- name: database_size
-- Only who may read the parameters may ask.
select pg_database_size(current_database()) as bytes from public.ai_token_parameters
