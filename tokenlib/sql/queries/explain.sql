-- A balance as a story, and the grants behind it. Where a Citus may be asked, each table is told which
-- organization: it then leaves the question to that one's node as a whole.

-- name: story
-- From the event that opened the period (the wallet's opening, or a refresh) to the moment asked
-- about. What fell due before anybody touched the wallet took effect at its time: effective_at.
with wallet as (
    select a.*, coalesce(%(at)s::timestamptz, 'infinity') as until,
        coalesce(%(at)s::timestamptz, greatest(tokenlib.clock(), a.last_entry_at)) as at
    from public.ai_tokens a
    where a.organization_id = %(organization_id)s::uuid and a.token_type = %(token_type)s::text
), base as (
    select e.* from wallet w
    cross join lateral (
        select * from public.ai_token_events
        where organization_id = %(organization_id)s::uuid and token_type = w.token_type
            and kind in ('opening', 'refresh') and effective_at <= w.until
        order by number desc limit 1) as e
), later as (
    select 'charge' as kind, l.feature_used as detail, l.created_at as at,
        case when l.reservation_id is null then -l.tokens_deducted else l.returned end
            as balance_change,
        -l.held as reserved_change, l.tokens_deducted as used_change, l.tokens_waived as waived
    from base b
    join public.ai_token_usage_log l on l.organization_id = %(organization_id)s::uuid
        and l.token_type = b.token_type and l.number > b.after_log
    union all
    select e.kind, case when e.kind = 'refund' then e.data ->> 'feature'
            when e.kind in ('grant', 'grant_expired') then g.kind end,
        e.effective_at, e.balance_change, e.reserved_change, e.used_change, 0
    from base b
    join public.ai_token_events e on e.organization_id = %(organization_id)s::uuid
        and e.token_type = b.token_type and e.number > b.number
    left join public.ai_token_grants g on e.kind in ('grant', 'grant_expired')
        and g.organization_id = %(organization_id)s::uuid and g.id = e.subject_id
), told as (
    select l.* from later l cross join wallet w where l.at <= w.until
), lines as (
    select case when kind in ('reserve', 'release', 'hold_expired') then null else kind end as kind,
        detail, count(*) as count,
        sum(case when kind = 'charge' then -used_change else balance_change end)::bigint as tokens,
        sum(waived)::bigint as waived
    from told
    where kind in ('charge', 'refund', 'grant', 'grant_expired', 'plan_change', 'top_up')
    group by 1, 2
    union all
    -- Held tokens whose grant expired meanwhile came back to nobody.
    select 'hold_lapsed', null, count(*), sum(lapsed)::bigint, 0
    from (select balance_change + reserved_change
            + case when kind = 'charge' then used_change else 0 end as lapsed
        from told where kind in ('charge', 'reserve', 'release', 'hold_expired')
            and reserved_change <> 0) as holds
    where lapsed <> 0
    having count(*) > 0
), figures as materialized (
    select w.organization_id, w.token_type, w.at, b.kind as opened_by, b.effective_at as opened_at,
        b.balance_after + w.reserved - (select coalesce(sum(reserved_change), 0) from later)
            as opening,
        b.balance_after + (select coalesce(sum(balance_change), 0) from told) as balance,
        w.reserved - (select coalesce(sum(reserved_change), 0) from later)
            + (select coalesce(sum(reserved_change), 0) from told) as held,
        case when b.kind = 'opening' then b.used_change else 0 end
            + (select coalesce(sum(used_change), 0) from told) as used,
        (select count(*) from public.ai_token_reservations r
            where r.organization_id = %(organization_id)s::uuid and r.token_type = w.token_type
                and r.created_at <= w.until and r.tokens > 0
                and (r.state = 'held' or case r.state when 'expired' then r.expires_at
                    else r.resolved_at end > w.until)) as holds,
        coalesce((select min(e.effective_at) from public.ai_token_events e
            where e.organization_id = %(organization_id)s::uuid and e.token_type = b.token_type
                and e.kind = 'refresh' and e.number > b.number), w.refresh_date) as refresh_date,
        w.refresh_date - w.period_start as period, w.allowance is null as unlimited
    from wallet w cross join base b
)
select f.*, l.kind, l.detail, l.count, l.tokens, coalesce(l.waived, 0) as waived
from figures f
left join lines l on true
order by array_position(array['grant', 'top_up', 'plan_change', 'refund', 'charge', 'grant_expired',
    'hold_lapsed'], l.kind), l.tokens desc, l.detail

-- name: story_closed
-- The same for staff and the service: charges from the rollups, and those of a hold from the hold. It gave
-- back what was not charged, unless it was drawn before: only then the charge says what lapsed.
with wallet as (
    select a.*, coalesce(%(at)s::timestamptz, 'infinity') as until,
        coalesce(%(at)s::timestamptz, greatest(tokenlib.clock(), a.last_entry_at)) as at
    from public.ai_tokens a
    where a.organization_id = %(organization_id)s::uuid and a.token_type = %(token_type)s::text
), base as (
    select e.* from wallet w
    cross join lateral (
        select * from public.ai_token_events
        where organization_id = w.organization_id and token_type = w.token_type
            and kind in ('opening', 'refresh') and effective_at <= w.until
        order by number desc limit 1) as e
), later as materialized (
    select 'held' as kind, null as detail, r.resolved_at as at,
        coalesce(l.tokens_deducted + l.returned, r.tokens) as balance_change,
        -r.tokens as reserved_change, 0 as used_change,
        case when l.held <> 0 then l.returned + l.tokens_deducted - l.held else 0 end as lapsed
    from base b
    join public.ai_token_reservations r on r.organization_id = b.organization_id
        and r.token_type = b.token_type and r.state = 'deducted' and r.resolved_at >= b.created_at
    left join lateral (
        select * from public.ai_token_usage_log
        where (r.drawn is not null or r.resolved_at = b.created_at)
            and organization_id = r.organization_id and reservation_id = r.id offset 0) as l on true
    where r.resolved_at > b.created_at or l.number > b.after_log
    union all
    select e.kind, case when e.kind = 'refund' then e.data ->> 'feature'
            when e.kind in ('grant', 'grant_expired') then g.kind end,
        e.effective_at, e.balance_change, e.reserved_change, e.used_change,
        case when e.kind in ('reserve', 'release', 'hold_expired') and e.reserved_change <> 0
            then e.balance_change + e.reserved_change else 0 end
    from base b
    join public.ai_token_events e on e.organization_id = b.organization_id
        and e.token_type = b.token_type and e.number > b.number
    left join lateral (
        select kind from public.ai_token_grants
        where e.kind in ('grant', 'grant_expired')
            and organization_id = e.organization_id and id = e.subject_id offset 0) as g on true
), charges as materialized (
    select u.* from wallet w cross join base b
    cross join lateral tokenlib.usage_wallet(b.organization_id, b.token_type, b.after_log,
        b.created_at, w.until) as u
), lines as (
    select 'charge' as kind, feature as detail, uses as count, -tokens as tokens, waived from charges
    union all
    select l.kind, l.detail, count(*), sum(l.balance_change)::bigint, 0
    from later l cross join wallet w
    where l.kind in ('refund', 'grant', 'grant_expired', 'plan_change', 'top_up') and l.at <= w.until
    group by 1, 2
    union all
    -- Held tokens whose grant expired meanwhile came back to nobody.
    select 'hold_lapsed', null, count(*), sum(l.lapsed)::bigint, 0
    from later l cross join wallet w
    where l.lapsed <> 0 and l.at <= w.until
    having count(*) > 0
), sums as (
    select coalesce(sum(l.reserved_change), 0) as reserved,
        coalesce(sum(l.reserved_change) filter (where l.at <= w.until), 0) as reserved_then,
        coalesce(sum(l.balance_change) filter (where l.at <= w.until), 0) as balance,
        coalesce(sum(l.used_change) filter (where l.at <= w.until), 0)
            + (select coalesce(sum(tokens), 0) from charges) as used,
        (select coalesce(sum(tokens), 0) from charges) as charged,
        min(l.at) filter (where l.kind = 'refresh') as refreshed
    from later l cross join wallet w
), figures as materialized (
    select w.organization_id, w.token_type, w.at, b.kind as opened_by, b.effective_at as opened_at,
        b.balance_after + w.reserved - s.reserved as opening,
        b.balance_after + s.balance - s.charged as balance,
        w.reserved - s.reserved + s.reserved_then as held,
        case when b.kind = 'opening' then b.used_change else 0 end + s.used as used,
        (select count(*) from public.ai_token_reservations
            where organization_id = w.organization_id and token_type = w.token_type
                and state = 'held' and tokens > 0 and created_at <= w.until)
        + (select count(*) from public.ai_token_reservations
            where w.until < 'infinity' and organization_id = w.organization_id
                and token_type = w.token_type and state <> 'held' and tokens > 0
                and created_at <= w.until
                and case state when 'expired' then expires_at else resolved_at end > w.until) as holds,
        coalesce(s.refreshed, w.refresh_date) as refresh_date,
        w.refresh_date - w.period_start as period, w.allowance is null as unlimited
    from wallet w cross join base b cross join sums s
)
select f.*, l.kind, l.detail, l.count, l.tokens, coalesce(l.waived, 0) as waived
from figures f
left join lines l on true
order by array_position(array['grant', 'top_up', 'plan_change', 'refund', 'charge', 'grant_expired',
    'hold_lapsed'], l.kind), l.tokens desc, l.detail

-- name: grants
-- What is left of each: a charge does not touch the grants, so what waits to be drawn is taken off
-- here, in burn order.
with waiting as (
    select a.token_type, a.pending + coalesce((select sum(r.tokens)
        from public.ai_token_reservations r
        where r.organization_id = %(organization_id)s::uuid and r.token_type = a.token_type
            and r.state = 'held' and r.drawn is null), 0) as tokens
    from public.ai_tokens a where a.organization_id = %(organization_id)s::uuid
), ordered as (
    select g.*, coalesce(sum(case when g.closed_at is null and g.arrived_at is not null
        then g.remaining end) over (partition by g.token_type
        order by g.expires_at nulls last, g.effective_at, g.kind <> 'allowance', g.created_at,
            g.id
        rows between unbounded preceding and 1 preceding), 0) as before
    from public.ai_token_grants g where g.organization_id = %(organization_id)s::uuid
)
select o.id, o.organization_id, o.token_type, o.kind, o.source, o.amount,
    case when o.arrived_at is null then o.amount when o.closed_at is not null then 0
        else o.remaining - least(o.remaining, greatest(0, coalesce(w.tokens, 0) - o.before))
        end::bigint as remaining,
    o.created_at, o.effective_at, o.arrived_at, o.expires_at, o.closed_at, e.actor, e.reason
from ordered o
left join waiting w on w.token_type = o.token_type
left join lateral (
    select actor, reason from public.ai_token_events e
    where e.organization_id = %(organization_id)s::uuid and e.subject_id = o.id
        and e.kind in ('grant', 'grant_scheduled')
    order by e.number limit 1) as e on true
where %(closed)s::boolean or o.closed_at is null
order by o.closed_at desc nulls first, o.token_type, o.expires_at nulls last, o.arrived_at, o.id
limit %(limit)s::bigint
