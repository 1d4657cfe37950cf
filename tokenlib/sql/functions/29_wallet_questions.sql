-- Questions about every wallet and every refusal, answered from what the closing keeps and from what
-- happened since. They run as who asks.

create function tokenlib.refused_between(p_since timestamptz, p_until timestamptz) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_lo timestamptz;
    v_hi timestamptz;
    v_count bigint := 0;
begin
    select lo, hi into v_lo, v_hi from tokenlib.usage_closed(p_since, p_until, null);
    if v_lo < v_hi then
        v_count := coalesce((select refusals from public.ai_token_refusal_sums
                where at <= v_hi order by at desc limit 1), 0)
            - coalesce((select refusals from public.ai_token_refusal_sums
                where at <= v_lo order by at desc limit 1), 0);
    else
        v_lo := p_until;
        v_hi := p_until;
    end if;
    if p_since < v_lo then
        v_count := v_count + (select coalesce(sum(count), 0) from public.ai_token_refusals
            where last_at >= p_since and last_at < v_lo and data ->> 'mode' is null);
    end if;
    if v_hi < p_until then
        v_count := v_count + (select coalesce(sum(count), 0) from public.ai_token_refusals
            where last_at >= v_hi and last_at < p_until and data ->> 'mode' is null);
    end if;
    return v_count;
end
$$;

-- Up to when wallets are kept as they stood; null: they are not, or so long ago that each is looked at.
create function tokenlib.wallets_closed_to(p_now timestamptz) returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp as $$
    select windows_to from public.ai_token_usage_closed
    where windows_to <= p_now and windows_to > p_now - interval '24 hours'
$$;

-- The wallets that run out first within p_within at the pace of the last 7 days, and how many do. More
-- than the limit where several are as soon and as fast: names decide then. With p_ties, where several are
-- as soon, and not how many.
create function tokenlib.run_outs(p_within interval, p_limit bigint, p_ties boolean)
returns table (organization_id uuid, token_type text, tokens numeric, run_out_at timestamptz,
    total bigint)
language plpgsql stable rows 50 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := tokenlib.clock();
    v_to timestamptz := tokenlib.wallets_closed_to(v_now);
begin
    if p_within > interval '365 days' then
        v_to := null; -- more than is kept
    end if;
    return query
    with touched as materialized (
        select * from tokenlib.wallets_moved(v_to, v_now) where v_to is not null
    ), looked as materialized (
        -- Who was only charged less in a week lasts longer than it did.
        select t.organization_id, t.token_type, coalesce(p.tokens, 0) as tokens
        from touched t
        left join lateral (
            select tokens, run_out_in from public.ai_token_usage_pace
            where organization_id = t.organization_id and token_type = t.token_type offset 0) as p
            on true
        where t.entered or p.run_out_in <= p_within
    ), edges as (
        select organization_id, token_type, tokens_deducted as tokens
        from public.ai_token_usage_log
        where created_at >= coalesce(v_to, v_now - interval '168 hours') and created_at < v_now
        union all
        select organization_id, token_type, -tokens_deducted
        from public.ai_token_usage_log
        where created_at >= v_to - interval '168 hours'
            and created_at < v_now - interval '168 hours'
        union all
        select * from looked
    ), moved as materialized (
        select a.organization_id, a.token_type, e.tokens, r.at as run_out_at
        from (
            select organization_id, token_type, sum(tokens) as tokens from edges
            where v_to is null
                or (organization_id, token_type) in (select organization_id, token_type from looked)
            group by 1, 2
            having sum(tokens) > 0) as e
        join public.ai_tokens a
            on a.organization_id = e.organization_id and a.token_type = e.token_type
        -- Compared before it is computed: a slow pace would overflow the calendar.
        cross join lateral (select case
            when a.balance::numeric * 604800 < e.tokens * extract(epoch from p_within)
            then v_now + (a.balance * 7 / e.tokens)::float8 * interval '1 day' end as at) as r
        where (a.allowance is not null or a.plan is null) and r.at is not null
            and (a.token_type = 'shared' or r.at < a.refresh_date)
    ), kept as not materialized (
        select organization_id, token_type, tokens::numeric, run_out_in
        from public.ai_token_usage_pace p
        where v_to is not null and run_out_in <= p_within
            and balance::numeric * 604800 < tokens * extract(epoch from p_within)
            and (token_type = 'shared' or v_now + run_out_in < refresh_date)
            and (organization_id, token_type) not in (
                select organization_id, token_type from touched)
    ), first as (
        select * from moved
        union all
        (select organization_id, token_type, tokens, v_now + run_out_in from (
            select * from kept
            order by run_out_in, case when not p_ties then tokens end desc
            fetch first (p_limit) rows with ties) as k)
    )
    select f.*, case when not p_ties
        then (select count(*) from moved) + (select count(*) from kept) end
    from first f;
