-- Who used what. The usage log gives gross figures, the refund events what was given back, each at
-- its own created_at. One organization when organization_id is given, else all that the reader sees.

-- name: by_feature
with charges as (
    select feature_used as feature, min(token_type) as token_type, count(*) as uses,
        sum(tokens_deducted)::bigint as tokens, sum(tokens_waived)::bigint as waived
    from public.ai_token_usage_log
    where created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
        and (%(organization_id)s::uuid is null or organization_id = %(organization_id)s::uuid)
    group by feature_used
), refunds as (
    select data ->> 'feature' as feature, min(token_type) as token_type,
        sum(balance_change)::bigint as refunded
    from public.ai_token_events
    where kind = 'refund'
        and created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
        and (%(organization_id)s::uuid is null or organization_id = %(organization_id)s::uuid)
    group by data ->> 'feature'
)
select feature, coalesce(f.token_type, c.token_type, r.token_type) as token_type,
    coalesce(c.uses, 0) as uses, coalesce(c.tokens, 0) as tokens, coalesce(c.waived, 0) as waived,
    coalesce(r.refunded, 0) as refunded, coalesce(c.tokens, 0) - coalesce(r.refunded, 0) as net
from charges c
full join refunds r using (feature)
left join public.ai_token_features f using (feature)
order by tokens desc, uses desc, feature

-- name: by_day
with charges as (
    select (created_at at time zone %(timezone)s::text)::date as day,
        case when %(by_feature)s::boolean then feature_used else '' end as feature,
        count(*) as uses, sum(tokens_deducted)::bigint as tokens
    from public.ai_token_usage_log
    where created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
        and (%(organization_id)s::uuid is null or organization_id = %(organization_id)s::uuid)
        and now() at time zone %(timezone)s::text is not null -- refuses a wrong name without rows
    group by 1, 2
), refunds as (
    select (created_at at time zone %(timezone)s::text)::date as day,
        case when %(by_feature)s::boolean then data ->> 'feature' else '' end as feature,
        sum(balance_change)::bigint as refunded
    from public.ai_token_events
    where kind = 'refund'
        and created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
        and (%(organization_id)s::uuid is null or organization_id = %(organization_id)s::uuid)
    group by 1, 2
)
select day, nullif(feature, '') as feature, coalesce(c.uses, 0) as uses,
    coalesce(c.tokens, 0) as tokens, coalesce(r.refunded, 0) as refunded
from charges c
full join refunds r using (day, feature)
order by day, feature

-- name: top_organizations
with charges as (
    select organization_id, count(*) as uses, sum(tokens_deducted)::bigint as tokens
    from public.ai_token_usage_log
    where created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
    group by organization_id
), top as (
    select *, coalesce(tokens / nullif(sum(tokens) over (), 0), 0)::float8 as share
    from charges order by tokens desc, uses desc, organization_id limit %(limit)s::bigint
), refunds as (
    select organization_id, sum(balance_change)::bigint as refunded
    from public.ai_token_events
    where kind = 'refund'
        and created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
    group by organization_id
)
select t.organization_id, coalesce(o.name, t.organization_id::text) as name, o.plan, t.uses,
    t.tokens, coalesce(r.refunded, 0) as refunded, t.tokens - coalesce(r.refunded, 0) as net,
    t.share
from top t
left join refunds r using (organization_id)
left join public.organizations o on o.id = t.organization_id
order by t.tokens desc, t.uses desc, t.organization_id

-- name: top_users
with charges as (
    select organization_id, user_id, count(*) as calls, sum(tokens_deducted)::bigint as tokens
    from public.ai_token_usage_log
    where created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
        and (%(organization_id)s::uuid is null or organization_id = %(organization_id)s::uuid)
    group by organization_id, user_id
), top as (
    select *, coalesce(tokens / nullif(sum(tokens) over (), 0), 0)::float8 as share
    from charges order by tokens desc, calls desc, organization_id, user_id limit %(limit)s::bigint
)
select t.organization_id, coalesce(o.name, t.organization_id::text) as organization, t.user_id,
    coalesce(u.full_name, u.email, t.user_id::text, 'unknown') as user, t.calls, t.tokens, t.share
from top t
left join public.organizations o on o.id = t.organization_id
left join public.user_profiles u on u.id = t.user_id
order by t.tokens desc, t.calls desc, t.organization_id, t.user_id

