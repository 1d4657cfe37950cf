-- Who spends most and how unusual that is, and who goes beyond the abuse limits.

-- name: spenders
-- `daily` counts blocks of 24 hours that begin at full hours, from 28 before that of `since` on. What lies
-- between that hour and `since` counts to the block before it, and the last goes on to `until`.
with charges as (
    select organization_id, case when %(by_user)s::boolean then user_id end as user_id,
        count(*) as calls, sum(tokens_deducted)::bigint as tokens
    from public.ai_token_usage_log
    where created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
        and (%(organization_id)s::uuid is null or organization_id = %(organization_id)s::uuid)
    group by 1, 2
), top as (
    select *, coalesce(tokens / nullif(sum(tokens) over (), 0), 0)::float8 as share,
        row_number() over (order by tokens desc, calls desc, organization_id, user_id) as rank
    from charges order by rank limit %(limit)s::bigint
), past as (
    select t.rank, least(floor(extract(epoch from l.created_at
                - date_bin('1 hour', %(since)s::timestamptz, '2000-01-01 00:00Z')) / 86400)::integer,
            case when l.created_at < %(since)s::timestamptz then -1 else %(last_day)s::integer end)
            as day,
        sum(l.tokens_deducted) as tokens,
        sum(l.tokens_deducted) filter (where l.created_at >= %(before)s::timestamptz
            and l.created_at < %(since)s::timestamptz) as before
    from top t
    join public.ai_token_usage_log l on l.organization_id = t.organization_id
        and (not %(by_user)s::boolean or l.user_id is not distinct from t.user_id)
    where l.created_at < %(until)s::timestamptz
        and l.created_at >= least(%(before)s::timestamptz, date_bin('1 hour',
            %(since)s::timestamptz, '2000-01-01 00:00Z') - interval '672 hours')
    group by 1, 2
), refunds as (
    select organization_id, case when %(by_user)s::boolean then data ->> 'user_id' end as user_id,
        sum(balance_change)::bigint as refunded
    from public.ai_token_events
    where kind = 'refund'
        and created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
    group by 1, 2
)
select t.organization_id, coalesce(o.name, t.organization_id::text) as organization, o.plan,
    t.user_id, case when %(by_user)s::boolean
        then coalesce(u.full_name, u.email, t.user_id::text, 'unknown') end as user,
    t.calls, t.tokens, coalesce(r.refunded, 0) as refunded, t.share,
    coalesce((select sum(p.before) from past p where p.rank = t.rank), 0)::bigint as before,
    array(select coalesce(p.tokens, 0)::bigint
        from generate_series(-28, %(last_day)s::integer) as d (day)
        left join past p on p.rank = t.rank and p.day = d.day
        order by d.day) as daily
from top t
left join refunds r on r.organization_id = t.organization_id
    and r.user_id is not distinct from t.user_id::text
left join public.organizations o on o.id = t.organization_id
left join public.user_profiles u on u.id = t.user_id
order by t.rank

-- name: spenders_closed
-- The same for staff and the service, from the rollups.
with top as materialized (
    select t.*, coalesce(t.tokens / nullif(t.whole, 0), 0)::float8 as share,
        row_number() over (order by t.tokens desc, t.uses desc, t.organization_id, t.user_id)
            as rank
    from tokenlib.top_usage(%(since)s, %(until)s, %(by_user)s, %(limit)s, %(organization_id)s) as t
), who as materialized (
    select array_agg(organization_id order by rank) as organizations,
        array_agg(user_id order by rank) as users
    from top
), windows (since, until, bucket, last_day) as (
    values (date_bin('1 hour', %(since)s::timestamptz, '2000-01-01 00:00Z') - interval '672 hours',
            %(since)s::timestamptz, '24 hours', -1),
        (%(since)s, %(until)s, '24 hours', %(last_day)s::integer),
        (%(before)s, %(since)s, null, null)
), used as (
    select o.organization_id, null::uuid as user_id, o.start, w.bucket, w.last_day, o.tokens
    from who cross join windows w
    cross join lateral tokenlib.usage_organizations(organizations, w.since, w.until, w.bucket,
        'UTC', false) as o
    where not %(by_user)s::boolean
    union all
    select p.organization_id, p.user_id, p.start, w.bucket, w.last_day, p.tokens
    from who cross join windows w
    cross join lateral tokenlib.usage_persons(organizations, users, w.since, w.until, w.bucket,
        'UTC') as p
    where %(by_user)s::boolean
), past as (
    select t.rank, case when u.bucket is not null then least(u.last_day, floor(extract(epoch from
            u.start - date_bin('1 hour', %(since)s::timestamptz, '2000-01-01 00:00Z')) / 86400)::integer)
            end as day,
        sum(u.tokens) filter (where u.bucket is not null) as tokens,
        sum(u.tokens) filter (where u.bucket is null) as before
    from used u
    join top t on t.organization_id = u.organization_id and t.user_id is not distinct from u.user_id
    group by 1, 2
)
select t.organization_id, coalesce(o.name, t.organization_id::text) as organization, o.plan,
    t.user_id, case when %(by_user)s::boolean
        then coalesce(u.full_name, u.email, t.user_id::text, 'unknown') end as user,
    t.uses as calls, t.tokens, r.refunded, t.share,
    coalesce((select sum(p.before) from past p where p.rank = t.rank), 0)::bigint as before,
    array(select coalesce(p.tokens, 0)::bigint
        from generate_series(-28, %(last_day)s::integer) as d (day)
        left join past p on p.rank = t.rank and p.day = d.day
        order by d.day) as daily
