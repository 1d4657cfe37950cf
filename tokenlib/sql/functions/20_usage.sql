-- What was used in a window, from the rollups and the raw rows at its edges, exact to the row: the
-- same as the log alone answers, which is asked where nothing is closed. They run as who asks.

-- The part of a window that the rollups answer: from `lo` to `hi`; both are p_until where there is
-- none. p_organization null: everybody.
create function tokenlib.usage_closed(
    p_since timestamptz, p_until timestamptz, p_organization uuid,
    out lo timestamptz, out hi timestamptz
)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_step interval := case when p_organization is null then '5 minutes' else '15 minutes' end;
begin
    if p_organization is null then
        select closed_to into hi from public.ai_token_usage_closed;
    else
        select closed_to into hi from public.ai_token_usage_kept
        where scope = p_organization;
    end if;
    hi := case when hi is not null then least(hi, date_bin(v_step, p_until, '2000-01-01 00:00Z')) end;
    lo := date_bin(v_step, p_since + v_step - interval '1 microsecond', '2000-01-01 00:00Z');
    if hi is null or lo >= hi then
        lo := p_until;
        hi := p_until;
    end if;
end
$$;

-- By feature and wallet. The log is read by usage_by_time, or by usage_by_user for an organization.
create function tokenlib.usage_between(
    p_since timestamptz, p_until timestamptz, p_organization uuid
) returns table (feature text, token_type text, uses bigint, tokens bigint, waived bigint,
    refunded bigint)
language plpgsql stable rows 20 set search_path = pg_catalog, pg_temp as $$
declare
    v_scope uuid := coalesce(p_organization, '00000000-0000-0000-0000-000000000000');
    v_lo timestamptz;
    v_hi timestamptz;
begin
    select lo, hi into v_lo, v_hi from tokenlib.usage_closed(p_since, p_until, p_organization);
    if v_lo < v_hi then
        return query
        with recursive keys as (
            (select s.feature, s.token_type from public.ai_token_usage_sums s
            where s.organization_id = v_scope
            order by s.feature, s.token_type limit 1)
            union all
            select n.* from keys k
            cross join lateral (
                select s.feature, s.token_type from public.ai_token_usage_sums s
                where s.organization_id = v_scope
                    and (s.feature, s.token_type) > (k.feature, k.token_type)
                order by s.feature, s.token_type limit 1) as n
        )
        select k.feature, k.token_type, h.uses - coalesce(l.uses, 0),
            h.tokens - coalesce(l.tokens, 0), h.waived - coalesce(l.waived, 0),
            h.refunded - coalesce(l.refunded, 0)
        from keys k
        cross join lateral (
            select * from public.ai_token_usage_sums s
            where s.organization_id = v_scope and s.feature = k.feature
                and s.token_type = k.token_type and s.at <= v_hi
            order by s.at desc limit 1) as h
        left join lateral (
            select * from public.ai_token_usage_sums s
            where s.organization_id = v_scope and s.feature = k.feature
                and s.token_type = k.token_type and s.at <= v_lo
            order by s.at desc limit 1) as l on true
        where h.at > v_lo;
        if p_since < v_lo then
            return query select * from tokenlib.usage_edge(p_since, v_lo, p_organization);
        end if;
        if v_hi < p_until and p_until - v_hi < interval '1 hour' then
            return query select * from tokenlib.usage_edge(v_hi, p_until, p_organization);
        elsif v_hi < p_until then
            return query select * from tokenlib.usage_raw(v_hi, p_until, p_organization);
        end if;
    else
        return query select * from tokenlib.usage_raw(p_since, p_until, p_organization);
    end if;
end
$$;

-- The same from the log alone.
create function tokenlib.usage_raw(p_since timestamptz, p_until timestamptz, p_organization uuid)
returns table (feature text, token_type text, uses bigint, tokens bigint, waived bigint,
    refunded bigint)
language plpgsql stable rows 20 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
begin
    return query
    select l.feature_used, l.token_type, count(*), sum(l.tokens_deducted)::bigint,
        sum(l.tokens_waived)::bigint, 0::bigint
    from public.ai_token_usage_log l
    where l.created_at >= p_since and l.created_at < p_until
        and (p_organization is null or l.organization_id = p_organization)
    group by 1, 2
    union all
    select coalesce(e.data ->> 'feature', ''), e.token_type, 0::bigint, 0::bigint, 0::bigint,
        sum(e.balance_change)::bigint
    from public.ai_token_events e
    where e.kind = 'refund' and e.created_at >= p_since and e.created_at < p_until
        and (p_organization is null or e.organization_id = p_organization)
    group by 1, 2;
end
$$;

-- The same of a few minutes, also of an organization by the time: it has many charges, or it would not
-- be kept. The plan is made once, for it takes longer than the answer.
create function tokenlib.usage_edge(p_since timestamptz, p_until timestamptz, p_organization uuid)
returns table (feature text, token_type text, uses bigint, tokens bigint, waived bigint,
    refunded bigint)
