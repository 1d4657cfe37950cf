-- Questions that Citus cannot take as they stand elsewhere: asked of one node they would answer the
-- same. Each is named by its file and its name there. What lies on the nodes is summed up by
-- organization there, each table by itself, and joined where it is asked.
--
-- A copied table must not stand left of LEFT JOIN with a spread one: of who is under row security Citus
-- 13.2 then ends the server process. With a subquery in its place it does not.

-- name: organizations_organizations
with clock as materialized (select tokenlib.clock() as now),
settings as materialized (
    select organization_id, status, mode, mode_until from public.ai_token_organization_settings
    where %(organization_id)s::uuid is null or organization_id = %(organization_id)s::uuid
), near as materialized (
    select distinct organization_id from public.ai_tokens
    where %(near)s::integer is not null and total_allocated > 0
        and total_used * 5 >= total_allocated * 4 and not (allowance is null and plan is not null)
        and %(near)s::integer = case when total_used >= total_allocated then 100 else 80 end
), held as materialized (
    select organization_id, sum(balance) as balance, sum(total_used) as total_used,
        min(refresh_date) as refresh_date, max(last_used_at) as last_used_at,
        min(case when allowance is null and plan is not null then 3
            when total_allocated <= 0 then null
            when balance * 2 > total_allocated then 3
            when balance * 5 >= total_allocated then 2
            else 1 end) filter (where token_type <> 'shared') as rank
    from public.ai_tokens
    where %(level)s::text is not null or %(sort)s::text in ('balance', 'level', 'total_used',
        'refresh_date', 'last_used_at')
    group by organization_id
), week as materialized (
    select organization_id, token_type, sum(tokens_deducted) as tokens
    from public.ai_token_usage_log
    where %(sort)s::text = 'run_out' and created_at >= (select now - interval '7 days' from clock)
        and created_at < (select now from clock)
    group by organization_id, token_type
    having sum(tokens_deducted) > 0
), used as materialized (
    select a.organization_id, a.token_type, a.balance, a.refresh_date, w.tokens
    from public.ai_tokens a
    join week w on w.organization_id = a.organization_id and w.token_type = a.token_type
    where a.allowance is not null or a.plan is null
), run_outs as materialized (
    select organization_id, min(at) as at
    from (
        -- Compared before it is computed: a slow pace would overflow the calendar.
        select u.*, case when u.balance::numeric * 604800
            < u.tokens * extract(epoch from interval '365 days')
            then c.now + (u.balance * 7 / u.tokens)::float8 * interval '1 day' end as at
        from used u cross join clock c) as r
    where token_type = 'shared' or at < refresh_date
    group by organization_id
), filtered as materialized (
    select o.id, o.name, case %(sort)s::text when 'plan' then p.position
            when 'balance' then h.balance when 'level' then h.rank
            when 'total_used' then h.total_used
            when 'refresh_date' then extract(epoch from h.refresh_date)
            when 'last_used_at' then extract(epoch from h.last_used_at)
            when 'run_out' then extract(epoch from r.at) end as key,
        case %(sort)s::text when 'name' then o.name
            when 'status' then coalesce(s.status, 'active') end as text
    from public.organizations o
    left join settings s on s.organization_id = o.id
    left join public.ai_token_plans p on %(sort)s::text = 'plan' and p.plan = o.plan
    left join held h on h.organization_id = o.id
    left join run_outs r on r.organization_id = o.id
    where (%(organization_id)s::uuid is null or o.id = %(organization_id)s::uuid)
        and (%(pattern)s::text is null or o.name ilike %(pattern)s::text
            or o.id between %(id_from)s::uuid and %(id_to)s::uuid
            or o.id in (select organization_id from public.user_profiles
                where email ilike %(pattern)s::text))
        and (%(plan)s::text is null or o.plan = %(plan)s::text)
        and (%(status)s::text is null or coalesce(s.status, 'active') = %(status)s::text)
        and (%(near)s::integer is null or o.id in (select organization_id from near))
        and (%(level)s::text is null
            or coalesce((array['red', 'yellow', 'green'])[h.rank], 'none') = %(level)s::text)
), page as materialized (
    select id, row_number() over () as place from (
        select id from filtered
        order by case when %(descending)s::boolean then text end desc nulls last,
            case when not %(descending)s::boolean then text end nulls last,
            case when %(descending)s::boolean then -key else key end nulls last, name, id
        limit %(limit)s::bigint offset %(offset)s::bigint) as sorted
), sums as materialized (
    select organization_id, sum(balance)::bigint as balance, sum(reserved)::bigint as reserved,
        sum(total_used)::bigint as total_used, sum(total_allocated)::bigint as total_allocated,
        bool_or(allowance is null and plan is not null) as unlimited,
        min(refresh_date) as refresh_date, max(last_used_at) as last_used_at,
        -- The thresholds of domain.level; the worst wallet speaks.
        min(case when allowance is null and plan is not null then 3
            when total_allocated <= 0 then null
            when balance * 2 > total_allocated then 3
            when balance * 5 >= total_allocated then 2
            else 1 end) filter (where token_type <> 'shared') as rank
    from public.ai_tokens
    where organization_id in (select id from page)
    group by organization_id
)
select t.total, p.place, o.id as organization_id, o.name, o.plan,
    coalesce(s.status, 'active') as status,
    case when s.mode_until is null or s.mode_until > c.now then s.mode end as mode,
    coalesce((array['red', 'yellow', 'green'])[w.rank], 'none') as level,
    (select count(*) from public.user_profiles u where u.organization_id = o.id) as members,
    coalesce(w.balance, 0) as balance, coalesce(w.reserved, 0) as reserved,
    coalesce(w.total_used, 0) as total_used, coalesce(w.total_allocated, 0) as total_allocated,
    coalesce(w.unlimited, false) as unlimited, w.refresh_date,
    coalesce(w.refresh_date <= c.now, false) as refresh_due, w.last_used_at
