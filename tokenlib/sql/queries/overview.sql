-- What staff see first. Refusals count as in refusals.sql: at their last_at, without what the switch
-- let through.

-- name: totals
-- The window and the equally long one before it.
with windows (period, since, until) as (values
    ('now', %(since)s::timestamptz, %(until)s::timestamptz),
    ('before', %(before)s::timestamptz, %(since)s::timestamptz))
select w.period, c.uses, c.tokens, tokenlib.active_between(w.since, w.until) as organizations,
    tokenlib.refused_between(w.since, w.until) as refusals, c.refunded,
    round(c.tokens * p.token_cost_cents, 2) as cost_cents,
    round(m.monthly_cents * extract(epoch from w.until - w.since)
        / extract(epoch from interval '30 days'), 2) as revenue_cents
from windows w
cross join lateral (
    select coalesce(sum(uses), 0)::bigint as uses, coalesce(sum(tokens), 0)::bigint as tokens,
        coalesce(sum(refunded), 0)::bigint as refunded
    from tokenlib.usage_between(w.since, w.until, null)) as c
cross join (
    select coalesce(sum(p.monthly_price_cents), 0) as monthly_cents
    from public.organizations o
    join public.ai_token_plans p on p.plan = o.plan) as m
cross join public.ai_token_parameters p

-- name: days
-- Every day of the window, also one without any of it.
with days as materialized (
    select (start at time zone %(timezone)s::text)::date as day, start, since, until
    from tokenlib.bars(%(since)s, %(until)s, 'day', %(timezone)s)
), used as (
    select (start at time zone %(timezone)s::text)::date as day, sum(uses)::bigint as uses,
        sum(tokens)::bigint as tokens, sum(refunded)::bigint as refunded
    from tokenlib.usage_bars(%(since)s, %(until)s, 'day', %(timezone)s, null)
    group by 1
)
select d.day, coalesce(u.uses, 0)::bigint as uses, coalesce(u.tokens, 0)::bigint as tokens,
    case when u.uses > 0 then tokenlib.active_between(d.since, d.until) else 0 end
        as organizations,
    tokenlib.refused_between(d.since, d.until) as refusals,
    coalesce(u.refunded, 0)::bigint as refunded,
    round(coalesce(u.tokens, 0) * (select token_cost_cents from public.ai_token_parameters), 2)
        as cost_cents
from days d
left join used u using (day)
order by d.day

-- name: movers
with used as (
    select organization_id,
        coalesce(sum(tokens_deducted) filter (where created_at >= %(since)s::timestamptz
            and created_at < %(until)s::timestamptz), 0)::bigint as tokens,
        coalesce(sum(tokens_deducted) filter (where created_at < %(before_until)s::timestamptz), 0)
            ::bigint as before
    from public.ai_token_usage_log
    where created_at >= %(before)s::timestamptz and created_at < %(until)s::timestamptz
    group by organization_id
)
select u.organization_id, coalesce(o.name, u.organization_id::text) as name, o.plan, u.tokens,
    u.before
from used u
left join public.organizations o on o.id = u.organization_id
where u.tokens <> u.before
order by abs(u.tokens - u.before) desc, u.organization_id
limit %(limit)s::bigint

-- name: movers_closed
-- The same for staff and the service, from the rollups.
select m.organization_id, coalesce(o.name, m.organization_id::text) as name, o.plan, m.tokens,
    m.before
from tokenlib.movers(%(since)s, %(until)s, %(before)s, %(before_until)s, %(limit)s) as m
left join public.organizations o on o.id = m.organization_id
order by abs(m.tokens - m.before) desc, m.organization_id

-- name: run_outs_closed
-- run_outs of everybody, for staff and the service, from the rollups; names are read for the first rows.
select a.organization_id, coalesce(o.name, a.organization_id::text) as name,
    coalesce(o.plan, a.plan) as plan, a.token_type, a.balance, a.reserved, a.total_allocated,
    a.refresh_date, (r.tokens / 7)::float8 as pace, r.run_out_at, r.total
from tokenlib.run_outs(%(within)s, %(limit)s, false) as r
join public.ai_tokens a on a.organization_id = r.organization_id and a.token_type = r.token_type
left join public.organizations o on o.id = a.organization_id
order by r.run_out_at, pace desc, name, a.organization_id, a.token_type
limit %(limit)s::bigint

-- name: run_outs
-- The pace of the last 7 days, going on. The refresh saves a wallet; nothing refills `shared`.
with clock as materialized (select tokenlib.clock() as now),
week as (
    select organization_id, token_type, sum(tokens_deducted) as tokens
    from public.ai_token_usage_log
    -- Not joined with the clock: the index would then be read from the log's first row on.
    where created_at >= (select now - interval '7 days' from clock)
        and created_at < (select now from clock)
        and (%(ids)s::uuid[] is null or organization_id = any(%(ids)s::uuid[]))
    group by organization_id, token_type
    having sum(tokens_deducted) > 0
), pace as (
    select a.organization_id, a.token_type, a.balance, a.reserved, a.total_allocated,
        a.refresh_date, (w.tokens / 7)::float8 as pace, c.now, a.plan,
        -- Compared before it is computed: a slow pace would overflow the calendar.
        case when a.balance::numeric * 604800
            < w.tokens * extract(epoch from %(within)s::interval)
            then c.now + (a.balance * 7 / w.tokens)::float8 * interval '1 day' end as run_out_at
    from week w
    join public.ai_tokens a
        on a.organization_id = w.organization_id and a.token_type = w.token_type
    cross join clock c
    where a.allowance is not null or a.plan is null
)
select p.organization_id, coalesce(o.name, p.organization_id::text) as name,
    coalesce(o.plan, p.plan) as plan, p.token_type, p.balance, p.reserved, p.total_allocated,
    p.refresh_date, p.pace, p.run_out_at, count(*) over () as total
from pace p
left join public.organizations o on o.id = p.organization_id
where p.run_out_at is not null and (p.token_type = 'shared' or p.run_out_at < p.refresh_date)
order by p.run_out_at, p.pace desc, name, p.organization_id, p.token_type
limit %(limit)s::bigint
