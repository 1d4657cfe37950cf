-- What another cost of a feature would have done since a midnight (UTC) 30 days ago. What a wallet was
-- charged more is carried along its entries within a period: after `units` for `tokens` a cost passes
-- what is left, a balance, if cost * units - tokens > balance. So the lowest whole cost at which each
-- wallet would have run out is kept, and answers for every cost.

-- Of each wallet with an entry from p_from to p_to and each feature of it, or one: as it stands at p_to.
-- It goes on from what is kept at p_from; where that is the beginning, from nothing. Rows as in
-- ai_token_usage_costs.
create function tokenlib.cost_states(p_from timestamptz, p_to timestamptz, p_feature text)
returns table (organization_id uuid, token_type text, feature text, uses bigint, units bigint,
    tokens bigint, period_units bigint, period_tokens bigint, lowest bigint, runs_out_from bigint)
language plpgsql stable rows 1000 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_kept boolean := coalesce((select windows_to = p_from from public.ai_token_usage_closed), false);
begin
    return query
    with entries as (
        select organization_id, token_type, coalesce(number, 0) as position, 0 as event,
            created_at, id, 0 as turn, feature_used as feature,
            -- What cost nothing stays free.
            greatest(tokens_deducted, 0) as tokens,
            case when tokens_deducted > 0 then units else 0 end as units,
            greatest(remaining_balance, 0) as balance
        from public.ai_token_usage_log
        where created_at >= p_from and created_at < p_to
            and (v_kept or p_feature is null or (organization_id, token_type) in (
                select organization_id, token_type from public.ai_token_usage_log
                where created_at >= p_from and created_at < p_to and feature_used = p_feature))
        union all
        -- A refresh begins a period; with any event a wallet may be without a limit from now on.
        select organization_id, token_type, after_log, 1, created_at, id,
            case when kind = 'refresh' then 1 else 0 end, null, null, null, null
        from public.ai_token_events
        where v_kept and created_at >= p_from and created_at < p_to
        union all
        select organization_id, token_type, after_log, 1, created_at, id, 1, null, null, null, null
        from public.ai_token_events
        where not v_kept and kind = 'refresh' and created_at >= p_from and created_at < p_to
            and (organization_id, token_type) in (
                select organization_id, token_type from public.ai_token_usage_log
                where created_at >= p_from and created_at < p_to
                    and (p_feature is null or feature_used = p_feature))
    ), ordered as materialized (
        -- From one entry to the next a wallet is nearer to its end, if its balance fell by what was
        -- charged: so only the entries before it did not are looked at.
        select organization_id, token_type, feature, units, tokens, balance,
            row_number() over of_wallet as place, sum(turn) over of_wallet as period,
            sum(turn) over (partition by organization_id, token_type) as last_period,
            event = 0 and coalesce(lead(balance + tokens) over of_wallet > balance, true)
                as last_of_fall
        from entries
        window of_wallet as (partition by organization_id, token_type
            order by position, event, created_at, id)
    ), kept as materialized (
        select c.*, w.last_period
        from (select distinct organization_id, token_type, last_period from ordered where v_kept) as w
        join public.ai_token_usage_costs c
            on c.organization_id = w.organization_id and c.token_type = w.token_type
        where v_kept and (p_feature is null or c.feature = p_feature)
    ), pairs as (
        select organization_id, token_type, feature, last_period
        from ordered
        where feature is not null and (p_feature is null or feature = p_feature)
        group by 1, 2, 3, 4
        union
        select organization_id, token_type, feature, last_period from kept
    ), marks as (
        select organization_id, token_type, feature, place, period, last_period, 1 as uses, units,
            tokens, units as carried_units, tokens as carried_tokens, null::bigint as balance,
            null::bigint as lowest
        from ordered
        where feature is not null and (p_feature is null or feature = p_feature)
        union all
        select o.organization_id, o.token_type, p.feature, o.place, o.period, o.last_period, 0, 0,
            0, 0, 0, o.balance, null
        from ordered o
        join pairs p on p.organization_id = o.organization_id and p.token_type = o.token_type
        where o.last_of_fall
        union all
        select organization_id, token_type, feature, 0, 0, last_period, uses, units, tokens,
            period_units, period_tokens, null, lowest
        from kept
    ), summed as (
        select *, sum(carried_units) over of_period as so_many, sum(carried_tokens) over of_period as so_much
        from marks
        window of_period as (partition by organization_id, token_type, feature, period
            order by place) -- with its peers: a charge and the look at it
    ), figures as (
        select organization_id, token_type, feature, sum(uses)::bigint as uses,
            sum(units)::bigint as units, sum(tokens)::bigint as tokens,
            coalesce(sum(carried_units) filter (where period = last_period), 0)::bigint
                as period_units,
            coalesce(sum(carried_tokens) filter (where period = last_period), 0)::bigint
                as period_tokens,
            least(min(lowest), min(div(balance + so_much, nullif(so_many, 0)) + 1)::bigint) as lowest
        from summed
        group by 1, 2, 3
    )
    select f.*, case when a.allowance is not null or a.plan is null then f.lowest end
    from figures f
    left join public.ai_tokens a
        on a.organization_id = f.organization_id and a.token_type = f.token_type;
end
$$;

