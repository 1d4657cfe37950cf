-- What was used in a window by organization, person, wallet and plan, exact to the row.

-- Organizations: those that are kept by their sums, the others row by row. Without p_features all
-- features and wallets of one in one, with empty names.
create function tokenlib.usage_organizations(
    p_organizations uuid[], p_since timestamptz, p_until timestamptz, p_bucket text, p_zone text,
    p_features boolean
) returns table (organization_id uuid, start timestamptz, feature text, token_type text, uses bigint,
    tokens bigint, waived bigint, refunded bigint)
language plpgsql stable rows 200 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_kept uuid[];
    v_others uuid[];
    v_closed timestamptz;
    v_origin constant timestamptz := date_bin('1 hour', p_since, '2000-01-01 00:00Z');
begin
    perform now() at time zone p_zone; -- refuses a wrong name without rows
    select array_agg(k.scope), array_agg(id) filter (where k.scope is null), min(k.closed_to)
    into v_kept, v_others, v_closed
    from unnest(p_organizations) as id
    left join public.ai_token_usage_kept k on k.closed_to > p_since
        and k.scope = case when p_features then id else tokenlib.whole_scope(id) end;
    v_kept := array_remove(v_kept, null);
    if v_kept <> '{}' then
        return query
        select k.organization_id, p.start, p.feature, p.token_type, p.uses, p.tokens, p.waived,
            p.refunded
        from tokenlib.usage_parts(case when p_features then 'organization' else 'whole' end, v_kept,
            v_closed, p_since, p_until, p_bucket, p_zone) as p
        join public.ai_token_usage_kept k on k.scope = p.scope;
    end if;
    if v_others is not null then
        return query
        select l.organization_id, case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', l.created_at, v_origin)
                else date_trunc(p_bucket, l.created_at, p_zone) end,
            case when p_features then l.feature_used else '' end,
            case when p_features then l.token_type else '' end,
            count(*), sum(l.tokens_deducted)::bigint, sum(l.tokens_waived)::bigint, 0::bigint
        from public.ai_token_usage_log l
        where l.organization_id = any (v_others)
            and l.created_at >= p_since and l.created_at < p_until
        group by 1, 2, 3, 4
        union all
        select e.organization_id, case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', e.created_at, v_origin)
                else date_trunc(p_bucket, e.created_at, p_zone) end,
            case when p_features then coalesce(e.data ->> 'feature', '') else '' end,
            case when p_features then e.token_type else '' end, 0::bigint, 0::bigint, 0::bigint,
            sum(e.balance_change)::bigint
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
    v_origin constant timestamptz := date_bin('1 hour', p_since, '2000-01-01 00:00Z');
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
                when p_bucket = '24 hours' then date_bin('24 hours', e.created_at, v_origin)
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
    v_origin constant timestamptz := date_bin('1 hour', p_since, '2000-01-01 00:00Z');
begin
    perform now() at time zone p_zone; -- refuses a wrong name without rows
    select array_agg(scope) filter (where p_plan is null or plan = p_plan), min(closed_to)
    into v_scopes, v_closed
    from public.ai_token_usage_kept where plan is not null;
    if v_closed is null or v_closed <= p_since then
        return query
        select coalesce(o.plan, ''), case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', l.created_at, v_origin)
                else date_trunc(p_bucket, l.created_at, p_zone) end, l.feature_used, l.token_type,
            count(*), sum(l.tokens_deducted)::bigint, sum(l.tokens_waived)::bigint, 0::bigint
        from public.ai_token_usage_log l
        left join public.organizations o on o.id = l.organization_id
        where l.created_at >= p_since and l.created_at < p_until
            and (p_plan is null or coalesce(o.plan, '') = p_plan)
        group by 1, 2, 3, 4
        union all
        select coalesce(o.plan, ''), case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', e.created_at, v_origin)
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
                when p_bucket = '24 hours' then date_bin('24 hours', created_at, v_origin)
                else date_trunc(p_bucket, created_at, p_zone) end as start,
                feature_used as feature, token_type, count(*) as uses,
                sum(tokens_deducted) as tokens, sum(tokens_waived) as waived, 0 as refunded
            from public.ai_token_usage_log
            where organization_id = m.organization_id
                and created_at >= p_since and created_at < least(p_until, v_closed)
            group by 1, 2, 3
            union all
            select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', created_at, v_origin)
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