language plpgsql stable rows 20 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $$
begin
    return query
    select l.feature_used, l.token_type, count(*), sum(l.tokens_deducted)::bigint,
        sum(l.tokens_waived)::bigint, 0::bigint
    from (select * from public.ai_token_usage_log
        where created_at >= p_since and created_at < p_until offset 0) as l
    where p_organization is null or l.organization_id = p_organization
    group by 1, 2
    union all
    select coalesce(e.data ->> 'feature', ''), e.token_type, 0::bigint, 0::bigint, 0::bigint,
        sum(e.balance_change)::bigint
    from (select * from public.ai_token_events
        where kind = 'refund' and created_at >= p_since and created_at < p_until offset 0) as e
    where p_organization is null or e.organization_id = p_organization
    group by 1, 2;
end
$$;

-- What scopes of a kind (see usage_steps) that are closed up to p_closed used in each bar. The rows are parts,
-- also below 0, which add up to it: of each point between two bars what the sums say at the nearest step, and the
-- raw rows from there to the point; and the rows after p_closed.
create function tokenlib.usage_parts(
    p_kind text, p_scopes uuid[], p_closed timestamptz, p_since timestamptz, p_until timestamptz,
    p_bucket text, p_zone text
) returns table (scope uuid, start timestamptz, feature text, token_type text, uses bigint,
    tokens bigint, waived bigint, refunded bigint)
language plpgsql stable rows 1000 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_step interval := case p_kind when 'all' then '5 minutes' when 'user' then '1 hour'
        else '15 minutes' end;
    v_organizations constant uuid[] := tokenlib.scoped_organizations(p_kind, p_scopes);
begin
    return query
    with recursive bars as materialized (
        select * from tokenlib.bars(p_since, p_until, p_bucket, p_zone)
    ), points as materialized (
        select at, least(date_bin(v_step, at + v_step / 2, '2000-01-01 00:00Z'), p_closed) as step,
            max(ended) as ended, max(begun) as begun
        from (select since as at, null::timestamptz as ended, start as begun from bars
            union all select until, start, null from bars) as each
        group by at
    ), keys as (
        select f.* from unnest(p_scopes) as u (scope)
        cross join lateral (
            select u.scope, s.feature, s.token_type from public.ai_token_usage_sums s
            where s.organization_id = u.scope
            order by s.feature, s.token_type limit 1) as f
        union all
        select k.scope, n.feature, n.token_type from keys k
        cross join lateral (
            select s.feature, s.token_type from public.ai_token_usage_sums s
            where s.organization_id = k.scope
                and (s.feature, s.token_type) > (k.feature, k.token_type)
            order by s.feature, s.token_type limit 1) as n
    ), ranges as materialized (
        -- Columns, since under row security an index takes no function.
        select least(step, at) as since, greatest(step, at) as until, ended, begun,
            case when step < at then 1 else -1 end as sign
        from points where at <= p_closed and step <> at
        union all
        select greatest(since, p_closed), until, start, null, 1 from bars where until > p_closed
    ), raw as (
        select case p_kind when 'all' then '00000000-0000-0000-0000-000000000000'::uuid
                when 'plan' then md5(coalesce(case when e.created_at < p_closed
                    then (select n.plan from public.ai_token_usage_seen n
                        where n.organization_id = e.organization_id)
                    else (select o.plan from public.organizations o
                        where o.id = e.organization_id) end, ''))::uuid
                when 'whole' then md5(e.organization_id::text
                    || '00000000-0000-0000-0000-000000000000')::uuid
                else e.organization_id end as scope,
            r.sign, r.ended, r.begun, case when p_kind = 'whole' then '' else e.feature end as feature,
            case when p_kind = 'whole' then '' else e.token_type end as token_type, e.uses, e.tokens,
            e.waived, e.refunded
        from ranges r
        cross join lateral (
            select organization_id, created_at, feature_used as feature, token_type, 1 as uses,
                tokens_deducted as tokens, tokens_waived as waived, 0 as refunded
            from public.ai_token_usage_log
            where created_at >= r.since and created_at < r.until
            union all
            select organization_id, created_at, coalesce(data ->> 'feature', ''), token_type, 0, 0, 0,
                balance_change
            from public.ai_token_events
            where kind = 'refund' and created_at >= r.since and created_at < r.until
        ) as e
        where p_kind <> 'user'
            and (v_organizations is null or e.organization_id = any (v_organizations))
        union all
        select k.scope, r.sign, r.ended, r.begun, '', '', 1, l.tokens_deducted, l.tokens_waived, 0
        from ranges r
        cross join public.ai_token_usage_kept k
        cross join lateral (
            select tokens_deducted, tokens_waived from public.ai_token_usage_log
            where organization_id = k.organization_id and user_id = k.user_id
                and created_at >= r.since and created_at < r.until offset 0) as l
        where p_kind = 'user' and k.scope = any (p_scopes)
        union all
        select k.scope, r.sign, r.ended, r.begun, '', '', 0, 0, 0, e.balance_change
        from ranges r
        cross join lateral (
            select organization_id, data ->> 'user_id' as user_id, balance_change
            from public.ai_token_events
            where kind = 'refund' and created_at >= r.since and created_at < r.until offset 0) as e
        join public.ai_token_usage_kept k on k.organization_id = e.organization_id
            and k.user_id::text = e.user_id and k.scope = any (p_scopes)
        where p_kind = 'user'
    ), figures as (
        select k.scope, p.ended, p.begun, k.feature, k.token_type, h.uses, h.tokens, h.waived,
            h.refunded
        from keys k
        cross join points p
        cross join lateral (
            select * from public.ai_token_usage_sums s
            where s.organization_id = k.scope and s.feature = k.feature
                and s.token_type = k.token_type and s.at <= p.step
            order by s.at desc limit 1) as h
        union all
        select scope, ended, begun, feature, token_type, sum(sign * uses), sum(sign * tokens),
            sum(sign * waived), sum(sign * refunded)
        from raw
        group by 1, 2, 3, 4, 5
    )
    select f.scope, s.start, f.feature, f.token_type, sum(s.sign * f.uses)::bigint,
        sum(s.sign * f.tokens)::bigint, sum(s.sign * f.waived)::bigint,
        sum(s.sign * f.refunded)::bigint
    from figures f
    cross join lateral (values (f.ended, 1), (f.begun, -1)) as s (start, sign)
    where s.start is not null
    group by 1, 2, 3, 4
    having sum(s.sign * f.uses) <> 0 or sum(s.sign * f.refunded) <> 0;