end
$$;

-- A page of all organizations, in an order that their wallets decide, then by name. Only those are
-- named and sorted whose key is up to that of the last on the page; what is kept of an organization that
-- is gone counts for that too, so then it goes on.
create function tokenlib.organizations_by_wallets(
    p_sort text, p_descending boolean, p_limit bigint, p_offset bigint
) returns uuid[]
language plpgsql stable set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
declare
    v_now constant timestamptz := tokenlib.clock();
    v_to constant timestamptz := tokenlib.wallets_closed_to(v_now);
    v_moved constant uuid[] := array(select m.organization_id
        from tokenlib.organizations_moved(v_to, v_now) as m);
    v_sign constant integer := case when p_descending then -1 else 1 end;
    v_more bigint := p_offset + p_limit + cardinality(v_moved);
    v_last numeric;
    v_ids uuid[];
begin
    loop
        select k.key into v_last
        from (select v_sign * case p_sort when 'balance' then s.balance when 'level' then s.rank
                    when 'total_used' then s.total_used
                    when 'refresh_date' then extract(epoch from s.refresh_date)
                    when 'last_used_at' then extract(epoch from s.last_used_at) end as key
            from public.ai_token_wallet_sums s) as k
        order by k.key nulls last offset v_more - 1 limit 1;
        v_ids := array(
            select o.id
            from public.organizations o
            left join (
                select h.organization_id, v_sign * case p_sort when 'balance' then h.balance
                    when 'level' then h.rank when 'total_used' then h.total_used
                    when 'refresh_date' then extract(epoch from h.refresh_date)
                    when 'last_used_at' then extract(epoch from h.last_used_at) end as key
                from (
                    select * from public.ai_token_wallet_sums
                    where organization_id not in (select unnest(v_moved))
                    union all
                    select * from tokenlib.sum_wallets(v_moved)) as h) as k
                on k.organization_id = o.id
            where v_last is null or k.key <= v_last
            order by k.key nulls last, o.name, o.id
            limit p_offset + p_limit);
        exit when v_last is null or cardinality(v_ids) = p_offset + p_limit;
        v_more := 4 * v_more;
    end loop;
    return v_ids[p_offset + 1:];
end
$$;

-- Organizations as a list shows them, in the order of their ids as given.
create function tokenlib.organization_rows(p_ids uuid[])
returns table (place bigint, organization_id uuid, name text, plan text, status text, mode text,
    level text, members bigint, balance bigint, reserved bigint, total_used bigint,
    total_allocated bigint, unlimited boolean, refresh_date timestamptz, refresh_due boolean,
    last_used_at timestamptz)
language plpgsql stable rows 50 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
begin
    return query
    with clock as materialized (select tokenlib.clock() as now)
    select p.place, o.id, o.name, o.plan, coalesce(s.status, 'active'),
        case when s.mode_until is null or s.mode_until > c.now then s.mode end,
        coalesce((array['red', 'yellow', 'green'])[w.rank], 'none'),
        (select count(*) from public.user_profiles u where u.organization_id = o.id),
        coalesce(w.balance, 0), coalesce(w.reserved, 0), coalesce(w.total_used, 0),
        coalesce(w.total_allocated, 0), coalesce(w.unlimited, false), w.refresh_date,
        coalesce(w.refresh_due, false), w.last_used_at
    from unnest(p_ids) with ordinality as p (id, place)
    join public.organizations o on o.id = p.id
    cross join clock c
    left join public.ai_token_organization_settings s on s.organization_id = o.id
    left join lateral (
        select sum(a.balance)::bigint as balance, sum(a.reserved)::bigint as reserved,
            sum(a.total_used)::bigint as total_used,
            sum(a.total_allocated)::bigint as total_allocated,
            bool_or(a.allowance is null and a.plan is not null) as unlimited,
            min(a.refresh_date) as refresh_date, bool_or(a.refresh_date <= c.now) as refresh_due,
            max(a.last_used_at) as last_used_at,
            -- The thresholds of domain.level; the worst wallet speaks.
            min(case when a.allowance is null and a.plan is not null then 3
                when a.total_allocated <= 0 then null
                when a.balance * 2 > a.total_allocated then 3
                when a.balance * 5 >= a.total_allocated then 2
                else 1 end) filter (where a.token_type <> 'shared') as rank
        from public.ai_tokens a
        where a.organization_id = o.id) as w on true
    order by p.place;
end
$$;