from (select count(*) as total from filtered) as t
cross join clock c
left join page p on true
left join public.organizations o on o.id = p.id
left join settings s on s.organization_id = p.id
left join sums w on w.organization_id = p.id
order by p.place

-- name: spend_abuse
with people as materialized (
    select organization_id, user_id, count(request_at) as all_requests, sum(tokens) as all_tokens,
        count(request_at) filter (where at >= %(since)s::timestamptz) as requests,
        (sum(tokens) filter (where at >= %(since)s::timestamptz))::bigint as tokens,
        extract(epoch from min(gap) filter (where at >= %(since)s::timestamptz))::float8
            as shortest_gap,
        (max(asked) filter (where at >= %(since)s::timestamptz))::bigint as largest_request
    from (
        select *, request_at - max(request_at) over (partition by organization_id, user_id
                order by at rows between unbounded preceding and 1 preceding) as gap
        from (
            select organization_id, user_id, created_at as at, tokens_deducted as tokens,
                case when reservation_id is null then created_at end as request_at,
                case when reservation_id is null then tokens_deducted + tokens_waived else 0 end
                    as asked
            from public.ai_token_usage_log
            where created_at >= %(since)s::timestamptz - interval '1 hour'
                and created_at < %(until)s::timestamptz and user_id is not null
                and (%(organization_id)s::uuid is null
                    or organization_id = %(organization_id)s::uuid)
            union all
            select organization_id, user_id, created_at, 0, created_at, tokens + waived
            from public.ai_token_reservations
            where created_at >= %(since)s::timestamptz - interval '1 hour'
                and created_at < %(until)s::timestamptz
                and (%(organization_id)s::uuid is null
                    or organization_id = %(organization_id)s::uuid)
        ) as requests
    ) as spaced
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
), requests as materialized (
    select l.organization_id, l.user_id, l.created_at as at, l.tokens_deducted as tokens,
        case when l.reservation_id is null then l.created_at end as request_at
    from public.ai_token_usage_log l
    join suspects s on s.organization_id = l.organization_id and s.user_id = l.user_id
    where l.created_at >= %(since)s::timestamptz - interval '1 hour'
        and l.created_at < %(until)s::timestamptz
    union all
    select r.organization_id, r.user_id, r.created_at, 0, r.created_at
    from public.ai_token_reservations r
    join suspects s on s.organization_id = r.organization_id and s.user_id = r.user_id
    where r.created_at >= %(since)s::timestamptz - interval '1 hour'
        and r.created_at < %(until)s::timestamptz
), rolling as (
    select organization_id, user_id, at,
        sum(tokens) over (of_user range between interval '3599.999999 s' preceding
            and current row) as hour_tokens,
        count(request_at) over (of_user range between interval '59.999999 s' preceding
            and current row) as minute_requests
    from requests
    window of_user as (partition by organization_id, user_id order by at)
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
), page as materialized (
    select *, count(*) over () as total from judged
    where over <> '{}'
    order by peak_hour_tokens desc, peak_minute_requests desc, organization_id, user_id
    limit %(limit)s::bigint
), refused as materialized (
    select f.organization_id, f.user_id, sum(f.count)::bigint as rate_limited
    from public.ai_token_refusals f
    join page j on j.organization_id = f.organization_id and j.user_id = f.user_id
    where f.rule = 'rate_limited' and f.last_at >= %(since)s::timestamptz
        and f.last_at < %(until)s::timestamptz and f.data ->> 'mode' is null
    group by f.organization_id, f.user_id
), paused as materialized (
    select s.organization_id, s.user_id, s.paused_at from public.ai_token_user_settings s
    join page j on j.organization_id = s.organization_id and j.user_id = s.user_id
)
select j.organization_id, coalesce(o.name, j.organization_id::text) as organization, j.user_id,
    coalesce(u.full_name, u.email, j.user_id::text) as user, j.requests, j.tokens,
    j.peak_hour_tokens, j.peak_hour_until, j.peak_minute_requests, j.shortest_gap,
    j.largest_request, j.over, coalesce(f.rate_limited, 0) as rate_limited, s.paused_at, j.total
