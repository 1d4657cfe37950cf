-- What the wallets of an organization hold together and when each would run out, kept by the closing of
-- usage. A wallet changes with an entry and never without one: who has none since the closing stands as
-- it was kept, and everybody else is computed anew, exactly.

-- Wallets that may differ from what was kept at p_from: by charges that left the week which ended then and
-- now ends at p_to; or (`entered`) by an entry since, or by books that nobody has opened.
create function tokenlib.wallets_moved(p_from timestamptz, p_to timestamptz)
returns table (organization_id uuid, token_type text, entered boolean)
language plpgsql stable rows 500 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
begin
    return query
    select m.organization_id, m.token_type, bool_or(m.entered)
    from (
        select l.organization_id, l.token_type, true as entered from public.ai_token_usage_log l
        where l.created_at >= p_from
        union all
        select e.organization_id, e.token_type, true from public.ai_token_events e
        where e.created_at >= p_from
        union all
        select l.organization_id, l.token_type, false from public.ai_token_usage_log l
        where l.created_at >= p_from - interval '168 hours'
            and l.created_at < p_to - interval '168 hours'
        union all
        select a.organization_id, a.token_type, true from public.ai_tokens a
        where a.due_at = '-infinity') as m
    group by 1, 2;
end
$$;

-- The organizations of these; p_from null: everybody.
create function tokenlib.organizations_moved(p_from timestamptz, p_to timestamptz)
returns table (organization_id uuid)
language plpgsql stable rows 500 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
begin
    if p_from is null then
        return query select distinct a.organization_id from public.ai_tokens a;
    else
        return query select distinct w.organization_id from tokenlib.wallets_moved(p_from, p_to) as w;
    end if;
end
$$;

-- Of some organizations, or of everybody; the thresholds of domain.level, the worst wallet speaks. Rows as
-- in ai_token_wallet_sums, column by column: on Citus that table is on one node, and this on all.
create function tokenlib.sum_wallets(p_organizations uuid[])
returns table (organization_id uuid, balance bigint, total_used bigint, refresh_date timestamptz,
    last_used_at timestamptz, rank smallint, near_80 boolean, near_100 boolean, least_plan text,
    most_plan text)
language plpgsql stable rows 500 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
    return query
    select a.organization_id, sum(a.balance)::bigint, sum(a.total_used)::bigint,
        min(a.refresh_date), max(a.last_used_at),
        min(case when a.allowance is null and a.plan is not null then 3
            when a.total_allocated <= 0 then null
            when a.balance * 2 > a.total_allocated then 3
            when a.balance * 5 >= a.total_allocated then 2
            else 1 end) filter (where a.token_type <> 'shared')::smallint,
        bool_or(a.total_allocated > 0 and a.total_used * 5 >= a.total_allocated * 4
            and a.total_used < a.total_allocated
            and not (a.allowance is null and a.plan is not null)),
        bool_or(a.total_allocated > 0 and a.total_used >= a.total_allocated
            and not (a.allowance is null and a.plan is not null)),
        min(a.plan) filter (where a.token_type <> 'shared'),
        max(a.plan) filter (where a.token_type <> 'shared')
    from public.ai_tokens a
    where p_organizations is null or a.organization_id = any (p_organizations)
    group by a.organization_id;
end
$$;

-- How long a balance lasts, where so much was charged in 7 days; null beyond a year.
create function tokenlib.run_out_in(p_balance bigint, p_tokens numeric) returns interval
language sql immutable set search_path = pg_catalog, pg_temp as $$
    -- Compared before it is computed: a slow pace would overflow the calendar.
    select case when p_tokens > 0 and p_balance::numeric * 604800
        < p_tokens * extract(epoch from interval '365 days')
        then (p_balance * 7 / p_tokens)::float8 * interval '1 day' end
$$;

-- Keeps it as it is at p_to; p_from null, and once a day: of everybody.
create function tokenlib.fold_wallets(p_from timestamptz, p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
declare
    v_ids uuid[];
begin
    if date_bin('24 hours', p_from, '2000-01-01 00:00Z')
        = date_bin('24 hours', p_to, '2000-01-01 00:00Z') then
        v_ids := array(select organization_id from tokenlib.organizations_moved(p_from, p_to));
    end if;
    insert into public.ai_token_wallet_sums as s
    select * from tokenlib.sum_wallets(v_ids)
    on conflict (organization_id) do update set balance = excluded.balance,
        total_used = excluded.total_used, refresh_date = excluded.refresh_date,
        last_used_at = excluded.last_used_at, rank = excluded.rank, near_80 = excluded.near_80,
        near_100 = excluded.near_100, least_plan = excluded.least_plan,
        most_plan = excluded.most_plan
    where s is distinct from excluded;
    update public.ai_token_usage_pace p
    set balance = w.balance, refresh_date = w.refresh_date, run_out_in = w.run_out_in
    from (
        select a.organization_id, a.token_type, a.balance, a.refresh_date,
            case when a.allowance is not null or a.plan is null
                then tokenlib.run_out_in(a.balance, u.tokens) end as run_out_in
        from public.ai_token_usage_pace u
        join public.ai_tokens a
            on a.organization_id = u.organization_id and a.token_type = u.token_type
        where v_ids is null or u.organization_id = any (v_ids)) as w
    where p.organization_id = w.organization_id and p.token_type = w.token_type
        and (p.balance, p.refresh_date, p.run_out_in)
            is distinct from (w.balance, w.refresh_date, w.run_out_in);
end
$$;

-- Refusals of everybody since the beginning, as it stood at `at`. A row counts at its last_at, which
-- lies in its minute; what the switch let through does not.
create function tokenlib.fold_refusals(p_from timestamptz, p_to timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    insert into public.ai_token_refusal_sums (at, refusals)
    select f.at, coalesce((select b.refusals from public.ai_token_refusal_sums b
            where b.at <= p_from order by b.at desc limit 1), 0)
        + sum(f.refusals) over (order by f.at)
    from (
        select date_bin('5 minutes', last_at, '2000-01-01 00:00Z') + interval '5 minutes' as at,
            sum(count)::bigint as refusals
        from public.ai_token_refusals
        where last_at >= p_from and last_at < p_to and data ->> 'mode' is null
        group by 1
    ) as f
$$;
