-- Who may have gone beyond the limits of requests and tokens, so that only they are looked at closely.

-- The strictest of all limits: seconds between requests, requests a minute, tokens of a request and of an
-- hour; null: nobody has one.
create function tokenlib.least_limits() returns numeric[]
language sql stable set search_path = pg_catalog, pg_temp as $$
    select array[max(seconds_between_requests), min(requests_per_minute), min(tokens_per_request),
        min(alert_tokens_per_hour)]
    from public.ai_token_limits
$$;

-- Whole hours (UTC) from p_from on, up to p_to, in which somebody was hasty enough: what any 60 minutes or
-- 60 seconds have too much of lies in two such hours, so one of them has more than half of it. Of these
-- people, or (null) of everybody.
create function tokenlib.hasty_hours(
    p_from timestamptz, p_to timestamptz, p_limits numeric[], p_organization uuid,
    p_organizations uuid[], p_users uuid[]
) returns table (hour timestamptz, organization_id uuid, user_id uuid)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_from timestamptz := p_from - coalesce(p_limits[1], 0)::float8 * interval '1 second';
begin
    return query
    select date_bin('1 hour', r.at, '2000-01-01 00:00Z'), r.organization_id, r.user_id
    from (
        select *, case when request then at - lag(at) over (
            partition by organization_id, user_id, request order by at) end as gap
        from (
            select organization_id, user_id, created_at as at, reservation_id is null as request,
                tokens_deducted as tokens,
                case when reservation_id is null then tokens_deducted + tokens_waived else 0 end
                    as asked
            from public.ai_token_usage_log
            where p_users is null and created_at >= v_from and created_at < p_to
                and user_id is not null
                and (p_organization is null or organization_id = p_organization)
            union all
            select organization_id, user_id, created_at, true, 0, tokens + waived
            from public.ai_token_reservations
            where p_users is null and created_at >= v_from and created_at < p_to
                and (p_organization is null or organization_id = p_organization)
            union all
            select p.organization_id, p.user_id, q.*
            from unnest(p_organizations, p_users) as p (organization_id, user_id)
            cross join lateral (
                select created_at, reservation_id is null, tokens_deducted,
                    case when reservation_id is null then tokens_deducted + tokens_waived else 0 end
                from public.ai_token_usage_log
                where organization_id = p.organization_id and user_id = p.user_id
                    and created_at >= v_from and created_at < p_to
                union all
                select created_at, true, 0, tokens + waived
                from public.ai_token_reservations
                where organization_id = p.organization_id and user_id = p.user_id
                    and created_at >= v_from and created_at < p_to offset 0) as q
        ) as requests
    ) as r
    where r.at >= p_from
    group by 1, 2, 3
    having extract(epoch from min(r.gap)) < p_limits[1]
        or 2 * count(*) filter (where r.request) > p_limits[2]
        or max(r.asked) > p_limits[3]
        or 2 * sum(r.tokens) > p_limits[4];
end
$$;

