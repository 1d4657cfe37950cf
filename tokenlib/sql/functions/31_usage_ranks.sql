-- Who used most in a window, whose use differs most between two, and how many used anything.

-- How many organizations were charged: from the counts that are kept for 1, 7, 30 and 90 days and
-- corrected for who lies at the edges, or from when each was last seen. Of the last 16 days it is known
-- when each began and ended a day: as a window of whole days ends in another day than it begins, that
-- tells who was charged in it. Else the log is asked.
create function tokenlib.active_between(p_since timestamptz, p_until timestamptz) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    v_days integer := case when p_until - p_since in (interval '24 hours', interval '168 hours',
        interval '720 hours', interval '2160 hours', interval '1 day', interval '7 days',
        interval '30 days', interval '90 days')
        then round(extract(epoch from p_until - p_since) / 86400) end;
    v_closed timestamptz;
    v_to timestamptz;
    v_lo timestamptz;
    v_hi timestamptz;
    v_day timestamptz;
    v_count bigint;
begin
    select closed_to, windows_to into v_closed, v_to from public.ai_token_usage_closed;
    v_hi := case when v_closed is not null
        then least(v_closed, date_bin('5 minutes', p_until, '2000-01-01 00:00Z')) end;
    v_lo := v_hi - v_days * interval '24 hours';
    v_day := date_bin('24 hours', v_lo, '2000-01-01 00:00Z');
    if p_until >= v_closed and p_since < v_closed and coalesce(v_days, 1) = 1 then
        return (select count(*) from public.ai_token_usage_seen where last_at >= p_since)
            + (select count(distinct l.organization_id) from public.ai_token_usage_log l
                where l.created_at >= v_closed and l.created_at < p_until
                    and not exists (select from public.ai_token_usage_seen n
                        where n.organization_id = l.organization_id and n.last_at >= p_since));
    -- Far from the closed end the edges are long.
    elsif v_lo >= p_since - interval '1 hour' and v_hi > p_since then
        select active into v_count from public.ai_token_usage_active
        where days = v_days and at <= v_hi order by at desc limit 1;
        v_count := coalesce(v_count, 0);
        if p_until = v_hi and p_since = v_lo then
            return v_count; -- nothing at the edges
        elsif v_to >= v_hi and v_day >= v_to - interval '384 hours' then
            return v_count
                + (select count(*) from (
                    select distinct organization_id from public.ai_token_usage_log
                    where created_at >= v_hi and created_at < p_until) as entered
                    where not exists (select from public.ai_token_usage_days d
                        where d.organization_id = entered.organization_id
                            and d.day >= v_day and d.day < v_hi
                            and d.last_at >= v_lo and d.first_at < v_hi))
                - (select count(*) from (
                    select organization_id from public.ai_token_usage_log
                    where created_at >= v_lo and created_at < p_since
                    except
                    select organization_id from public.ai_token_usage_log
                    where created_at >= v_hi and created_at < p_until) as gone
                    where not exists (select from public.ai_token_usage_days d
                        where d.organization_id = gone.organization_id
                            and d.day >= v_day and d.day < v_hi
                            and d.last_at >= p_since and d.first_at < v_hi));
        elsif v_days > 1 then
            -- Each looked up by itself: joined, the planner may read the whole window for them.
            return v_count
                + (select count(*) from (
                    select distinct organization_id from public.ai_token_usage_log
                    where created_at >= v_hi and created_at < p_until) as entered
                    where (select true from public.ai_token_usage_log l
                        where l.organization_id = entered.organization_id
                            and l.created_at >= v_lo and l.created_at < v_hi limit 1) is null)
                - (select count(*) from (
                    select distinct organization_id from public.ai_token_usage_log
                    where created_at >= v_lo and created_at < p_since) as gone
                    where (select true from public.ai_token_usage_log l
                        where l.organization_id = gone.organization_id
                            and l.created_at >= p_since and l.created_at < p_until limit 1) is null);
        end if;
    end if;
    return (select count(*) from (select from public.ai_token_usage_log
        where created_at >= p_since and created_at < p_until group by organization_id) as each);
end
$$;

-- What some organizations used in a window that begins at most 16 days before windows_to, from their
-- days and the raw rows at the edges: those to the nearest midnight, which are added or taken off.
create function tokenlib.organizations_between(
    p_since timestamptz, p_until timestamptz, p_organizations uuid[]
) returns table (organization_id uuid, tokens bigint)
language plpgsql stable rows 1000 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_to timestamptz := (select windows_to from public.ai_token_usage_closed);
    v_lo timestamptz;
    v_hi timestamptz;
