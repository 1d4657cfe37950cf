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
-- 60 seconds have too much of lies in two such hours, so one of them has more than half of it.
create function tokenlib.hasty_hours(
    p_from timestamptz, p_to timestamptz, p_limits numeric[], p_organization uuid
) returns table (hour timestamptz, organization_id uuid, user_id uuid)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
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
            where created_at >= p_from - coalesce(p_limits[1], 0)::float8 * interval '1 second'
                and created_at < p_to and user_id is not null
                and (p_organization is null or organization_id = p_organization)
            union all
            select organization_id, user_id, created_at, true, 0, tokens + waived
            from public.ai_token_reservations
            where created_at >= p_from - coalesce(p_limits[1], 0)::float8 * interval '1 second'
                and created_at < p_to
                and (p_organization is null or organization_id = p_organization)
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
        c.hasty_from := v_first;
        c.hasty_to := v_first;
        c.hasty_limits := v_limits;
    end if;
    insert into public.ai_token_usage_hasty (hour, organization_id, user_id)
    select * from tokenlib.hasty_hours(date_bin('1 hour', c.hasty_to, '2000-01-01 00:00Z'), p_to,
        c.hasty_limits, null)
    on conflict do nothing;
    delete from public.ai_token_usage_hasty where hour < v_first;
    update public.ai_token_usage_closed set hasty_from = greatest(c.hasty_from, v_first),
        hasty_to = p_to, hasty_limits = c.hasty_limits;
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
    from tokenlib.hasty_hours(v_since, v_kept, v_limits, p_organization)
    where v_since < v_kept
    union
    select organization_id, user_id
    from tokenlib.hasty_hours(v_last, p_until, v_limits, p_organization)
    where v_last < p_until;
end
$$;
