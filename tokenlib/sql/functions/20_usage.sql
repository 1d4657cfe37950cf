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
                else e.organization_id end as scope,
            r.sign, r.ended, r.begun, e.feature, e.token_type, e.uses, e.tokens, e.waived, e.refunded
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
        where p_kind <> 'user' and (p_kind <> 'organization' or e.organization_id = any (p_scopes))
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

-- By hour, day or week of a time zone, by "24 hours" from p_since on, or (null) all in one. A bar begins
-- where the name of the bar changes, which is not always where its calendar says: some zones set the
-- clock at midnight.
create function tokenlib.usage_bars(
    p_since timestamptz, p_until timestamptz, p_bucket text, p_zone text, p_organization uuid
) returns table (start timestamptz, feature text, token_type text, uses bigint, tokens bigint,
    waived bigint, refunded bigint)
language plpgsql stable rows 200 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    v_closed timestamptz := (select c.closed_to from public.ai_token_usage_closed c);
begin
    perform now() at time zone p_zone; -- refuses a wrong name without rows
    if p_organization is not null then
        return query
        select o.start, o.feature, o.token_type, o.uses, o.tokens, o.waived, o.refunded
        from tokenlib.usage_organizations(array[p_organization], p_since, p_until, p_bucket,
            p_zone) as o;
    elsif p_since < v_closed then
        return query
        select p.start, p.feature, p.token_type, p.uses, p.tokens, p.waived, p.refunded
        from tokenlib.usage_parts('all', array['00000000-0000-0000-0000-000000000000'::uuid],
            v_closed, p_since, p_until, p_bucket, p_zone) as p;
    else
        return query
        select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', l.created_at, p_since)
                else date_trunc(p_bucket, l.created_at, p_zone) end, l.feature_used, l.token_type,
            count(*), sum(l.tokens_deducted)::bigint, sum(l.tokens_waived)::bigint, 0::bigint
        from public.ai_token_usage_log l
        where l.created_at >= p_since and l.created_at < p_until
        group by 1, 2, 3
        union all
        select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', e.created_at, p_since)
                else date_trunc(p_bucket, e.created_at, p_zone) end, coalesce(e.data ->> 'feature', ''),
            e.token_type, 0::bigint, 0::bigint, 0::bigint, sum(e.balance_change)::bigint
        from public.ai_token_events e
        where e.kind = 'refund' and e.created_at >= p_since and e.created_at < p_until
        group by 1, 2, 3;
    end if;
end
$$;

-- Organizations: those that are kept by their sums, the others row by row.
create function tokenlib.usage_organizations(
    p_organizations uuid[], p_since timestamptz, p_until timestamptz, p_bucket text, p_zone text
) returns table (organization_id uuid, start timestamptz, feature text, token_type text, uses bigint,
    tokens bigint, waived bigint, refunded bigint)
language plpgsql stable rows 200 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_kept uuid[];
    v_others uuid[];
    v_closed timestamptz;
begin
    perform now() at time zone p_zone; -- refuses a wrong name without rows
    select array_agg(id) filter (where k.scope is not null), array_agg(id) filter (where k.scope is null),
        min(k.closed_to)
    into v_kept, v_others, v_closed
    from unnest(p_organizations) as id
    left join public.ai_token_usage_kept k on k.scope = id and k.closed_to > p_since;
    if v_kept is not null then
        return query
        select * from tokenlib.usage_parts('organization', v_kept, v_closed, p_since, p_until,
            p_bucket, p_zone);
    end if;
    if v_others is not null then
        return query
        select l.organization_id, case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', l.created_at, p_since)
                else date_trunc(p_bucket, l.created_at, p_zone) end, l.feature_used, l.token_type,
            count(*), sum(l.tokens_deducted)::bigint, sum(l.tokens_waived)::bigint, 0::bigint
        from public.ai_token_usage_log l
        where l.organization_id = any (v_others)
            and l.created_at >= p_since and l.created_at < p_until
        group by 1, 2, 3, 4
        union all
        select e.organization_id, case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', e.created_at, p_since)
                else date_trunc(p_bucket, e.created_at, p_zone) end, coalesce(e.data ->> 'feature', ''),
            e.token_type, 0::bigint, 0::bigint, 0::bigint, sum(e.balance_change)::bigint
        from public.ai_token_events e
        where e.kind = 'refund' and e.organization_id = any (v_others)
            and e.created_at >= p_since and e.created_at < p_until
        group by 1, 2, 3, 4;
    end if;