begin
    -- The last day ends at v_to.
    v_lo := least(v_to, date_bin('24 hours', p_since + interval '12 hours', '2000-01-01 00:00Z'));
    v_hi := case when p_until >= v_to then v_to else least(v_to,
        date_bin('24 hours', p_until + interval '12 hours', '2000-01-01 00:00Z')) end;
    return query
    select o.id, coalesce(d.tokens, 0)::bigint + coalesce(e.tokens, 0)::bigint
    from unnest(p_organizations) as o (id)
    left join lateral (
        select sum(tokens) as tokens from public.ai_token_usage_days
        where organization_id = o.id and day >= v_lo and day < v_hi) as d on true
    left join (
        select organization_id, sum(tokens) as tokens
        from (
            select organization_id, case when p_since < v_lo then tokens_deducted
                else -tokens_deducted end as tokens
            from public.ai_token_usage_log
            where created_at >= least(p_since, v_lo) and created_at < greatest(p_since, v_lo)
            union all
            select organization_id, case when v_hi < p_until then tokens_deducted
                else -tokens_deducted end
            from public.ai_token_usage_log
            where created_at >= least(p_until, v_hi) and created_at < greatest(p_until, v_hi)
        ) as edges
        group by 1
    ) as e on e.organization_id = o.id;
end
$$;

-- The organizations whose use differs most between two windows of the last 30 days. Nobody's differs by
-- more than all it used in these: so who used less than the last of the first ones needs no look.
create function tokenlib.movers(
    p_since timestamptz, p_until timestamptz, p_before timestamptz, p_before_until timestamptz,
    p_limit bigint
) returns table (organization_id uuid, tokens bigint, before bigint)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_to timestamptz := (select windows_to from public.ai_token_usage_closed);
    v_ids uuid[];
    v_least bigint;
begin
    if v_to is null or least(p_since, p_before) < v_to - interval '384 hours' then
        return query
        select u.organization_id, u.tokens, u.before
        from (
            select organization_id,
                coalesce(sum(tokens_deducted) filter (where created_at >= p_since
                    and created_at < p_until), 0)::bigint as tokens,
                coalesce(sum(tokens_deducted) filter (where created_at >= p_before
                    and created_at < p_before_until), 0)::bigint as before
            from public.ai_token_usage_log
            where created_at >= least(p_since, p_before)
                and created_at < greatest(p_until, p_before_until)
            group by organization_id) as u
        where u.tokens <> u.before
        order by abs(u.tokens - u.before) desc, u.organization_id
        limit p_limit;
        return;
    end if;
    v_ids := array(
        select organization_id from public.ai_token_usage_windows
        where user_id = '00000000-0000-0000-0000-000000000000' and days = 30
        order by tokens desc limit p_limit + 50);
    select min(change) into v_least from (
        select abs(n.tokens - b.tokens) as change
        from tokenlib.organizations_between(p_since, p_until, v_ids) as n
        join tokenlib.organizations_between(p_before, p_before_until, v_ids) as b
            on b.organization_id = n.organization_id
        order by 1 desc limit p_limit) as first;
    v_ids := array(
        select organization_id from public.ai_token_usage_windows
        where user_id = '00000000-0000-0000-0000-000000000000' and days = 30
            and tokens >= coalesce(v_least, 0)
        union
        select organization_id from public.ai_token_usage_log
        where created_at >= v_to and created_at < greatest(p_until, p_before_until));
    return query
    select n.organization_id, n.tokens, b.tokens
    from tokenlib.organizations_between(p_since, p_until, v_ids) as n
    join tokenlib.organizations_between(p_before, p_before_until, v_ids) as b
        on b.organization_id = n.organization_id
    where n.tokens <> b.tokens
    order by abs(n.tokens - b.tokens) desc, n.organization_id
    limit p_limit;
end
$$;

-- The organizations or users with the most tokens, in the order of tokens, uses and ids; `whole` is
-- the tokens of everybody in the window. The first as they stood at the last closing are looked at, a
-- hundred more than are asked for, and of those who entered or left the window since who may come before them.
create function tokenlib.top_usage(
    p_since timestamptz, p_until timestamptz, p_by_user boolean, p_limit bigint,
    p_organization uuid
) returns table (organization_id uuid, user_id uuid, uses bigint, tokens bigint, whole numeric)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    c_all constant uuid := '00000000-0000-0000-0000-000000000000';
    c_nobody constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    v_days integer := round(extract(epoch from p_until - p_since) / 86400);
    v_from timestamptz;
    v_to timestamptz;
    v_whole numeric;
    v_first bigint := p_limit + 100;
    v_organizations uuid[];
    v_users uuid[];
    v_uses bigint[];
    v_tokens bigint[];
    v_all boolean;
