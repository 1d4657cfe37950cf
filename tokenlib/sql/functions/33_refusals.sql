-- Who was refused most, and how often each rule refused: kept for the windows that end at the last
-- closing, with what lies between their ends and those of a question read from the refusals. A row counts
-- at its last_at; what the switch let through is no refusal.

-- What windows of so many days that ended at p_from have more (or fewer: below 0) if they go from p_since,
-- or as many days, to p_to: by person and (the highest UUID) by organization. p_from null: all they have.
create function tokenlib.refused_edges(
    p_days integer[], p_from timestamptz, p_since timestamptz, p_to timestamptz
) returns table (days integer, organization_id uuid, user_id uuid, insufficient_tokens bigint,
    feature_not_in_plan bigint, rate_limited bigint, last_at timestamptz, plan_last_at timestamptz)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
    return query
    select e.days, e.organization_id, coalesce(e.user_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'),
        coalesce(sum(e.count) filter (where e.rule = 'insufficient_tokens'), 0)::bigint,
        coalesce(sum(e.count) filter (where e.rule = 'feature_not_in_plan'), 0)::bigint,
        coalesce(sum(e.count) filter (where e.rule = 'rate_limited'), 0)::bigint,
        max(e.last_at), max(e.last_at) filter (where e.rule <> 'rate_limited')
    from (
        select s.days, r.organization_id, r.user_id, r.rule, s.sign * r.count as count, r.last_at
        from tokenlib.window_edges(p_days, p_from, p_since, p_to) as s
        cross join lateral (
            select * from public.ai_token_refusals
            where last_at >= s.since and last_at < s.until offset 0) as r
        where r.rule in ('insufficient_tokens', 'feature_not_in_plan', 'rate_limited')
            and r.data ->> 'mode' is null
    ) as e
    group by grouping sets ((e.days, e.organization_id, e.user_id), (e.days, e.organization_id));
end
$$;

-- What to read for that: what enters such a window counts once more, what leaves it once less.
create function tokenlib.window_edges(
    p_days integer[], p_from timestamptz, p_since timestamptz, p_to timestamptz
) returns table (days integer, sign integer, since timestamptz, until timestamptz)
language sql immutable rows 4 set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
    select w.days, s.sign, s.since, s.until
    from (
        select d as days, p_from - d * interval '24 hours' as began,
            coalesce(p_since, p_to - d * interval '24 hours') as since
        from unnest(p_days) as d) as w
    cross join lateral (values (1, greatest(p_from, w.since), p_to),
        (1, w.since, w.began), (-1, w.began, least(p_from, w.since))) as s (sign, since, until)
    where s.since < s.until
$$;

-- The same by rule. An organization or a person entered a window if it was not refused by that rule in the
-- window before, and left it if it was not since: when it was refused last tells both.
create function tokenlib.refused_moves(p_days integer[], p_from timestamptz, p_to timestamptz)
returns table (days integer, rule text, refusals bigint, let_through bigint, organizations bigint,
    users bigint)
language plpgsql stable rows 20 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
    return query
    with edges as materialized (
        select s.days, s.sign, r.*
        from tokenlib.window_edges(p_days, p_from, null, p_to) as s
        cross join lateral (
            select f.rule, f.organization_id, f.user_id, f.count, f.data ->> 'mode' is null as refused
            from public.ai_token_refusals f
            where f.last_at >= s.since and f.last_at < s.until offset 0) as r
    ), sums as (
        select e.days, e.rule, sum(e.sign * e.count) filter (where e.refused) as refusals,
            sum(e.sign * e.count) filter (where not e.refused) as let_through
        from edges e
        group by 1, 2
    ), who as (
        select e.days, e.rule, i.person, i.id, max(e.sign) as sign
        from edges e
        cross join lateral (values (false, e.organization_id),
            (true, nullif(e.user_id, '00000000-0000-0000-0000-000000000000'))) as i (person, id)
        where i.id is not null
        group by 1, 2, 3, 4
    ), changed as (
        select w.days, w.rule, coalesce(sum(w.sign) filter (where not w.person), 0) as organizations,
            coalesce(sum(w.sign) filter (where w.person), 0) as users
        from who w
        where (
            -- Each looked up by itself: joined, the planner may read all that were ever seen.
            select n.last_at from public.ai_token_refusal_seen n
            where n.rule = w.rule and n.person = w.person and n.id = w.id)
            >= case w.sign when 1 then p_from else p_to end - w.days * interval '24 hours'
            is not true
        group by 1, 2
    )
    select s.days, s.rule, coalesce(s.refusals, 0)::bigint, coalesce(s.let_through, 0)::bigint,
        coalesce(c.organizations, 0)::bigint, coalesce(c.users, 0)::bigint
    from sums s
    left join changed c on c.days = s.days and c.rule = s.rule;
end
$$;

-- Moves the ends of the windows to p_to; p_from null: makes them anew.
create function tokenlib.fold_refused(p_from timestamptz, p_to timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    delete from public.ai_token_refusal_windows where p_from is null;
    delete from public.ai_token_refusal_rules where p_from is null;
    delete from public.ai_token_refusal_seen where p_from is null;

    insert into public.ai_token_refusal_windows as w
        (days, organization_id, user_id, insufficient_tokens, feature_not_in_plan, rate_limited,
            last_at, plan_last_at)
    select * from tokenlib.refused_edges(array[1, 7, 30, 90], p_from, null, p_to)
    on conflict (days, organization_id, user_id) do update
        set insufficient_tokens = w.insufficient_tokens + excluded.insufficient_tokens,
            feature_not_in_plan = w.feature_not_in_plan + excluded.feature_not_in_plan,
            rate_limited = w.rate_limited + excluded.rate_limited,
            last_at = greatest(w.last_at, excluded.last_at),
            plan_last_at = greatest(w.plan_last_at, excluded.plan_last_at);
    -- By the two indexes.
    delete from public.ai_token_refusal_windows where days in (1, 7, 30, 90)
        and insufficient_tokens + feature_not_in_plan + rate_limited = 0
        and user_id = 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    delete from public.ai_token_refusal_windows where days in (1, 7, 30, 90)
        and insufficient_tokens + feature_not_in_plan + rate_limited = 0
        and user_id <> 'ffffffff-ffff-ffff-ffff-ffffffffffff';

    insert into public.ai_token_refusal_rules as t
        (days, rule, refusals, let_through, organizations, users)
    select * from tokenlib.refused_moves(array[1, 7, 30, 90], p_from, p_to)
    on conflict (days, rule) do update set refusals = t.refusals + excluded.refusals,
        let_through = t.let_through + excluded.let_through,
        organizations = t.organizations + excluded.organizations, users = t.users + excluded.users;
    delete from public.ai_token_refusal_rules where organizations = 0;
    -- Who was refused before the longest window began is as if never: it goes at a midnight.
    insert into public.ai_token_refusal_seen as n (rule, person, id, last_at)
    select r.rule, i.person, i.id, max(r.last_at)
    from public.ai_token_refusals r
    cross join lateral (values (false, r.organization_id),
        (true, nullif(r.user_id, '00000000-0000-0000-0000-000000000000'))) as i (person, id)
    where r.last_at >= coalesce(p_from, p_to - interval '2160 hours') and r.last_at < p_to
        and i.id is not null
    group by 1, 2, 3
    on conflict (rule, person, id) do update set last_at = excluded.last_at;
    delete from public.ai_token_refusal_seen
    where last_at < p_to - interval '2160 hours'
        and date_bin('24 hours', p_from, '2000-01-01 00:00Z')
            < date_bin('24 hours', p_to, '2000-01-01 00:00Z');
$$;

-- How often each rule refused everybody, and how many: from the windows, if it is one of them.
create function tokenlib.refused_by_rule(p_since timestamptz, p_until timestamptz)
returns table (rule text, refusals bigint, let_through bigint, organizations bigint, users bigint)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_to timestamptz := (select windows_to from public.ai_token_usage_closed);
    v_days integer := round(extract(epoch from p_until - p_since) / 86400);
begin
    if v_to <= p_until and v_to > p_since and v_days in (1, 7, 30, 90)
        and p_since = p_until - v_days * interval '24 hours' then
        return query
        select m.rule, sum(m.refusals)::bigint, sum(m.let_through)::bigint,
            sum(m.organizations)::bigint, sum(m.users)::bigint
        from (
            select k.rule, k.refusals, k.let_through, k.organizations, k.users
            from public.ai_token_refusal_rules k where k.days = v_days
            union all
            select e.rule, e.refusals, e.let_through, e.organizations, e.users
            from tokenlib.refused_moves(array[v_days], v_to, p_until) as e
        ) as m
        group by m.rule
        having sum(m.organizations) > 0;
    else
        return query
        select r.rule, coalesce(sum(r.count) filter (where r.data ->> 'mode' is null), 0)::bigint,
            coalesce(sum(r.count) filter (where r.data ->> 'mode' is not null), 0)::bigint,
            count(distinct r.organization_id),
            count(distinct nullif(r.user_id, '00000000-0000-0000-0000-000000000000'))
        from public.ai_token_refusals r
        where r.last_at >= p_since and r.last_at < p_until
        group by r.rule;
    end if;
end
$$;

-- Who hit a limit most often: organizations, or users; with p_by_plan only what another plan would have
-- helped. Of the windows that which begins next to p_since, corrected by what lies between; and the log
-- alone where that is as long.
create function tokenlib.refused_most(
    p_since timestamptz, p_until timestamptz, p_by_user boolean, p_by_plan boolean, p_limit bigint
) returns table (organization_id uuid, user_id uuid, insufficient_tokens bigint,
    feature_not_in_plan bigint, rate_limited bigint, last_at timestamptz)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    c_all constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    v_to timestamptz := (select windows_to from public.ai_token_usage_closed where windows_to <= p_until);
    v_days integer := (select d from unnest(array[1, 7, 30, 90]) as d
        order by abs(extract(epoch from v_to - d * interval '24 hours' - p_since)) limit 1);
begin
    if v_to is null or p_since > v_to or abs(extract(epoch from
            v_to - v_days * interval '24 hours' - p_since)) > extract(epoch from v_to - p_since) then
        v_to := null; -- all of the window is what lies at its edges
        v_days := 0;
    end if;
    return query
    with moved as materialized (
        select * from tokenlib.refused_edges(array[v_days], v_to, p_since, p_until)
        where (user_id = c_all) = (not p_by_user)
    ), kept as (
        select w.* from public.ai_token_refusal_windows w
        where w.days = v_days and (w.user_id = c_all) = (not p_by_user)
            and (w.organization_id, w.user_id) not in (select organization_id, user_id from moved)
            and (not p_by_plan or w.insufficient_tokens + w.feature_not_in_plan > 0)
        order by case when p_by_plan then w.insufficient_tokens + w.feature_not_in_plan
                else w.insufficient_tokens + w.feature_not_in_plan + w.rate_limited end desc,
            case when p_by_plan then w.plan_last_at else w.last_at end desc,
            w.organization_id, w.user_id
        limit p_limit
    ), figures as (
        select organization_id, user_id, insufficient_tokens, feature_not_in_plan, rate_limited,
            last_at, plan_last_at from kept
        union all
        select m.organization_id, m.user_id,
            m.insufficient_tokens + coalesce(w.insufficient_tokens, 0),
            m.feature_not_in_plan + coalesce(w.feature_not_in_plan, 0),
            m.rate_limited + coalesce(w.rate_limited, 0), greatest(m.last_at, w.last_at),
            greatest(m.plan_last_at, w.plan_last_at)
        from moved m
        left join public.ai_token_refusal_windows w on w.days = v_days
            and w.organization_id = m.organization_id and w.user_id = m.user_id
    ), hit as (
        select organization_id, nullif(user_id, c_all) as user_id, insufficient_tokens,
            feature_not_in_plan, case when p_by_plan then 0 else rate_limited end as rate_limited,
            case when p_by_plan then plan_last_at else last_at end as last_at
        from figures
    )
    select * from hit
    where insufficient_tokens + feature_not_in_plan + rate_limited > 0
    order by insufficient_tokens + feature_not_in_plan + rate_limited desc, last_at desc,
        organization_id, user_id
    limit p_limit;
end
$$;
