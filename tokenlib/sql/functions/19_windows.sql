-- The windows that end at the last closing: what each organization used in them, and how many did.

-- What lies in each window at p_to, counted anew in one reading of the longest.
create function tokenlib.make_windows(p_to timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    delete from public.ai_token_usage_windows;
    with used as (
        select organization_id,
            coalesce(user_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff') as user_id,
            count(*) filter (where created_at >= p_to - interval '24 hours') as uses_1,
            count(*) filter (where created_at >= p_to - interval '168 hours') as uses_7,
            count(*) filter (where created_at >= p_to - interval '720 hours') as uses_30,
            count(*) as uses_90,
            sum(tokens_deducted) filter (where created_at >= p_to - interval '24 hours')
                as tokens_1,
            sum(tokens_deducted) filter (where created_at >= p_to - interval '168 hours')
                as tokens_7,
            sum(tokens_deducted) filter (where created_at >= p_to - interval '720 hours')
                as tokens_30,
            sum(tokens_deducted) as tokens_90
        from public.ai_token_usage_log
        where created_at >= p_to - interval '2160 hours' and created_at < p_to
        group by 1, 2
    ), each as (
        select u.organization_id, u.user_id, d.days, d.uses, d.tokens
        from used u
        cross join lateral (values (1, u.uses_1, u.tokens_1), (7, u.uses_7, u.tokens_7),
            (30, u.uses_30, u.tokens_30), (90, u.uses_90, u.tokens_90)) as d (days, uses, tokens)
        where d.uses > 0
    )
    insert into public.ai_token_usage_windows (organization_id, user_id, days, uses, tokens)
    select organization_id, user_id, days, uses, tokens from each
    union all
    select organization_id, '00000000-0000-0000-0000-000000000000', days, sum(uses), sum(tokens)
    from each
    group by organization_id, days;

    delete from public.ai_token_usage_pace;
    insert into public.ai_token_usage_pace (organization_id, token_type, tokens)
    select organization_id, token_type, sum(tokens_deducted)
    from public.ai_token_usage_log
    where created_at >= p_to - interval '168 hours' and created_at < p_to
    group by 1, 2
    having sum(tokens_deducted) > 0;

    delete from public.ai_token_usage_days;
    select tokenlib.fold_days(date_bin('24 hours', p_to - interval '408 hours', '2000-01-01 00:00Z'),
        p_to);
$$;

-- Moves the ends of each window: what enters is added, what leaves is taken off.
create function tokenlib.fold_windows(p_from timestamptz, p_to timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    insert into public.ai_token_usage_windows as w (organization_id, user_id, days, uses, tokens)
    select organization_id, coalesce(user_id, '00000000-0000-0000-0000-000000000000'), days,
        sum(uses), sum(tokens)
    from (
        select l.organization_id,
            coalesce(l.user_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff') as user_id, d.days,
            s.sign * count(*) as uses, s.sign * sum(l.tokens_deducted) as tokens
        from unnest(array[1, 7, 30, 90]) as d (days)
        cross join lateral (values (1, p_from, p_to), (-1, p_from - d.days * interval '24 hours',
            p_to - d.days * interval '24 hours')) as s (sign, since, until)
        join public.ai_token_usage_log l on l.created_at >= s.since and l.created_at < s.until
        group by l.organization_id, l.user_id, d.days, s.sign
    ) as moved
    group by grouping sets ((organization_id, user_id, days), (organization_id, days))
    on conflict (organization_id, user_id, days) do update
        set uses = w.uses + excluded.uses, tokens = w.tokens + excluded.tokens;
    -- By the two indexes.
    delete from public.ai_token_usage_windows where days in (1, 7, 30, 90) and tokens = 0
        and uses = 0 and user_id = '00000000-0000-0000-0000-000000000000';
    delete from public.ai_token_usage_windows where days in (1, 7, 30, 90) and tokens = 0
        and uses = 0 and user_id <> '00000000-0000-0000-0000-000000000000';

    insert into public.ai_token_usage_pace as p (organization_id, token_type, tokens)
    select l.organization_id, l.token_type, sum(s.sign * l.tokens_deducted)
    from (values (1, p_from, p_to), (-1, p_from - interval '168 hours',
        p_to - interval '168 hours')) as s (sign, since, until)
    join public.ai_token_usage_log l on l.created_at >= s.since and l.created_at < s.until
    group by 1, 2
    on conflict (organization_id, token_type) do update set tokens = p.tokens + excluded.tokens;
    delete from public.ai_token_usage_pace p
    using (select distinct organization_id, token_type from public.ai_token_usage_log
        where (created_at >= p_from and created_at < p_to)
            or (created_at >= p_from - interval '168 hours'
                and created_at < p_to - interval '168 hours')) as moved
    where p.organization_id = moved.organization_id and p.token_type = moved.token_type
        and p.tokens = 0;
    select tokenlib.fold_days(p_from, p_to);
$$;

-- An organization counts in a window from its charge on until `days` later, and not twice where the
-- charge before it counts still: so each charge changes the counts at two moments, both known now.
create function tokenlib.fold_active(p_from timestamptz, p_to timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    with steps as (
        select distinct organization_id,
            date_bin('5 minutes', created_at, '2000-01-01 00:00Z') as start
        from public.ai_token_usage_log
        where created_at >= p_from and created_at < p_to
    ), chained as (
        select s.start, coalesce(
            lag(s.start) over (partition by s.organization_id order by s.start),
            date_bin('5 minutes', n.last_at, '2000-01-01 00:00Z')) as before
        from steps s
        left join public.ai_token_usage_seen n on n.organization_id = s.organization_id
    ), windows as materialized (
        -- What forget_usage kept, counted already, is not counted twice: it alone is known after p_from.
        select d.days, case when n.active is null then '-infinity' else (
            select max(k.at) from public.ai_token_usage_active k
            where k.days = d.days and k.active is not null) end as kept_to
        from unnest(array[1, 7, 30, 90]) as d (days)
        left join lateral (select active from public.ai_token_usage_active
            where days = d.days and at > p_from order by at limit 1) as n on true
    )
    insert into public.ai_token_usage_active as a (days, at, change)
    select d.days, m.at + interval '5 minutes', sum(m.change)
    from chained c
    cross join windows d
    cross join lateral (values
        (greatest(c.start, c.before + d.days * interval '24 hours'), 1),
        (c.start + d.days * interval '24 hours', -1)) as m (at, change)
    where m.at + interval '5 minutes' > d.kept_to
    group by 1, 2
    on conflict (days, at) do update set change = a.change + excluded.change;

    -- Materialized: where the table was empty when this was planned, it would run once for each row.
    with r as materialized (
        select days, at, coalesce((
                select b.active from public.ai_token_usage_active b
                where b.days = f.days and b.at <= p_from
                order by b.at desc limit 1), 0)
            + sum(change) over (partition by days order by at) as active
        from public.ai_token_usage_active f
        where at > p_from and at <= p_to
    )
    update public.ai_token_usage_active a set active = r.active
    from r
    where a.days = r.days and a.at = r.at;

    insert into public.ai_token_usage_seen as n (organization_id, last_at, plan)
    select f.organization_id, max(f.created_at), coalesce(max(o.plan), '')
    from (
        select organization_id, created_at from public.ai_token_usage_log
        where created_at >= p_from and created_at < p_to
        union all
        -- Of a charge that may be archived.
        select organization_id, '-infinity' from public.ai_token_events
        where kind = 'refund' and created_at >= p_from and created_at < p_to
    ) as f
    left join public.organizations o on o.id = f.organization_id
    group by 1
    on conflict (organization_id) do update
        set last_at = greatest(n.last_at, excluded.last_at);
$$;