-- Keeps them; of nine days at once where a limit has become stricter.
create function tokenlib.fold_hasty(p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c public.ai_token_usage_closed;
    v_limits numeric[] := tokenlib.least_limits();
    v_first timestamptz := date_bin('1 hour', p_to - interval '216 hours', '2000-01-01 00:00Z');
begin
    select * into c from public.ai_token_usage_closed;
    if c.hasty_to is null or c.hasty_to < v_first or c.hasty_from is null
        or tokenlib.stricter(v_limits, c.hasty_limits) then
        delete from public.ai_token_usage_hasty;
        delete from public.ai_token_usage_bursts;
        c.hasty_from := v_first;
        c.hasty_to := v_first;
        c.hasty_limits := v_limits;
    end if;
    insert into public.ai_token_usage_hasty (hour, organization_id, user_id)
    select * from tokenlib.hasty_hours(date_bin('1 hour', c.hasty_to, '2000-01-01 00:00Z'), p_to,
        c.hasty_limits, null, null, null)
    on conflict do nothing;
    delete from public.ai_token_usage_hasty where hour < v_first;
    perform tokenlib.fold_bursts(v_first, c.hasty_to, p_to);
    update public.ai_token_usage_closed set hasty_from = greatest(c.hasty_from, v_first),
        hasty_to = p_to, hasty_limits = c.hasty_limits;
    -- All of the last 24 hours and 7 days, too.
    delete from public.ai_token_usage_bursts where hours > 6;
    insert into public.ai_token_usage_bursts (organization_id, user_id, hours, start, requests,
        tokens, peak_hour_tokens, peak_hour_until, peak_minute_requests, shortest_gap,
        largest_request, first_at, last_at)
    select f.organization_id, f.user_id, d.hours, p_to - d.hours * interval '1 hour', f.requests,
        f.tokens, f.peak_hour_tokens, f.peak_hour_until, f.peak_minute_requests, f.shortest_gap,
        f.largest_request, f.first_at, f.before_at
    from unnest(array[24, 168]) as d (hours)
    cross join lateral (
        select array_agg(organization_id) as organizations, array_agg(user_id) as users
        from tokenlib.hasty_people(p_to - d.hours * interval '1 hour', p_to, null)) as p
    cross join lateral tokenlib.hasty_figures(p.organizations, p.users,
        p_to - d.hours * interval '1 hour', p_to) as f;
end
$$;

-- What people asked for from p_since on, and (not `counted`) in the hour before: with what the hour and the
-- minute that end at each row had, as the limits of the gate count them. `request_at`: null for the charge
-- of a hold.
create function tokenlib.rolling_requests(
    p_organizations uuid[], p_users uuid[], p_since timestamptz, p_until timestamptz
) returns table (organization_id uuid, user_id uuid, at timestamptz, counted boolean,
    request_at timestamptz, tokens bigint, asked bigint, hour_tokens bigint, minute_requests bigint)
language plpgsql stable rows 1000 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_from timestamptz := p_since - interval '1 hour';
begin
    return query
    select p.organization_id, p.user_id, r.at, r.at >= p_since, r.request_at, r.tokens, r.asked,
        (sum(r.tokens) over (of_user range between interval '3599.999999 s' preceding
            and current row))::bigint,
        count(r.request_at) over (of_user range between interval '59.999999 s' preceding
            and current row)
    from unnest(p_organizations, p_users) as p (organization_id, user_id)
    cross join lateral (
        select created_at as at, case when reservation_id is null then created_at end as request_at,
            tokens_deducted as tokens,
            case when reservation_id is null then tokens_deducted + tokens_waived else 0 end as asked
        from public.ai_token_usage_log
        where organization_id = p.organization_id and user_id = p.user_id
            and created_at >= v_from and created_at < p_until
        union all
        select created_at, created_at, 0, tokens + waived
        from public.ai_token_reservations
        where organization_id = p.organization_id and user_id = p.user_id
            and created_at >= v_from and created_at < p_until offset 0) as r
    window of_user as (partition by p.organization_id, p.user_id order by r.at);
end
$$;

-- What those who were hasty did in each whole block of six hours of nine days: of who is new in all of them,
-- of the others in those that ended since.
create function tokenlib.fold_bursts(p_first timestamptz, p_from timestamptz, p_to timestamptz)
returns void
language plpgsql set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    v_since timestamptz;
    v_until timestamptz := date_bin('6 hours', p_to, '2000-01-01 00:00Z');
    v_organizations uuid[];
    v_users uuid[];
begin
    p_first := date_bin('6 hours', p_first + interval '5 hours', '2000-01-01 00:00Z');
    p_from := greatest(p_first, date_bin('6 hours', p_from, '2000-01-01 00:00Z'));
    if p_from < v_until then
        delete from public.ai_token_usage_bursts b
        where hours = 6 and (start < p_first or not exists (select from public.ai_token_usage_hasty h
            where h.organization_id = b.organization_id and h.user_id = b.user_id));
    end if;
    for v_since, v_organizations, v_users in
        select case when known then p_from else p_first end, array_agg(organization_id),
            array_agg(user_id)
        from (
            select organization_id, user_id, exists (select from public.ai_token_usage_bursts b
                where b.organization_id = h.organization_id and b.user_id = h.user_id
                    and b.hours = 6) as known
            from (select distinct organization_id, user_id from public.ai_token_usage_hasty) as h
        ) as people
        group by 1
    loop
        continue when v_since >= v_until;
        insert into public.ai_token_usage_bursts
        select organization_id, user_id, 6, start, count(request_at), sum(tokens), max(hour_tokens),
            (array_agg(at order by hour_tokens desc, at))[1], max(minute_requests), min(gap),
            max(asked), min(request_at), max(request_at)
        from (
            select *, request_at - max(request_at) over (
                partition by organization_id, user_id, start order by at
                rows between unbounded preceding and 1 preceding) as gap
            from (
                select *, date_bin('6 hours', at, '2000-01-01 00:00Z') as start
                from tokenlib.rolling_requests(v_organizations, v_users, v_since, v_until)
                where counted) as counted) as spaced
        group by 1, 2, 4;
    end loop;
end
$$;

-- Whether limits leave somebody out that others would not.
create function tokenlib.stricter(p_limits numeric[], p_than numeric[]) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select coalesce(p_limits[1], 0) > coalesce(p_than[1], 0)
        or coalesce(p_limits[2], 'infinity') < coalesce(p_than[2], 'infinity')
        or coalesce(p_limits[3], 'infinity') < coalesce(p_than[3], 'infinity')
        or coalesce(p_limits[4], 'infinity') < coalesce(p_than[4], 'infinity')
$$;

-- Who may have gone beyond a limit in a window or in the hour before it.
create function tokenlib.hasty_people(p_since timestamptz, p_until timestamptz, p_organization uuid)
returns table (organization_id uuid, user_id uuid)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    c public.ai_token_usage_closed;
    v_limits numeric[] := tokenlib.least_limits();
    v_since timestamptz := date_bin('1 hour', p_since - interval '1 hour', '2000-01-01 00:00Z');
    v_kept timestamptz;
    v_last timestamptz;
begin
    select * into c from public.ai_token_usage_closed;
    if c.hasty_to is null or tokenlib.stricter(v_limits, c.hasty_limits) then
        c.hasty_from := p_until;
        c.hasty_to := p_until;
    end if;
    v_kept := least(greatest(c.hasty_from, v_since), p_until);
    v_last := greatest(date_bin('1 hour', c.hasty_to, '2000-01-01 00:00Z'), v_kept);
    return query
    select organization_id, user_id from public.ai_token_usage_hasty
    where hour >= v_kept and hour < v_last and hour < p_until
        and (p_organization is null or organization_id = p_organization)
    union
    select organization_id, user_id
    from tokenlib.hasty_hours(v_since, v_kept, v_limits, p_organization, null, null)
    where v_since < v_kept
    union
    select organization_id, user_id
    from tokenlib.hasty_hours(v_last, p_until, v_limits, p_organization, null, null)
    where v_last < p_until;
end
$$;

-- What people did in a window, and their peaks in it: of who was hasty from the whole blocks that are kept,
-- and from the rows of each edge. shortest_gap is between two requests of the window; the last one before
-- it, if that was within an hour, is before_at.
create function tokenlib.hasty_figures(
    p_organizations uuid[], p_users uuid[], p_since timestamptz, p_until timestamptz
) returns table (organization_id uuid, user_id uuid, requests bigint, tokens bigint,
    peak_hour_tokens bigint, peak_hour_until timestamptz, peak_minute_requests bigint,
    shortest_gap interval, largest_request bigint, first_at timestamptz, before_at timestamptz)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_lo timestamptz;
    v_hi timestamptz;
    v_kept uuid[];
    v_kept_users uuid[];
    v_others uuid[];
    v_other_users uuid[];
begin
    select date_bin('6 hours', greatest(p_since, hasty_from)
            + interval '5 hours 59 minutes 59.999999 seconds', '2000-01-01 00:00Z'),
        date_bin('6 hours', least(p_until, hasty_to), '2000-01-01 00:00Z')
    into v_lo, v_hi
    from public.ai_token_usage_closed where hasty_to is not null;
    select array_agg(organization_id) filter (where kept), array_agg(user_id) filter (where kept),
        array_agg(organization_id) filter (where not kept),
        array_agg(user_id) filter (where not kept)
    into v_kept, v_kept_users, v_others, v_other_users
    from (
        select *, v_lo < v_hi and (organization_id, user_id) in (
            select organization_id, user_id from public.ai_token_usage_hasty) is true as kept
        from unnest(p_organizations, p_users) as p (organization_id, user_id)) as people;
    return query
    with parts as (
        select *, request_at as begun_at, request_at as ended_at, null::interval as gap, at as until,
            case when request_at is null then 0 else 1 end as requests
        from (
            select * from tokenlib.rolling_requests(v_others, v_other_users, p_since, p_until)
            union all
            select * from tokenlib.rolling_requests(v_kept, v_kept_users, p_since, v_lo)
            union all
            select * from tokenlib.rolling_requests(v_kept, v_kept_users, v_hi, p_until)) as rolling
        where counted or at < p_since -- not the hour before v_hi
        union all
        select b.organization_id, b.user_id, b.start, true, null, b.tokens, b.largest_request,
            b.peak_hour_tokens, b.peak_minute_requests, b.first_at, b.last_at, b.shortest_gap,
            b.peak_hour_until, b.requests
        from unnest(v_kept, v_kept_users) as k (organization_id, user_id)
        join public.ai_token_usage_bursts b
            on b.organization_id = k.organization_id and b.user_id = k.user_id
        where b.hours = 6 and b.start >= v_lo and b.start < v_hi
    ), spaced as (
        select *, least(gap, begun_at - max(ended_at) filter (where counted) over (
            partition by organization_id, user_id
            order by at rows between unbounded preceding and 1 preceding)) as shortest
        from parts
    )
    select organization_id, user_id, (sum(requests) filter (where counted))::bigint,
        (sum(tokens) filter (where counted))::bigint, max(hour_tokens) filter (where counted),
        (array_agg(until order by hour_tokens desc, until) filter (where counted))[1],
        max(minute_requests) filter (where counted), min(shortest) filter (where counted),
        max(asked) filter (where counted), min(begun_at) filter (where counted),
        max(ended_at) filter (where not counted)
    from spaced
    group by 1, 2
    having bool_or(counted);
end
$$;

-- The same of all who may have gone beyond a limit in the window. Of the last 24 hours and 7 days it is
-- kept how they stood at the last closing: whoever asked for nothing at an edge since stands so still.
create function tokenlib.hasty_peaks(p_since timestamptz, p_until timestamptz, p_organization uuid)
returns table (organization_id uuid, user_id uuid, requests bigint, tokens bigint,
    peak_hour_tokens bigint, peak_hour_until timestamptz, peak_minute_requests bigint,
    shortest_gap float8, largest_request bigint)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    c public.ai_token_usage_closed;
    v_hours integer := extract(epoch from p_until - p_since) / 3600;
    v_limits numeric[] := tokenlib.least_limits();
    v_organizations uuid[];
    v_users uuid[];
begin
    select * into c from public.ai_token_usage_closed;
    if c.hasty_to is null or tokenlib.stricter(v_limits, c.hasty_limits)
        or not (v_hours in (24, 168) and p_since = p_until - v_hours * interval '1 hour'
            and c.hasty_to between p_until - interval '1 hour' and p_until) then
        v_hours := null;
        select array_agg(organization_id), array_agg(user_id) into v_organizations, v_users
        from tokenlib.hasty_people(p_since, p_until, p_organization);
    else
        with edges as materialized (
            select organization_id, user_id, bool_or(at >= c.hasty_to) as entered
            from (
                select organization_id, user_id, created_at as at
                from public.ai_token_usage_log
                where created_at >= c.hasty_to - v_hours * interval '1 hour' and created_at < p_since
                    and user_id is not null
                union all
                select organization_id, user_id, created_at from public.ai_token_usage_log
                where created_at >= c.hasty_to and created_at < p_until and user_id is not null
                union all
                select organization_id, user_id, created_at from public.ai_token_reservations
                where created_at >= c.hasty_to - v_hours * interval '1 hour' and created_at < p_since
                union all
                select organization_id, user_id, created_at from public.ai_token_reservations
                where created_at >= c.hasty_to and created_at < p_until) as requests
            where p_organization is null or organization_id = p_organization
            group by 1, 2
        ), entered as (
            select array_agg(organization_id) as organizations, array_agg(user_id) as users
            from edges where entered
        ), moved as (
            select e.organization_id, e.user_id from edges e
            join public.ai_token_usage_bursts b on b.organization_id = e.organization_id
                and b.user_id = e.user_id and b.hours = v_hours
            union
            select h.organization_id, h.user_id
            from entered e
            cross join lateral tokenlib.hasty_hours(
                date_bin('1 hour', c.hasty_to, '2000-01-01 00:00Z'), p_until, v_limits, null,
                coalesce(e.organizations, '{}'), coalesce(e.users, '{}')) as h
        )
        select array_agg(organization_id), array_agg(user_id) into v_organizations, v_users
        from moved;
    end if;
    return query
    select f.organization_id, f.user_id, f.requests, f.tokens, f.peak_hour_tokens,
        f.peak_hour_until, f.peak_minute_requests,
        extract(epoch from least(f.shortest_gap, case when f.before_at >= p_since - interval '1 hour'
            then f.first_at - f.before_at end))::float8, f.largest_request
    from (
        select organization_id, user_id, requests, tokens, peak_hour_tokens, peak_hour_until,
            peak_minute_requests, shortest_gap, largest_request, first_at, before_at
        from tokenlib.hasty_figures(v_organizations, v_users, p_since, p_until)
        union all
        select organization_id, user_id, requests, tokens, peak_hour_tokens, peak_hour_until,
            peak_minute_requests, shortest_gap, largest_request, first_at, last_at
        from public.ai_token_usage_bursts
        where hours = v_hours and (p_organization is null or organization_id = p_organization)
            and (organization_id, user_id) not in (
                select * from unnest(v_organizations, v_users))) as f;
end
$$;