end
$$;

-- Persons, each in an organization, without features and wallets; `user_id` null is nobody known.
create function tokenlib.usage_persons(
    p_organizations uuid[], p_users uuid[], p_since timestamptz, p_until timestamptz, p_bucket text,
    p_zone text
) returns table (organization_id uuid, user_id uuid, start timestamptz, uses bigint, tokens bigint,
    waived bigint, refunded bigint)
language plpgsql stable rows 200 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_scopes uuid[];
    v_closed timestamptz;
begin
    perform now() at time zone p_zone; -- refuses a wrong name without rows
    select array_agg(k.scope), min(k.closed_to) into v_scopes, v_closed
    from unnest(p_organizations, p_users) as a (organization_id, user_id)
    join public.ai_token_usage_kept k
        on k.scope = md5(a.organization_id::text || a.user_id)::uuid and k.closed_to > p_since;
    if v_scopes is not null then
        return query
        select k.organization_id, k.user_id, p.start, p.uses, p.tokens, p.waived, p.refunded
        from tokenlib.usage_parts('user', v_scopes, v_closed, p_since, p_until, p_bucket, p_zone) as p
        join public.ai_token_usage_kept k on k.scope = p.scope;
    end if;
    return query
    select a.organization_id, a.user_id, case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', e.created_at, p_since)
                else date_trunc(p_bucket, e.created_at, p_zone) end,
        sum(e.uses)::bigint, sum(e.tokens)::bigint, sum(e.waived)::bigint, sum(e.refunded)::bigint
    from unnest(p_organizations, p_users) as a (organization_id, user_id)
    cross join lateral (
        select created_at, 1 as uses, tokens_deducted as tokens, tokens_waived as waived,
            0 as refunded
        from public.ai_token_usage_log
        where organization_id = a.organization_id and user_id = a.user_id
            and created_at >= p_since and created_at < p_until
        union all
        select created_at, 1, tokens_deducted, tokens_waived, 0
        from public.ai_token_usage_log
        where a.user_id is null and organization_id = a.organization_id and user_id is null
            and created_at >= p_since and created_at < p_until
        union all
        select created_at, 0, 0, 0, balance_change
        from public.ai_token_events
        where organization_id = a.organization_id and kind = 'refund'
            and data ->> 'user_id' is not distinct from a.user_id::text
            and created_at >= p_since and created_at < p_until
    ) as e
    where v_scopes is null or a.user_id is null
        or md5(a.organization_id::text || a.user_id)::uuid <> all (v_scopes)
    group by 1, 2, 3;
end
$$;

-- The charges of one wallet after its entry p_after, which was written at p_since, and up to p_until, itself
-- included: by feature, of many charges from the sums. Entries of a wallet are in the order of time.
create function tokenlib.usage_wallet(
    p_organization uuid, p_type text, p_after bigint, p_since timestamptz, p_until timestamptz
) returns table (feature text, uses bigint, tokens bigint, waived bigint)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_lo timestamptz := date_bin('15 minutes', p_since, '2000-01-01 00:00Z') + interval '15 minutes';
    v_closed timestamptz := (select closed_to from public.ai_token_usage_kept
        where scope = p_organization);
begin
    if v_closed is null or v_lo >= least(v_closed, p_until) then
        return query
        select feature_used, count(*), sum(tokens_deducted)::bigint, sum(tokens_waived)::bigint
        from public.ai_token_usage_log
        where organization_id = p_organization and token_type = p_type and number > p_after
            and created_at <= p_until
        group by 1;
        return;
    end if;
    return query
    select feature, sum(uses)::bigint, sum(tokens)::bigint, sum(waived)::bigint
    from (
        select feature, token_type, uses, tokens, waived
        from tokenlib.usage_parts('organization', array[p_organization], v_closed, v_lo,
            p_until + interval '1 microsecond', null, 'UTC')
        union all
        select feature_used, token_type, 1, tokens_deducted, tokens_waived
        from public.ai_token_usage_log
        where created_at >= p_since and created_at < v_lo
            and organization_id = p_organization and number > p_after
    ) as each
    where token_type = p_type and uses > 0
    group by 1;