from page j
left join refused f on f.organization_id = j.organization_id and f.user_id = j.user_id
left join paused s on s.organization_id = j.organization_id and s.user_id = j.user_id
left join public.organizations o on o.id = j.organization_id
left join public.user_profiles u on u.id = j.user_id
order by j.peak_hour_tokens desc, j.peak_minute_requests desc, j.organization_id, j.user_id

-- name: settings_staff
with clock as materialized (select tokenlib.clock() as now),
given as materialized (
    select actor, sum((data ->> 'amount')::bigint)::bigint as tokens
    from public.ai_token_events
    where kind in ('grant', 'grant_scheduled')
        and created_at >= (select date_trunc('day', now, 'UTC') from clock)
    group by actor
)
select s.user_id, s.email, s.full_name, s.role, s.grants_per_day,
    coalesce(g.tokens, 0) as granted_today, s.created_at, s.issuer
from public.tokenlib_staff s
cross join clock c
left join given g on g.actor = s.user_id::text
where coalesce(s.until, 'infinity') > c.now
order by s.role, s.full_name, s.user_id

-- name: switch_modes
with modes as materialized (
    select organization_id, mode, mode_until from public.ai_token_organization_settings
    where mode is not null
), changes as materialized (
    select distinct on (organization_id) organization_id, actor, reason, created_at
    from public.ai_token_changes where action = 'set_mode'
    order by organization_id, created_at desc
), everyone as materialized (
    select mode, mode_until from public.ai_token_parameters
), clock as materialized (select tokenlib.clock() as now)
select m.organization_id, m.mode, m.mode_until as until, c.actor, c.reason, c.created_at as since
from (select null::uuid as organization_id, mode, mode_until from everyone
    union all select * from modes) as m
cross join clock k
left join changes c on c.organization_id is not distinct from m.organization_id
where m.mode is not null and (m.mode_until is null or m.mode_until > k.now)
    and (m.mode <> 'enforce' or m.organization_id is not null and exists (
        select from everyone
        where mode <> 'enforce' and (mode_until is null or mode_until > k.now)))
order by m.organization_id nulls first