from top t
cross join lateral (
    select coalesce(sum(balance_change), 0)::bigint as refunded from public.ai_token_events
    where organization_id = t.organization_id and kind = 'refund'
        and created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
        and (not %(by_user)s::boolean
            or data ->> 'user_id' is not distinct from t.user_id::text)) as r
left join public.organizations o on o.id = t.organization_id
left join public.user_profiles u on u.id = t.user_id
order by t.rank

-- name: abuse
-- Rolling hours and minutes that end at each request: what the gate's limits count. They are counted
-- for those alone who can be over a limit by what they asked for altogether; names are read for the
-- page.
with requests as materialized (
    select organization_id, user_id, created_at as at, tokens_deducted as tokens,
        case when reservation_id is null then created_at end as request_at,
        case when reservation_id is null then tokens_deducted + tokens_waived else 0 end as asked
    from public.ai_token_usage_log
    where created_at >= %(since)s::timestamptz - interval '1 hour'
        and created_at < %(until)s::timestamptz and user_id is not null
        and (%(organization_id)s::uuid is null or organization_id = %(organization_id)s::uuid)
    union all
    select organization_id, user_id, created_at, 0, created_at, tokens + waived
    from public.ai_token_reservations
    where created_at >= %(since)s::timestamptz - interval '1 hour'
        and created_at < %(until)s::timestamptz
        and (%(organization_id)s::uuid is null or organization_id = %(organization_id)s::uuid)
), spaced as (
    select *, request_at - max(request_at) over (partition by organization_id, user_id order by at
            rows between unbounded preceding and 1 preceding) as gap
    from requests
), people as (
    select organization_id, user_id, count(request_at) as all_requests, sum(tokens) as all_tokens,
        count(request_at) filter (where at >= %(since)s::timestamptz) as requests,
        (sum(tokens) filter (where at >= %(since)s::timestamptz))::bigint as tokens,
        extract(epoch from min(gap) filter (where at >= %(since)s::timestamptz))::float8
            as shortest_gap,
        (max(asked) filter (where at >= %(since)s::timestamptz))::bigint as largest_request
    from spaced
    group by organization_id, user_id
), suspects as materialized (
    select p.organization_id, p.user_id, p.requests, p.tokens, p.shortest_gap, p.largest_request,
        l.requests_per_minute, l.seconds_between_requests, l.tokens_per_request,
        l.alert_tokens_per_hour
    from people p
    left join public.ai_token_limits own on own.organization_id = p.organization_id
    join public.ai_token_limits l on l.scope
        = coalesce(own.scope, '00000000-0000-0000-0000-000000000000')
    where p.all_tokens > l.alert_tokens_per_hour or p.all_requests > l.requests_per_minute
        or p.shortest_gap < l.seconds_between_requests or p.largest_request > l.tokens_per_request
), rolling as (
    select r.organization_id, r.user_id, r.at,
        sum(r.tokens) over (of_user range between interval '3599.999999 s' preceding
            and current row) as hour_tokens,
        count(r.request_at) over (of_user range between interval '59.999999 s' preceding
            and current row) as minute_requests
    from requests r
    join suspects using (organization_id, user_id)
    window of_user as (partition by r.organization_id, r.user_id order by r.at)
), peaks as (
    select organization_id, user_id, max(hour_tokens)::bigint as peak_hour_tokens,
        (array_agg(at order by hour_tokens desc, at))[1] as peak_hour_until,
        max(minute_requests) as peak_minute_requests
    from rolling
    where at >= %(since)s::timestamptz
    group by organization_id, user_id
), judged as (
    select s.*, p.peak_hour_tokens, p.peak_hour_until, p.peak_minute_requests, array_remove(array[
        case when p.peak_hour_tokens > s.alert_tokens_per_hour then 'alert_tokens_per_hour' end,
        case when p.peak_minute_requests > s.requests_per_minute then 'requests_per_minute' end,
        case when s.shortest_gap < s.seconds_between_requests then 'seconds_between_requests' end,
        case when s.largest_request > s.tokens_per_request then 'tokens_per_request' end
        ], null) as over
    from suspects s
    join peaks p using (organization_id, user_id)
), page as (
    select *, count(*) over () as total from judged
    where over <> '{}'
    order by peak_hour_tokens desc, peak_minute_requests desc, organization_id, user_id
    limit %(limit)s::bigint
)
select j.organization_id, coalesce(o.name, j.organization_id::text) as organization, j.user_id,
    coalesce(u.full_name, u.email, j.user_id::text) as user, j.requests, j.tokens,
    j.peak_hour_tokens, j.peak_hour_until, j.peak_minute_requests, j.shortest_gap,
    j.largest_request, j.over, f.rate_limited, s.paused_at, j.total