end
$$;

-- One person in one organization or in each where they were charged: those of the last 90 days are known;
-- for a longer time the log is read.
create function tokenlib.usage_person(
    p_since timestamptz, p_until timestamptz, p_bucket text, p_zone text, p_organization uuid,
    p_user uuid
) returns table (start timestamptz, uses bigint, tokens bigint, waived bigint, refunded bigint)
language plpgsql stable rows 200 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    v_to timestamptz := (select windows_to from public.ai_token_usage_closed);
    v_ids uuid[];
begin
    if p_organization is not null then
        v_ids := array[p_organization];
    elsif p_since >= v_to - interval '2160 hours' then
        v_ids := array(
            select organization_id from public.ai_token_usage_windows
            where user_id = p_user and days = 90
                and user_id <> '00000000-0000-0000-0000-000000000000'
            union
            select organization_id from public.ai_token_usage_log
            where created_at >= v_to and created_at < p_until and user_id = p_user
            union
            select organization_id from public.ai_token_events
            where kind = 'refund' and created_at >= p_since and created_at < p_until
                and data ->> 'user_id' = p_user::text);
    else
        v_ids := array(
            select organization_id from public.ai_token_usage_log
            where created_at >= p_since and created_at < p_until and user_id = p_user
            union
            select organization_id from public.ai_token_events
            where kind = 'refund' and created_at >= p_since and created_at < p_until
                and data ->> 'user_id' = p_user::text);
    end if;
    return query
    select p.start, p.uses, p.tokens, p.waived, p.refunded
    from tokenlib.usage_persons(v_ids, array_fill(p_user, array[cardinality(v_ids)]), p_since,
        p_until, p_bucket, p_zone) as p;
end
$$;

-- By the plan that each organization has now: the sums by the plans that they count to, less and more
-- what was used by who changed since.
create function tokenlib.usage_plans(
    p_since timestamptz, p_until timestamptz, p_bucket text, p_zone text, p_plan text
) returns table (plan text, start timestamptz, feature text, token_type text, uses bigint,
    tokens bigint, waived bigint, refunded bigint)
language plpgsql stable rows 200 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_scopes uuid[];
    v_closed timestamptz;