-- Keeps it as it is at p_to; p_from null, and once a day: anew, since another day is the first.
create function tokenlib.fold_costs(p_from timestamptz, p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
begin
    if date_bin('24 hours', p_from, '2000-01-01 00:00Z')
        = date_bin('24 hours', p_to, '2000-01-01 00:00Z') then
        with states as materialized (
            select * from tokenlib.cost_states(p_from, p_to, null)
        ), kept as (
            insert into public.ai_token_usage_costs as c
            select * from states
            on conflict (organization_id, token_type, feature) do update set uses = excluded.uses,
                units = excluded.units, tokens = excluded.tokens,
                period_units = excluded.period_units, period_tokens = excluded.period_tokens,
                lowest = excluded.lowest, runs_out_from = excluded.runs_out_from
            where c is distinct from excluded
        ), moved as materialized (
            -- In each organization: what was kept of it, and what stands instead.
            select c.organization_id, c.feature, c.units, c.tokens, c.runs_out_from, true as before,
                (c.organization_id, c.token_type, c.feature) not in (
                    select organization_id, token_type, feature from states) as after
            from (select distinct organization_id, feature from states) as o
            cross join lateral (
                select * from public.ai_token_usage_costs
                where organization_id = o.organization_id and feature = o.feature offset 0) as c
            union all
            select organization_id, feature, units, tokens, runs_out_from, false, true from states
        ), changes as (
            select -1 as sign, feature, coalesce(min(runs_out_from), 0) as runs_out_from,
                sum(units) as units, sum(tokens) as tokens
            from moved where before group by organization_id, feature
            union all
            select 1, feature, coalesce(min(runs_out_from), 0), sum(units), sum(tokens)
            from moved where after group by organization_id, feature
        )
        insert into public.ai_token_usage_cost_sums as s
            (feature, runs_out_from, organizations, units, tokens)
        select feature, runs_out_from, sum(sign), sum(sign * units), sum(sign * tokens)
        from changes
        group by 1, 2
        on conflict (feature, runs_out_from) do update
            set organizations = s.organizations + excluded.organizations,
                units = s.units + excluded.units, tokens = s.tokens + excluded.tokens;
        delete from public.ai_token_usage_cost_sums where organizations = 0;
    else
        delete from public.ai_token_usage_costs;
        delete from public.ai_token_usage_cost_sums;
        insert into public.ai_token_usage_costs
        select * from tokenlib.cost_states(
            date_bin('24 hours', p_to, '2000-01-01 00:00Z') - interval '720 hours', p_to, null);
        insert into public.ai_token_usage_cost_sums
        select feature, runs_out_from, count(*), sum(units), sum(tokens)
        from (
            select feature, coalesce(min(runs_out_from), 0) as runs_out_from, sum(units) as units,
                sum(tokens) as tokens
            from public.ai_token_usage_costs
            group by organization_id, feature) as each
        group by 1, 2;
    end if;
end
$$;

-- The first organizations of those who used a feature, in the order of the wallet that would run out
-- at the lowest cost; and all of them together. Who has an entry since the closing is computed anew.
create function tokenlib.cost_effects(p_feature text, p_cost bigint, p_limit bigint)
returns table (since timestamptz, place bigint, organization_id uuid, uses bigint, units bigint,
    tokens bigint, runs_out_from bigint, used_by bigint, run_outs bigint, all_units bigint,
    all_tokens bigint)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := tokenlib.clock();
    v_to constant timestamptz := tokenlib.wallets_closed_to(v_now);
    v_since constant timestamptz := date_bin('24 hours', coalesce(v_to, v_now),
        '2000-01-01 00:00Z') - interval '720 hours';
begin
    return query
    with moved as materialized (
        select * from tokenlib.cost_states(coalesce(v_to, v_since), v_now, p_feature)
    ), first as (
        (select organization_id, token_type, units, runs_out_from
        from public.ai_token_usage_costs c
        where v_to is not null and feature = p_feature
            and (organization_id, token_type) not in (select organization_id, token_type from moved)
        order by runs_out_from, units desc, organization_id, token_type
        limit p_limit * (select count(*) from public.ai_token_types)) -- each of an organization
        union all
        select organization_id, token_type, units, runs_out_from from moved
    ), page as (
        select organization_id, min(rank) as place
        from (select organization_id, row_number() over (
            order by runs_out_from, units desc, organization_id, token_type) as rank from first) as r
        group by 1
        order by 2
        limit p_limit
    ), wallets as materialized (
        -- Of the page and of who moved: what was kept, and what stands instead.
        select c.organization_id, c.uses, c.units, c.tokens, c.runs_out_from, true as before,
            (c.organization_id, c.token_type) not in (
                select organization_id, token_type from moved) as after
        from (select organization_id from page union select organization_id from moved) as o
        cross join lateral (
            select * from public.ai_token_usage_costs
            where v_to is not null and organization_id = o.organization_id
                and feature = p_feature offset 0) as c
        union all
        select organization_id, uses, units, tokens, runs_out_from, false, true from moved
    ), effects as materialized (
        select organization_id, sum(uses)::bigint as uses, sum(units)::bigint as units,
            sum(tokens)::bigint as tokens, min(runs_out_from) as runs_out_from
        from wallets where after group by 1
    ), altogether as (
        select coalesce(sum(organizations), 0)::bigint as used_by,
            coalesce(sum(organizations) filter (where runs_out_from <= p_cost), 0)::bigint as run_outs,
            sum(units)::bigint as units, sum(tokens)::bigint as tokens
        from (
            select nullif(runs_out_from, 0) as runs_out_from, organizations, units, tokens
            from public.ai_token_usage_cost_sums where v_to is not null and feature = p_feature
            union all
            select min(runs_out_from), -1, -sum(units), -sum(tokens)
            from wallets where before group by organization_id
            union all
            select runs_out_from, 1, units, tokens from effects) as each
    )
    select c.since, p.place, p.organization_id, e.uses, e.units, e.tokens, e.runs_out_from,
        t.used_by, t.run_outs, t.units, t.tokens
    from (values (v_since)) as c (since)
    left join altogether t on t.used_by > 0
    left join page p on true
    left join effects e on e.organization_id = p.organization_id;
end
$$;