begin
    select windows_to into v_to from public.ai_token_usage_closed;
    v_from := v_to - v_days * interval '24 hours';
    -- A window of another length, or one that is not about now, is read from the log.
    if v_to is null or v_days not in (1, 7, 30, 90)
        or p_until - p_since <> v_days * interval '24 hours'
        or p_until < v_to or p_since > v_to or p_since < v_from then
        return query
        select organization_id, case when p_by_user then user_id end, count(*),
            sum(tokens_deducted)::bigint, sum(sum(tokens_deducted)) over ()
        from public.ai_token_usage_log
        where created_at >= p_since and created_at < p_until
            and (p_organization is null or organization_id = p_organization)
        group by 1, 2
        order by 4 desc, 3 desc, 1, 2
        limit p_limit;
        return;
    end if;
    select sum(u.tokens) into v_whole
    from tokenlib.usage_between(p_since, p_until, p_organization) as u;
    loop
        with moved as materialized (
            select m.organization_id, m.user_id, sum(m.sign) as uses, sum(m.sign * m.tokens) as tokens
            from (
                select organization_id, case when p_by_user then coalesce(user_id, c_nobody)
                    else c_all end as user_id, tokens_deducted as tokens, 1 as sign
                from public.ai_token_usage_log
                where created_at >= v_to and created_at < p_until
                    and (p_organization is null or organization_id = p_organization)
                union all
                select organization_id, case when p_by_user then coalesce(user_id, c_nobody)
                    else c_all end, tokens_deducted, -1
                from public.ai_token_usage_log
                where created_at >= v_from and created_at < p_since
                    and (p_organization is null or organization_id = p_organization)
            ) as m
            group by 1, 2
        ), first as materialized (
            (select w.organization_id, w.user_id, w.tokens, w.uses
            from public.ai_token_usage_windows w
            where not p_by_user and w.user_id = '00000000-0000-0000-0000-000000000000'
                and w.days = v_days
                and (p_organization is null or w.organization_id = p_organization)
            order by w.tokens desc, w.uses desc, w.organization_id
            limit v_first)
            union all
            (select w.organization_id, w.user_id, w.tokens, w.uses
            from public.ai_token_usage_windows w
            where p_by_user and w.user_id <> '00000000-0000-0000-0000-000000000000'
                and w.days = v_days
                and (p_organization is null or w.organization_id = p_organization)
            order by w.tokens desc, w.uses desc, w.organization_id, w.user_id
            limit v_first)
        ), known as materialized (
            select f.organization_id, f.user_id, f.uses + coalesce(m.uses, 0) as uses,
                f.tokens + coalesce(m.tokens, 0) as tokens
            from first f
            left join moved m on m.organization_id = f.organization_id and m.user_id = f.user_id
        ), of_first as (
            -- Nobody else had more than the last of them.
            select * from first order by tokens, uses, organization_id desc, user_id desc limit 1
        ), of_known as (
            -- Nobody with less is asked for.
            select * from known where uses > 0
            order by tokens desc, uses desc, organization_id, user_id offset p_limit - 1 limit 1
        ), figures as (
            select organization_id, user_id, uses, tokens from known
            union all
            select m.organization_id, m.user_id, m.uses + coalesce(w.uses, 0),
                m.tokens + coalesce(w.tokens, 0)
            from moved m
            left join lateral (
                select k.uses, k.tokens from public.ai_token_usage_windows k
                where k.organization_id = m.organization_id and k.user_id = m.user_id
                    and k.days = v_days offset 0) as w on true
            where (m.organization_id, m.user_id) not in (
                    select organization_id, user_id from first)
                and coalesce(m.tokens + (select tokens from of_first)
                    >= (select tokens from of_known), true)
        ), ranked as (
            select * from figures where uses > 0
            order by tokens desc, uses desc, organization_id, user_id limit p_limit
        )
        select array_agg(r.organization_id order by tokens desc, uses desc, organization_id, user_id),
            array_agg(r.user_id order by tokens desc, uses desc, organization_id, user_id),
            array_agg(r.uses order by tokens desc, uses desc, organization_id, user_id),
            array_agg(r.tokens order by tokens desc, uses desc, organization_id, user_id),
            (select count(*) from first) < v_first or exists (
                select from of_first l, of_known k
                where (k.tokens, k.uses) > (l.tokens, l.uses)
                    or ((k.tokens, k.uses) = (l.tokens, l.uses)
                        and (k.organization_id, k.user_id) <= (l.organization_id, l.user_id)))
        into v_organizations, v_users, v_uses, v_tokens, v_all
        from ranked r;
        exit when v_all;
        v_first := 4 * v_first;
    end loop;
    return query
    select f.organization_id, case when f.user_id not in (c_all, c_nobody) then f.user_id end,
        f.uses, f.tokens, v_whole
    from unnest(v_organizations, v_users, v_uses, v_tokens)
        as f (organization_id, user_id, uses, tokens);
end
$$;
