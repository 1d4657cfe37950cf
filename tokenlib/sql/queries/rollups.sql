-- The rollups as a whole: closing, forgetting, comparing them with the log.

-- name: patience
set local statement_timeout = 0

-- name: close
select * from tokenlib.close_usage(%(most)s)

-- name: forget
select tokenlib.forget_usage()

-- name: archived_to
select tokenlib.usage_archived_to() as until

-- name: state
-- Nothing where nothing is closed; to others than staff and the service, too.
select closed_to, tokenlib.clock() - closed_to as lag
from public.ai_token_usage_closed where closed_to is not null

-- name: differences
-- Each day, feature and wallet where the rollups are not what the log and the refunds add up to, as
-- far as the log is not archived.
with closed as materialized (select closed_to from public.ai_token_usage_closed),
days as (
    select d as since, least(d + interval '24 hours', c.closed_to) as until
    from closed c
    cross join generate_series(greatest(%(since)s::timestamptz,
            tokenlib.usage_archived_to(), date_bin('5 minutes', least(
            (select min(created_at) from public.ai_token_usage_log),
            (select min(created_at) from public.ai_token_events where kind = 'refund')),
            '2000-01-01 00:00Z')),
        c.closed_to - interval '5 minutes', interval '24 hours') as d
), figures as (
    select d.since, u.feature, u.token_type, u.uses, u.tokens, u.waived, u.refunded
    from days d cross join lateral tokenlib.usage_between(d.since, d.until, null) as u
    union all
    select d.since, u.feature, u.token_type, -u.uses, -u.tokens, -u.waived, -u.refunded
    from days d cross join lateral tokenlib.usage_raw(d.since, d.until, null) as u
)
select since, feature, token_type, sum(uses)::bigint as uses, sum(tokens)::bigint as tokens,
    sum(waived)::bigint as waived, sum(refunded)::bigint as refunded
from figures
group by since, feature, token_type
having sum(uses) <> 0 or sum(tokens) <> 0 or sum(waived) <> 0 or sum(refunded) <> 0
order by since, feature, token_type