from page j
cross join lateral (
    select coalesce(sum(count), 0)::bigint as rate_limited from public.ai_token_refusals
    where organization_id = j.organization_id and user_id = j.user_id and rule = 'rate_limited'
        and last_at >= %(since)s::timestamptz and last_at < %(until)s::timestamptz
        and data ->> 'mode' is null) as f
left join public.ai_token_user_settings s
    on s.organization_id = j.organization_id and s.user_id = j.user_id
left join lateral (
    select name from public.organizations where id = j.organization_id offset 0) as o on true
left join lateral (
    select full_name, email from public.user_profiles where id = j.user_id offset 0) as u on true
order by j.peak_hour_tokens desc, j.peak_minute_requests desc, j.organization_id, j.user_id

-- name: abuse_closed
-- The same of those alone who were hasty in some hour, from what is kept of them.
with judged as (
    select p.*, array_remove(array[
        case when p.peak_hour_tokens > l.alert_tokens_per_hour then 'alert_tokens_per_hour' end,
        case when p.peak_minute_requests > l.requests_per_minute then 'requests_per_minute' end,
        case when p.shortest_gap < l.seconds_between_requests then 'seconds_between_requests' end,
        case when p.largest_request > l.tokens_per_request then 'tokens_per_request' end
        ], null) as over
    from tokenlib.hasty_peaks(%(since)s, %(until)s, %(organization_id)s) as p
    left join public.ai_token_limits own on own.organization_id = p.organization_id
    join public.ai_token_limits l on l.scope
        = coalesce(own.scope, '00000000-0000-0000-0000-000000000000')
), page as (
    select *, count(*) over () as total from judged
    where over <> '{}'
    order by peak_hour_tokens desc, peak_minute_requests desc, organization_id, user_id
    limit %(limit)s::bigint
)
select j.organization_id, coalesce(o.name, j.organization_id::text) as organization, j.user_id,
    coalesce(u.full_name, u.email, j.user_id::text) as user, j.requests, j.tokens,
    j.peak_hour_tokens, j.peak_hour_until, j.peak_minute_requests, j.shortest_gap,
    j.largest_request, j.over, f.rate_limited, s.paused_at, j.total
from page j
cross join lateral (
    select coalesce(sum(count), 0)::bigint as rate_limited from public.ai_token_refusals
    where organization_id = j.organization_id and user_id = j.user_id and rule = 'rate_limited'
        and last_at >= %(since)s::timestamptz and last_at < %(until)s::timestamptz
        and data ->> 'mode' is null) as f
left join public.ai_token_user_settings s
    on s.organization_id = j.organization_id and s.user_id = j.user_id
left join lateral (
    select name from public.organizations where id = j.organization_id offset 0) as o on true
left join lateral (
    select full_name, email from public.user_profiles where id = j.user_id offset 0) as u on true
order by j.peak_hour_tokens desc, j.peak_minute_requests desc, j.organization_id, j.user_id
