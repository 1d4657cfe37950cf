-- What wallets hold, as stored. tokenlib.clock() decides what is due; it is read once, since it is
-- volatile.

-- name: wallets
with clock as materialized (select tokenlib.clock() as now),
extra as (
    select organization_id, token_type, sum(amount - used_before)::bigint as tokens
    from public.ai_token_grants
    where closed_at is null and arrived_at is not null and kind <> 'allowance'
        and (%(ids)s::uuid[] is null or organization_id = any(%(ids)s::uuid[]))
    group by organization_id, token_type
)
select a.organization_id, coalesce(o.name, a.organization_id::text) as name,
    coalesce(o.plan, a.plan) as plan, coalesce(s.status, 'active') as status, a.token_type,
    a.balance, a.reserved, a.total_used, a.total_allocated, a.allowance,
    a.allowance is null and a.plan is not null as unlimited,
    coalesce(e.tokens, 0) as granted_extra, a.refresh_date, a.refresh_date <= c.now as refresh_due,
    a.last_used_at
from public.ai_tokens a
cross join clock c
join public.ai_token_types t using (token_type)
left join public.organizations o on o.id = a.organization_id
left join public.ai_token_organization_settings s on s.organization_id = a.organization_id
left join extra e on e.organization_id = a.organization_id and e.token_type = a.token_type
where %(ids)s::uuid[] is null or a.organization_id = any(%(ids)s::uuid[])
order by name, a.organization_id, t.position

-- name: reservations
with clock as materialized (select tokenlib.clock() as now)
select r.id, r.organization_id, coalesce(o.name, r.organization_id::text) as organization,
    r.user_id, coalesce(u.full_name, u.email, r.user_id::text) as user, r.token_type, r.feature,
    r.units, r.tokens, r.waived, r.created_at, r.expires_at, c.now - r.created_at as age,
    r.expires_at <= c.now as expired, count(*) over () as total
from clock c
join public.ai_token_reservations r on r.state = 'held'
left join public.organizations o on o.id = r.organization_id
left join public.user_profiles u on u.id = r.user_id
where (%(organization_id)s::uuid is null or r.organization_id = %(organization_id)s::uuid)
    and (not %(expired_only)s::boolean or r.expires_at <= c.now)
    and (not %(live_only)s::boolean or r.expires_at > c.now)
order by r.created_at, r.id
limit %(limit)s::bigint

-- name: ledger
-- Each wallet gives its latest entries by number, so a long log is not read to show its end. Legacy
-- charges have no number and come before every numbered one.
select e.*, e.kind = 'charge' and exists (select from public.ai_token_events r
    where r.organization_id = %(organization_id)s::uuid and r.subject_id = e.id
        and r.kind = 'refund') as refunded
from public.ai_token_types t
cross join lateral (
    (select id, token_type, number as log_position, 0::bigint as event_position, 'charge' as kind,
        created_at, created_at as effective_at, user_id::text as actor, feature_used as feature,
        null::text as reason,
        case when reservation_id is null then -tokens_deducted else returned end as balance_change,
        -held as reserved_change, tokens_deducted as used_change, remaining_balance as balance_after,
        tokens_waived as waived, metadata as data
    from public.ai_token_usage_log
    where organization_id = %(organization_id)s::uuid and token_type = t.token_type
        and number is not null
        and (%(kind)s::text is null or %(kind)s::text = 'charge')
        and (%(feature)s::text is null or feature_used = %(feature)s::text)
        and (%(user_id)s::uuid is null or user_id = %(user_id)s::uuid)
        and (%(since)s::timestamptz is null or created_at >= %(since)s::timestamptz)
        and (%(until)s::timestamptz is null or created_at < %(until)s::timestamptz)
        and (%(before_at)s::timestamptz is null or (created_at, token_type, number, 0, id)
            < (%(before_at)s::timestamptz, %(before_type)s::text, %(before_log)s::bigint,
                %(before_event)s::bigint, %(before_id)s::uuid))
    order by number desc limit %(limit)s::bigint)
    union all
    (select id, token_type, 0, 0, 'charge', created_at, created_at, user_id::text, feature_used,
        null, -tokens_deducted, 0, tokens_deducted, remaining_balance, tokens_waived, metadata
    from public.ai_token_usage_log
    where organization_id = %(organization_id)s::uuid and token_type = t.token_type
        and number is null
        and (%(kind)s::text is null or %(kind)s::text = 'charge')
        and (%(feature)s::text is null or feature_used = %(feature)s::text)
        and (%(user_id)s::uuid is null or user_id = %(user_id)s::uuid)
        and (%(since)s::timestamptz is null or created_at >= %(since)s::timestamptz)
        and (%(until)s::timestamptz is null or created_at < %(until)s::timestamptz)
        and (%(before_at)s::timestamptz is null or (created_at, token_type, 0, 0, id)
            < (%(before_at)s::timestamptz, %(before_type)s::text, %(before_log)s::bigint,
                %(before_event)s::bigint, %(before_id)s::uuid))
    order by created_at desc, id desc limit %(limit)s::bigint)
    union all
    (select id, token_type, after_log, number, kind, created_at, effective_at, actor,
        data ->> 'feature', reason, balance_change, reserved_change, used_change, balance_after, 0,
        data
    from public.ai_token_events
    where organization_id = %(organization_id)s::uuid and token_type = t.token_type
        and (%(kind)s::text is null or kind = %(kind)s::text)
        and (%(feature)s::text is null or %(feature)s::text
            = coalesce(data ->> 'feature', case when kind = 'reserve' then reason end))
        and (%(user_id)s::uuid is null
            or %(user_id)s::uuid::text in (actor, data ->> 'user_id'))
        and (%(since)s::timestamptz is null or created_at >= %(since)s::timestamptz)
        and (%(until)s::timestamptz is null or created_at < %(until)s::timestamptz)
        and (%(before_at)s::timestamptz is null or (created_at, token_type, after_log, number, id)
            < (%(before_at)s::timestamptz, %(before_type)s::text, %(before_log)s::bigint,
                %(before_event)s::bigint, %(before_id)s::uuid))
    order by number desc limit %(limit)s::bigint)
) as e
where %(token_type)s::text is null or t.token_type = %(token_type)s::text
order by e.created_at desc, e.token_type desc, e.log_position desc, e.event_position desc, e.id desc
limit %(limit)s::bigint