end
$$;

-- By hour, day or week of a time zone, by "24 hours" from the full hour before p_since on (what sums are kept
-- up to), or (null) all in one. A bar begins where the name of the bar changes, which is not always where
-- its calendar says: some zones set the clock at midnight.
create function tokenlib.usage_bars(
    p_since timestamptz, p_until timestamptz, p_bucket text, p_zone text, p_organization uuid
) returns table (start timestamptz, feature text, token_type text, uses bigint, tokens bigint,
    waived bigint, refunded bigint)
language plpgsql stable rows 200 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    v_closed timestamptz := (select c.closed_to from public.ai_token_usage_closed c);
    v_origin constant timestamptz := date_bin('1 hour', p_since, '2000-01-01 00:00Z');
begin
    perform now() at time zone p_zone; -- refuses a wrong name without rows
    if p_organization is not null then
        return query
        select o.start, o.feature, o.token_type, o.uses, o.tokens, o.waived, o.refunded
        from tokenlib.usage_organizations(array[p_organization], p_since, p_until, p_bucket,
            p_zone, true) as o;
    elsif p_since < v_closed then
        return query
        select p.start, p.feature, p.token_type, p.uses, p.tokens, p.waived, p.refunded
        from tokenlib.usage_parts('all', array['00000000-0000-0000-0000-000000000000'::uuid],
            v_closed, p_since, p_until, p_bucket, p_zone) as p;
    else
        return query
        select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', l.created_at, v_origin)
                else date_trunc(p_bucket, l.created_at, p_zone) end, l.feature_used, l.token_type,
            count(*), sum(l.tokens_deducted)::bigint, sum(l.tokens_waived)::bigint, 0::bigint
        from public.ai_token_usage_log l
        where l.created_at >= p_since and l.created_at < p_until
        group by 1, 2, 3
        union all
        select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', e.created_at, v_origin)
                else date_trunc(p_bucket, e.created_at, p_zone) end, coalesce(e.data ->> 'feature', ''),
            e.token_type, 0::bigint, 0::bigint, 0::bigint, sum(e.balance_change)::bigint
        from public.ai_token_events e
        where e.kind = 'refund' and e.created_at >= p_since and e.created_at < p_until
        group by 1, 2, 3;
    end if;
end
$$;

create function tokenlib.bars(
    p_since timestamptz, p_until timestamptz, p_bucket text, p_zone text
) returns table (start timestamptz, since timestamptz, until timestamptz)
language sql stable rows 30 set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
    with points as (
        select p_since as at
        union all
        -- Every change of the clock is at a quarter of an hour.
        select q from generate_series(date_bin('15 minutes', p_since, '2000-01-01 00:00Z'),
            p_until, interval '15 minutes') as q where p_bucket = 'hour'
        union all
        select b from generate_series(date_bin('1 hour', p_since, '2000-01-01 00:00Z'), p_until,
            interval '24 hours') as b where p_bucket = '24 hours'
        union all
        select d at time zone p_zone - back
        from generate_series(date_trunc('day', p_since at time zone p_zone),
            p_until at time zone p_zone + interval '1 day', interval '1 day') as d
        cross join (values (interval '0'), (interval '1 hour')) as b (back)
        where p_bucket in ('day', 'week')
    ), named as (
        select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', at,
                    date_bin('1 hour', p_since, '2000-01-01 00:00Z'))
                else date_trunc(p_bucket, at, p_zone) end as start, min(at) as since
        from points where at >= p_since and at < p_until
        group by 1
    )
    select start, since, lead(since, 1, p_until) over (order by since) from named
$$;