begin
    perform now() at time zone p_zone; -- refuses a wrong name without rows
    select array_agg(scope) filter (where p_plan is null or plan = p_plan), min(closed_to)
    into v_scopes, v_closed
    from public.ai_token_usage_kept where plan is not null;
    if v_closed is null or v_closed <= p_since then
        return query
        select coalesce(o.plan, ''), case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', l.created_at, p_since)
                else date_trunc(p_bucket, l.created_at, p_zone) end, l.feature_used, l.token_type,
            count(*), sum(l.tokens_deducted)::bigint, sum(l.tokens_waived)::bigint, 0::bigint
        from public.ai_token_usage_log l
        left join public.organizations o on o.id = l.organization_id
        where l.created_at >= p_since and l.created_at < p_until
            and (p_plan is null or coalesce(o.plan, '') = p_plan)
        group by 1, 2, 3, 4
        union all
        select coalesce(o.plan, ''), case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', e.created_at, p_since)
                else date_trunc(p_bucket, e.created_at, p_zone) end, coalesce(e.data ->> 'feature', ''),
            e.token_type, 0::bigint, 0::bigint, 0::bigint, sum(e.balance_change)::bigint
        from public.ai_token_events e
        left join public.organizations o on o.id = e.organization_id
        where e.kind = 'refund' and e.created_at >= p_since and e.created_at < p_until
            and (p_plan is null or coalesce(o.plan, '') = p_plan)
        group by 1, 2, 3, 4;
        return;
    end if;
    return query
    with moved as materialized (
        select * from tokenlib.plans_changed(true) as m
        where p_plan is null or p_plan in (m.counted, m.plan)
    ), figures as (
        select scope, start, feature, token_type, uses, tokens, waived, refunded
        from tokenlib.usage_parts('plan', v_scopes, v_closed, p_since, p_until, p_bucket, p_zone)
        union all
        select md5(s.plan)::uuid, e.start, e.feature, e.token_type, s.sign * e.uses,
            s.sign * e.tokens, s.sign * e.waived, s.sign * e.refunded
        from moved m
        cross join lateral (
            select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', created_at, p_since)
                else date_trunc(p_bucket, created_at, p_zone) end as start,
                feature_used as feature, token_type, count(*) as uses,
                sum(tokens_deducted) as tokens, sum(tokens_waived) as waived, 0 as refunded
            from public.ai_token_usage_log
            where organization_id = m.organization_id
                and created_at >= p_since and created_at < least(p_until, v_closed)
            group by 1, 2, 3
            union all
            select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', created_at, p_since)
                else date_trunc(p_bucket, created_at, p_zone) end,
                coalesce(data ->> 'feature', ''), token_type, 0, 0, 0, sum(balance_change)
            from public.ai_token_events
            where organization_id = m.organization_id and kind = 'refund'
                and created_at >= p_since and created_at < least(p_until, v_closed)
            group by 1, 2, 3
        ) as e
        cross join lateral (values (m.counted, -1), (m.plan, 1)) as s (plan, sign)
    ), named as (
        select plan from public.ai_token_usage_kept where plan is not null
        union select plan from public.ai_token_plans
        union select ''
        union select plan from moved
        union select coalesce(o.plan, '') from public.organizations o
        where o.id in (
            select organization_id from public.ai_token_usage_log
            where created_at >= v_closed and created_at < p_until
            union
            select organization_id from public.ai_token_events
            where kind = 'refund' and created_at >= v_closed and created_at < p_until)
    )
    select n.plan, f.start, f.feature, f.token_type, sum(f.uses)::bigint, sum(f.tokens)::bigint,
        sum(f.waived)::bigint, sum(f.refunded)::bigint
    from figures f
    join named n on md5(n.plan)::uuid = f.scope
    where p_plan is null or n.plan = p_plan
    group by 1, 2, 3, 4
    having sum(f.uses) <> 0 or sum(f.refunded) <> 0;
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
        select b from generate_series(p_since, p_until, interval '24 hours') as b
        where p_bucket = '24 hours'
        union all
        select d at time zone p_zone - back
        from generate_series(date_trunc('day', p_since at time zone p_zone),
            p_until at time zone p_zone + interval '1 day', interval '1 day') as d
        cross join (values (interval '0'), (interval '1 hour')) as b (back)
        where p_bucket in ('day', 'week')
    ), named as (
        select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', at, p_since)
                else date_trunc(p_bucket, at, p_zone) end as start, min(at) as since
        from points where at >= p_since and at < p_until
        group by 1
    )
    select start, since, lead(since, 1, p_until) over (order by since) from named
$$;

-- How many organizations were charged: from the counts that are kept for 1, 7, 30 and 90 days and
-- corrected for who lies at the edges, or from when each was last seen.
create function tokenlib.active_between(p_since timestamptz, p_until timestamptz) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    v_days integer := case when p_until - p_since in (interval '24 hours', interval '168 hours',
        interval '720 hours', interval '2160 hours', interval '1 day', interval '7 days',
        interval '30 days', interval '90 days')
        then round(extract(epoch from p_until - p_since) / 86400) end;
    v_closed timestamptz := (select closed_to from public.ai_token_usage_closed);
    v_hi timestamptz := case when v_closed is not null
        then least(v_closed, date_bin('5 minutes', p_until, '2000-01-01 00:00Z')) end;
    v_count bigint;
