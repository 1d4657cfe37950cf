-- The rollups of the log, closed step by step (five minutes) while charges are being written, with
-- nothing added to a charge. A charge has its transaction id before it reads the clock (it locks its
-- wallet first), and created_at is not before that. So: read the clock, then take an id; every transaction
-- that may still write before that time has an id below it. Once a later snapshot finds all of those
-- over, the time before is closed.

-- What an organization is kept under as a whole: as a person would be, of the id that stands for all.
create function tokenlib.whole_scope(p_organization uuid) returns uuid
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select md5(p_organization::text || '00000000-0000-0000-0000-000000000000')::uuid
$$;

-- The organizations that scopes of a kind (see usage_steps) speak of; null: of all.
create function tokenlib.scoped_organizations(p_kind text, p_scopes uuid[]) returns uuid[]
language sql stable set search_path = pg_catalog, pg_temp as $$
    select case p_kind when 'organization' then p_scopes when 'whole' then array(
        select organization_id from public.ai_token_usage_kept where scope = any (p_scopes)) end
$$;

-- What lies from p_from to p_to by scope, feature, wallet and step. p_kind says what the scopes are: all
-- (one, the zero UUID), plan (every one, as counted), organization, whole or user (those of p_scopes): a
-- whole is an organization without features and wallets.
create function tokenlib.usage_steps(
    p_kind text, p_scopes uuid[], p_step interval, p_from timestamptz, p_to timestamptz
) returns table (scope uuid, feature text, token_type text, start timestamptz, uses bigint,
    tokens bigint, waived bigint, refunded bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    v_organizations constant uuid[] := tokenlib.scoped_organizations(p_kind, p_scopes);
begin
    if p_kind = 'user' then
        return query
        select e.scope, '', '', e.start, sum(e.uses)::bigint, sum(e.tokens)::bigint,
            sum(e.waived)::bigint, sum(e.refunded)::bigint
        from (
            select k.scope, date_bin(p_step, l.created_at, '2000-01-01 00:00Z') as start,
                count(*) as uses, sum(l.tokens_deducted) as tokens, sum(l.tokens_waived) as waived,
                0 as refunded
            from public.ai_token_usage_kept k
            join public.ai_token_usage_log l
                on l.organization_id = k.organization_id and l.user_id = k.user_id
            where k.scope = any (p_scopes) and l.created_at >= p_from and l.created_at < p_to
            group by 1, 2
            union all
            select k.scope, date_bin(p_step, e.created_at, '2000-01-01 00:00Z'), 0, 0, 0,
                sum(e.balance_change)
            from public.ai_token_usage_kept k
            join public.ai_token_events e on e.organization_id = k.organization_id
                and e.kind = 'refund' and e.data ->> 'user_id' = k.user_id::text
            where k.scope = any (p_scopes) and e.created_at >= p_from and e.created_at < p_to
            group by 1, 2
        ) as e
        group by 1, 4;
        return;
    end if;
    return query
    select case p_kind when 'all' then '00000000-0000-0000-0000-000000000000'
            when 'plan' then md5(e.plan)::uuid
            when 'whole' then tokenlib.whole_scope(e.organization_id) else e.organization_id end,
        e.feature, e.token_type, e.start, sum(e.uses)::bigint, sum(e.tokens)::bigint,
        sum(e.waived)::bigint, sum(e.refunded)::bigint
    from (
        select case when p_kind = 'plan' then n.plan end as plan,
            case when p_kind in ('organization', 'whole') then l.organization_id end
                as organization_id,
            case when p_kind = 'whole' then '' else l.feature_used end as feature,
            case when p_kind = 'whole' then '' else l.token_type end as token_type,
            date_bin(p_step, l.created_at, '2000-01-01 00:00Z') as start,
            count(*) as uses, sum(l.tokens_deducted) as tokens, sum(l.tokens_waived) as waived,
            0 as refunded
        from public.ai_token_usage_log l
        left join public.ai_token_usage_seen n
            on p_kind = 'plan' and n.organization_id = l.organization_id
        where l.created_at >= p_from and l.created_at < p_to
            and (v_organizations is null or l.organization_id = any (v_organizations))
        group by 1, 2, 3, 4, 5
        union all
        select case when p_kind = 'plan' then n.plan end,
            case when p_kind in ('organization', 'whole') then e.organization_id end,
            case when p_kind = 'whole' then '' else coalesce(e.data ->> 'feature', '') end,
            case when p_kind = 'whole' then '' else e.token_type end,
            date_bin(p_step, e.created_at, '2000-01-01 00:00Z'), 0, 0, 0, sum(e.balance_change)
        from public.ai_token_events e
        left join public.ai_token_usage_seen n
            on p_kind = 'plan' and n.organization_id = e.organization_id
        where e.kind = 'refund' and e.created_at >= p_from and e.created_at < p_to
            and (v_organizations is null or e.organization_id = any (v_organizations))
        group by 1, 2, 3, 4, 5
    ) as e
    group by 1, 2, 3, 4;
end
$$;

-- Folds what lies from p_from to p_to into the sums; both are on the grid of p_step. What stood at p_from
-- is the base.
create function tokenlib.fold_sums(
    p_kind text, p_scopes uuid[], p_step interval, p_from timestamptz, p_to timestamptz
) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    insert into public.ai_token_usage_sums
        (organization_id, feature, token_type, at, uses, tokens, waived, refunded)
    select f.scope, f.feature, f.token_type, f.start + p_step,
        coalesce(b.uses, 0) + sum(f.uses) over before,
        coalesce(b.tokens, 0) + sum(f.tokens) over before,
        coalesce(b.waived, 0) + sum(f.waived) over before,
        coalesce(b.refunded, 0) + sum(f.refunded) over before
    from tokenlib.usage_steps(p_kind, p_scopes, p_step, p_from, p_to) as f
    left join lateral (
        select * from public.ai_token_usage_sums s
        where s.organization_id = f.scope and s.feature = f.feature
            and s.token_type = f.token_type and s.at <= p_from
        order by s.at desc limit 1) as b on true
    window before as (partition by f.scope, f.feature, f.token_type order by f.start)
$$;

-- Who had 10,000 charges in 30 days as an organization, or 1,000 as a person, is kept from then on; their
-- past is folded once. Such an organization is kept as a whole, too: a list of many has no use for features.
create function tokenlib.fold_kept(p_from timestamptz, p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_all constant uuid := '00000000-0000-0000-0000-000000000000';
    v_kind text;
    v_step interval;
    v_from timestamptz;
    v_to timestamptz;
    v_ids uuid[];
begin
    for v_kind, v_step in values ('organization', interval '15 minutes'), ('whole', '15 minutes'),
        ('user', '1 hour')
    loop
        v_to := date_bin(v_step, p_to, '2000-01-01 00:00Z');
        continue when v_to <= p_from;
        for v_from, v_ids in
            select closed_to, array_agg(scope) from public.ai_token_usage_kept
            where plan is null and closed_to < v_to and v_kind = case when user_id is null
                then 'organization' when user_id = c_all then 'whole' else 'user' end
            group by closed_to
        loop
            perform tokenlib.fold_sums(v_kind, v_ids, v_step, v_from, v_to);
            update public.ai_token_usage_kept set closed_to = v_to where scope = any (v_ids);
        end loop;
        with found as (
            insert into public.ai_token_usage_kept (scope, organization_id, user_id, closed_to)
            select case v_kind when 'organization' then organization_id
                    else md5(organization_id::text || user_id)::uuid end,
                organization_id, case when v_kind <> 'organization' then user_id end, v_to
            from public.ai_token_usage_windows
            where days = 30 and case when v_kind <> 'user' then
                    user_id = c_all and uses >= 10000
                else user_id not in (c_all, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
                    and uses >= 1000 end
            on conflict do nothing
            returning scope)
        select array_agg(scope) into v_ids from found;
        if v_ids is not null then
            perform tokenlib.fold_sums(v_kind, v_ids, v_step, '-infinity', v_to);
        end if;
    end loop;
end
$$;

-- Organizations whose use the sums count to another plan than they have now. If p_late only rows that
-- were written since nobody's differed are compared: unless one is missing. What is older than two
-- billion transactions has no age.
create function tokenlib.plans_changed(p_late boolean)
returns table (organization_id uuid, counted text, plan text)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_age integer;
    v_known bigint;
    v_all bigint;
    v_late uuid[];
begin
    select age(plans_xid::xid), plans_organizations into v_age, v_known
    from public.ai_token_usage_closed;
    if p_late and v_age >= 0 then
        select count(*), array_agg(id) filter (where age(xmin) <= v_age or age(xmin) < 0)
        into v_all, v_late
        from public.organizations;
        if v_all >= v_known then
            return query
            select n.organization_id, n.plan, coalesce(o.plan, '')
            from unnest(v_late) as id
            join public.organizations o using (id)
            join public.ai_token_usage_seen n on n.organization_id = id
            where n.plan <> coalesce(o.plan, '');
            return;
        end if;
    end if;
    return query
    select n.organization_id, n.plan, coalesce(o.plan, '')
    from public.ai_token_usage_seen n
    left join public.organizations o on o.id = n.organization_id
    where n.plan <> coalesce(o.plan, '');
end
$$;

-- By plan. What an organization used before it changed its plan follows it there at midnight, or at once
-- where that is much, since until then it is read row by row: then all plans are made anew, as far as
-- nothing is archived.
create function tokenlib.fold_plans(p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_from timestamptz := (select min(closed_to) from public.ai_token_usage_kept
        where plan is not null);
    v_xid xid8 := pg_snapshot_xmin(pg_current_snapshot()); -- before anything is looked at
    v_moved uuid[];
begin
    if v_from >= p_to then
        return;
    end if;
    v_moved := array(select organization_id from tokenlib.plans_changed(false));
    if v_moved <> '{}' and (date_bin('24 hours', v_from, '2000-01-01 00:00Z')
            < date_bin('24 hours', p_to, '2000-01-01 00:00Z')
        or (select sum(uses) from public.ai_token_usage_windows
            where organization_id = any (v_moved) and days = 90
                and user_id = '00000000-0000-0000-0000-000000000000') > 10000
        -- No row of these is found late.
        or (select count(*) from public.organizations where id = any (v_moved))
            < cardinality(v_moved)) then
        v_from := tokenlib.usage_archived_to();
        v_from := case when v_from < p_to then v_from end;
        delete from public.ai_token_usage_sums s using public.ai_token_usage_kept k
        where s.organization_id = k.scope and k.plan is not null
            and (v_from is null or s.at > v_from);
        update public.ai_token_usage_seen n set plan = m.plan
        from tokenlib.plans_changed(false) as m where m.organization_id = n.organization_id;
        v_moved := '{}';
    end if;
    if v_moved = '{}' then
        update public.ai_token_usage_closed set plans_xid = v_xid,
            plans_organizations = (select count(*) from public.organizations);
    end if;
    perform tokenlib.fold_sums('plan', null, '15 minutes', coalesce(v_from, '-infinity'), p_to);
    insert into public.ai_token_usage_kept (scope, plan, closed_to)
    select md5(plan)::uuid, plan, p_to
    from (select plan from public.ai_token_usage_seen union select plan from public.ai_token_plans
        union select '') as plans
    on conflict (scope) do update set closed_to = excluded.closed_to;
end
$$;

-- Of 17 days before p_to: the movers of a week look back over 15.
create function tokenlib.fold_days(p_from timestamptz, p_to timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    insert into public.ai_token_usage_days as d (organization_id, day, tokens, first_at, last_at)
    select organization_id, date_bin('24 hours', created_at, '2000-01-01 00:00Z'),
        sum(tokens_deducted), min(created_at), max(created_at)
    from public.ai_token_usage_log
    where created_at >= p_from and created_at < p_to
    group by 1, 2
    on conflict (organization_id, day) do update set tokens = d.tokens + excluded.tokens,
        last_at = excluded.last_at;
    -- At a midnight, since it reads the whole table.
    delete from public.ai_token_usage_days
    where day < date_bin('24 hours', p_to - interval '408 hours', '2000-01-01 00:00Z')
        and date_bin('24 hours', p_from, '2000-01-01 00:00Z')
            < date_bin('24 hours', p_to, '2000-01-01 00:00Z');
$$;

-- Closes what can be closed, at most p_most of time in one call; `behind` says that more is ready.
-- Nothing where somebody else is at it. Whoever calls it again goes on where this ended.
create function tokenlib.close_usage(p_most interval, out closed_to timestamptz, out behind boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set timezone = 'UTC' set work_mem = '64MB' as $$
declare
    c public.ai_token_usage_closed;
    v_from timestamptz;
    v_ready timestamptz;
    v_next timestamptz;
    v_id xid8;
begin
    if current_setting('transaction_isolation') <> 'read committed'
        or pg_current_xact_id_if_assigned() is not null then
        raise exception 'usage is closed in read committed, and first in its transaction'
            using errcode = '25001';
    end if;
    behind := false;
    -- Which transactions are over a node of Citus knows of itself alone, so nothing can be closed: the
    -- questions read the log.
    if current_setting('citus.propagate_set_commands', true) = 'local' then
        return;
    end if;
    if not pg_try_advisory_xact_lock(7305404) then
        return;
    end if;
    -- In this order: the clock, then an id of our own. Whoever writes has an id before they read the
    -- clock, so that of whoever read it before us is below ours; the highest of a snapshot is not enough,
    -- which knows of ids that are over. A minute of the past is left, for a clock that is set back a little.
    v_next := date_bin('5 minutes', tokenlib.clock() - interval '1 minute', '2000-01-01 00:00Z');
    v_id := pg_current_xact_id();
    select * into c from public.ai_token_usage_closed;
    if not found then
        insert into public.ai_token_usage_closed default values;
    end if;
    if pg_snapshot_xmin(pg_current_snapshot()) >= c.next_xid then
        v_from := coalesce(c.closed_to, date_bin('5 minutes', least(c.next_to,
            (select min(created_at) from public.ai_token_usage_log),
            (select min(created_at) from public.ai_token_events where kind = 'refund'),
            (select min(last_at) from public.ai_token_refusals)), '2000-01-01 00:00Z'));
        v_ready := c.next_to;
        c.closed_to := least(v_ready, v_from + p_most);
        behind := c.closed_to < v_ready;
        perform tokenlib.fold_sums('all', null, '5 minutes', v_from, c.closed_to);
        perform tokenlib.fold_active(v_from, c.closed_to);
        perform tokenlib.fold_refusals(v_from, c.closed_to);
        perform tokenlib.fold_plans(date_bin('15 minutes', c.closed_to, '2000-01-01 00:00Z'));
        -- Of a long way only the last window is wanted.
        if c.windows_to = v_from and v_ready - v_from <= interval '1 day' then
            perform tokenlib.fold_windows(v_from, c.closed_to);
            perform tokenlib.fold_wallets(v_from, c.closed_to);
            perform tokenlib.fold_costs(v_from, c.closed_to);
            perform tokenlib.fold_refused(v_from, c.closed_to);
            c.windows_to := c.closed_to;
        elsif not behind then
            perform tokenlib.make_windows(c.closed_to);
            perform tokenlib.fold_wallets(null, c.closed_to);
            perform tokenlib.fold_costs(null, c.closed_to);
            perform tokenlib.fold_refused(null, c.closed_to);
            c.windows_to := c.closed_to;
        end if;
        if c.windows_to = c.closed_to then
            perform tokenlib.fold_kept(v_from, c.closed_to);
            perform tokenlib.fold_hasty(c.closed_to);
        end if;
        if not behind then
            c.next_to := null;
            c.next_xid := null;
        end if;
    end if;
    if c.next_to is null and (c.closed_to is null or c.closed_to < v_next) then
        c.next_to := v_next;
        c.next_xid := v_id;
    end if;
    update public.ai_token_usage_closed u set closed_to = c.closed_to, windows_to = c.windows_to,
        next_to = c.next_to, next_xid = c.next_xid;
    closed_to := c.closed_to;
end
$$;

-- Up to when rows of the log may lie in an archive, on the grid of all sums; null: none do.
create function tokenlib.usage_archived_to() returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
    select date_bin('1 hour', max((data ->> 'last_at')::timestamptz), '2000-01-01 00:00Z')
        + interval '1 hour'
    from public.ai_token_events where kind = 'archived'
$$;

-- Forgets the rollups: the questions read the log again, and close_usage begins anew. What was used while
-- rows are archived of is kept as it stands, since the log cannot tell it any more: also who counts as
-- active until the last of these charges leaves the longest window.
create function tokenlib.forget_usage() returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_keep timestamptz := tokenlib.usage_archived_to();
    v_closed timestamptz;
begin
    perform pg_advisory_xact_lock(7305404);
    select closed_to into v_closed from public.ai_token_usage_closed;
    if v_closed is null then
        v_keep := null; -- nothing is known of the archived time
    elsif v_closed < v_keep + interval '2160 hours' then
        raise exception 'usage is closed up to % only, and rows up to % are archived', v_closed, v_keep
            using errcode = '55000', hint = 'Close usage first.';
    end if;
    delete from public.ai_token_usage_closed where v_keep is null;
    update public.ai_token_usage_closed
    set closed_to = v_keep, windows_to = null, next_to = null, next_xid = null, hasty_to = null;
    delete from public.ai_token_usage_hasty;
    delete from public.ai_token_usage_bursts;
    delete from public.ai_token_usage_kept where v_keep is null;
    update public.ai_token_usage_kept set closed_to = least(closed_to, v_keep);
    delete from public.ai_token_usage_sums where v_keep is null or at > v_keep;
    delete from public.ai_token_refusal_sums where v_keep is null or at > v_keep;
    delete from public.ai_token_refusal_windows;
    delete from public.ai_token_refusal_rules;
    delete from public.ai_token_refusal_seen;
    delete from public.ai_token_wallet_sums;
    delete from public.ai_token_usage_windows;
    delete from public.ai_token_usage_pace;
    delete from public.ai_token_usage_costs;
    delete from public.ai_token_usage_cost_sums;
    delete from public.ai_token_usage_days;
    delete from public.ai_token_usage_active
    where v_keep is null or at > v_keep + days * interval '24 hours';
    delete from public.ai_token_usage_seen where v_keep is null;
    -- The plan is still wanted; who was charged since is found again in the log.
    update public.ai_token_usage_seen set last_at = '-infinity' where last_at >= v_keep;
end
$$;