-- name: refunds
select count(*) as refunds, coalesce(sum(balance_change), 0)::bigint as tokens,
    count(distinct organization_id) as organizations
from public.ai_token_events
where kind = 'refund'
    and created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
    and (%(organization_id)s::uuid is null or organization_id = %(organization_id)s::uuid)

-- name: cost_against_revenue
with charges as (
    select coalesce(sum(tokens_deducted), 0)::bigint as tokens
    from public.ai_token_usage_log
    where created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
), plans as (
    select coalesce(sum(p.monthly_price_cents), 0) as monthly_cents
    from public.organizations o
    join public.ai_token_plans p on p.plan = o.plan
)
select c.tokens, coalesce(round(c.tokens * p.token_cost_cents, 2), 0) as cost_cents,
    round(m.monthly_cents
        * extract(epoch from %(until)s::timestamptz - %(since)s::timestamptz)
        / extract(epoch from interval '30 days'), 2) as revenue_cents
from charges c
cross join plans m
left join public.ai_token_parameters p on true

-- The same for staff and the service, from the rollups. Members ask the statements above: the rollups
-- are about everybody.

-- name: by_feature_closed
with used as (
    select feature, min(token_type) filter (where uses > 0) as charged,
        min(token_type) filter (where refunded > 0) as given_back, sum(uses)::bigint as uses,
        sum(tokens)::bigint as tokens, sum(waived)::bigint as waived,
        sum(refunded)::bigint as refunded
    from tokenlib.usage_between(%(since)s, %(until)s, %(organization_id)s)
    group by feature
)
select u.feature, coalesce(f.token_type, u.charged, u.given_back) as token_type, u.uses, u.tokens,
    u.waived, u.refunded, u.tokens - u.refunded as net
from used u
left join public.ai_token_features f using (feature)
where u.uses > 0 or u.refunded > 0
order by u.tokens desc, u.uses desc, u.feature

-- name: by_day_closed
select (start at time zone %(timezone)s::text)::date as day,
    case when %(by_feature)s::boolean then feature end as feature, sum(uses)::bigint as uses,
    sum(tokens)::bigint as tokens, sum(refunded)::bigint as refunded
from tokenlib.usage_bars(%(since)s, %(until)s, 'day', %(timezone)s, %(organization_id)s)
where uses > 0 or refunded > 0
group by 1, 2
order by 1, 2

-- name: top_organizations_closed
select t.organization_id, coalesce(o.name, t.organization_id::text) as name, o.plan, t.uses,
    t.tokens, r.refunded, t.tokens - r.refunded as net,
    coalesce(t.tokens / nullif(t.whole, 0), 0)::float8 as share
from tokenlib.top_usage(%(since)s, %(until)s, false, %(limit)s, null) as t
cross join lateral (
    select coalesce(sum(balance_change), 0)::bigint as refunded from public.ai_token_events
    where organization_id = t.organization_id and kind = 'refund'
        and created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz) as r
left join public.organizations o on o.id = t.organization_id
order by t.tokens desc, t.uses desc, t.organization_id

-- name: top_users_closed
select t.organization_id, coalesce(o.name, t.organization_id::text) as organization, t.user_id,
    coalesce(u.full_name, u.email, t.user_id::text, 'unknown') as user, t.uses as calls, t.tokens,
    coalesce(t.tokens / nullif(t.whole, 0), 0)::float8 as share
from tokenlib.top_usage(%(since)s, %(until)s, true, %(limit)s, %(organization_id)s) as t
left join public.organizations o on o.id = t.organization_id
left join public.user_profiles u on u.id = t.user_id
order by t.tokens desc, t.uses desc, t.organization_id, t.user_id

-- name: cost_against_revenue_closed
with charges as (
    select coalesce(sum(tokens), 0)::bigint as tokens
    from tokenlib.usage_between(%(since)s, %(until)s, null)
), plans as (
    select coalesce(sum(p.monthly_price_cents), 0) as monthly_cents
    from public.organizations o
    join public.ai_token_plans p on p.plan = o.plan
)
select c.tokens, coalesce(round(c.tokens * p.token_cost_cents, 2), 0) as cost_cents,
    round(m.monthly_cents
        * extract(epoch from %(until)s::timestamptz - %(since)s::timestamptz)
        / extract(epoch from interval '30 days'), 2) as revenue_cents
from charges c
cross join plans m
left join public.ai_token_parameters p on true