begin
    -- Far from the closed end the edges are long.
    if v_hi - v_days * interval '24 hours' < p_since - interval '1 hour' then
        v_days := null;
    end if;
    if p_until >= v_closed and p_since < v_closed and coalesce(v_days, 1) = 1 then
        return (select count(*) from public.ai_token_usage_seen where last_at >= p_since)
            + (select count(distinct l.organization_id) from public.ai_token_usage_log l
                where l.created_at >= v_closed and l.created_at < p_until
                    and not exists (select from public.ai_token_usage_seen n
                        where n.organization_id = l.organization_id and n.last_at >= p_since));
    elsif v_days is null or v_hi is null or v_hi <= p_since then
        return (select count(*) from (select from public.ai_token_usage_log
            where created_at >= p_since and created_at < p_until group by organization_id) as each);
    end if;
    select active into v_count from public.ai_token_usage_active
    where days = v_days and at <= v_hi order by at desc limit 1;
    if p_until = v_hi and p_since = v_hi - v_days * interval '24 hours' then
        return coalesce(v_count, 0); -- nothing at the edges
    elsif v_days = 1 and 100 < (select count(*) from public.ai_token_usage_log
            where created_at >= v_hi and created_at < p_until)
        + (select count(*) from public.ai_token_usage_log
            where created_at >= v_hi - interval '24 hours' and created_at < p_since) then
        -- So many are sooner found in one reading of the day than one by one.
        return coalesce(v_count, 0) + (
            select count(*) filter (where entered and not counted)
                - count(*) filter (where leaving and not inside)
            from (
                select bool_or(created_at >= v_hi) as entered,
                    bool_or(created_at < v_hi) as counted,
                    bool_or(created_at < p_since) as leaving,
                    bool_or(created_at >= p_since) as inside
                from public.ai_token_usage_log
                where created_at >= v_hi - interval '24 hours' and created_at < p_until
                    and organization_id in (
                        select organization_id from public.ai_token_usage_log
                        where created_at >= v_hi and created_at < p_until
                        union
                        select organization_id from public.ai_token_usage_log
                        where created_at >= v_hi - interval '24 hours' and created_at < p_since)
                group by organization_id) as e);
    end if;
    return coalesce(v_count, 0)
        + (select count(*) from (
            select distinct organization_id from public.ai_token_usage_log
            where created_at >= v_hi and created_at < p_until) as entered
            where not exists (select from public.ai_token_usage_log l
                where l.organization_id = entered.organization_id
                    and l.created_at >= v_hi - v_days * interval '24 hours'
                    and l.created_at < v_hi))
        - (select count(*) from (
            select distinct organization_id from public.ai_token_usage_log
            where created_at >= v_hi - v_days * interval '24 hours' and created_at < p_since) as gone
            where not exists (select from public.ai_token_usage_log l
                where l.organization_id = gone.organization_id
                    and l.created_at >= p_since and l.created_at < p_until));
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
-- the tokens of everybody in the window. Who is among the first at the last closing or was charged since
-- can be among the first now; so many more are looked at as may have fallen since.
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
    v_more bigint;
    v_whole numeric;
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
    -- Known before the list is planned: so it is read by its index, as far as this.
    select p_limit + count(*) into v_more from public.ai_token_usage_log
    where created_at >= v_from and created_at < p_since;
    select sum(u.tokens) into v_whole
    from tokenlib.usage_between(p_since, p_until, p_organization) as u;
    return query
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
    ), first as (
        select organization_id, user_id from (
            (select w.organization_id, w.user_id, w.tokens, w.uses
            from public.ai_token_usage_windows w
            where not p_by_user and w.user_id = '00000000-0000-0000-0000-000000000000'
                and w.days = v_days
                and (p_organization is null or w.organization_id = p_organization)
            order by w.tokens desc, w.uses desc, w.organization_id
            limit v_more)
            union all
            (select w.organization_id, w.user_id, w.tokens, w.uses
            from public.ai_token_usage_windows w
            where p_by_user and w.user_id <> '00000000-0000-0000-0000-000000000000'
                and w.days = v_days
                and (p_organization is null or w.organization_id = p_organization)
            order by w.tokens desc, w.uses desc, w.organization_id, w.user_id
            limit v_more)
        ) as w
        union
        select organization_id, user_id from moved
    ), figures as (
        select f.organization_id, case when f.user_id not in (c_all, c_nobody) then f.user_id end
                as user_id,
            coalesce(w.uses, 0) + coalesce(m.uses, 0) as uses,
            coalesce(w.tokens, 0) + coalesce(m.tokens, 0) as tokens
        from first f
        left join public.ai_token_usage_windows w on w.organization_id = f.organization_id
            and w.user_id = f.user_id and w.days = v_days
        left join moved m on m.organization_id = f.organization_id and m.user_id = f.user_id
    )
    select f.organization_id, f.user_id, f.uses::bigint, f.tokens::bigint, v_whole
    from figures f
    where f.uses > 0
    order by 4 desc, 3 desc, 1, 2
    limit p_limit;
end
$$;
