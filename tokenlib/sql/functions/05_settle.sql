-- Brings a wallet up to date: whatever has fallen due since the last touch happens now, in the order
-- of its times: holds expire, grants expire, the period ends, scheduled grants arrive. Then a plan
-- that somebody changed outside (a billing webhook) is applied. The caller holds the row lock.

create function tokenlib.next_due(w public.ai_tokens) returns timestamptz
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_hold timestamptz;
    v_grant timestamptz;
begin
    select min(expires_at) into v_hold from public.ai_token_reservations
    where organization_id = w.organization_id and token_type = w.token_type and state = 'held';
    select min(case when arrived_at is null then effective_at else expires_at end) into v_grant
    from public.ai_token_grants
    where organization_id = w.organization_id and token_type = w.token_type
        and closed_at is null and (arrived_at is null or kind <> 'allowance');
    return least(w.refresh_date, v_hold, v_grant);
end
$$;

-- Ends a hold and gives back what was not used of it: to the balance, or, where its grant has
-- expired meanwhile, to nobody. Returns how many tokens came back.
create function tokenlib.give_back(
    r public.ai_token_reservations, p_tokens bigint
) returns bigint
language sql set search_path = pg_catalog, pg_temp as $$
    select case when r.drawn is null then p_tokens
        else tokenlib.undraw(r.organization_id, r.drawn, p_tokens) end
$$;

create function tokenlib.refresh_wallet(w public.ai_tokens, p_now timestamptz) returns public.ai_tokens
language plpgsql set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
declare
    v_period interval;
    v_block bigint;
    v_periods bigint;
    v_due timestamptz := w.refresh_date;
    v_old bigint := 0;
    v_new bigint := 0;
begin
    select period, top_up_block into strict v_period, v_block from public.ai_token_parameters;
    -- Whole periods from the wallet's own date; idle ones are skipped in one step.
    v_periods := floor(extract(epoch from p_now - w.refresh_date) / extract(epoch from v_period)) + 1;
    w := tokenlib.draw_pending(w);
    update public.ai_token_grants set remaining = 0, closed_at = p_now
    from (select id as old_id, remaining as old_remaining from public.ai_token_grants
        where organization_id = w.organization_id and token_type = w.token_type
            and closed_at is null and kind = 'allowance') as old
    where organization_id = w.organization_id and id = old_id
    returning old_remaining into v_old;
    w.refresh_date := w.refresh_date + v_periods * v_period;
    w.period_start := w.refresh_date - v_period;
    update public.ai_token_grants set used_before = used
    where organization_id = w.organization_id and token_type = w.token_type and closed_at is null
        and used_before <> used;
    if w.token_type <> 'shared' then
        w.allowance := tokenlib.allowance(w.organization_id, w.plan, w.token_type);
        v_new := coalesce(w.allowance, v_block);
        insert into public.ai_token_grants (organization_id, token_type, kind, source, amount,
            remaining, created_at, effective_at, arrived_at, expires_at)
        values (w.organization_id, w.token_type, 'allowance', 'plan ' || coalesce(w.plan, '?'),
            v_new, v_new, p_now, w.period_start, p_now, w.refresh_date);
    end if;
    return tokenlib.append_event(w, 'refresh', p_now, v_new - coalesce(v_old, 0), 0, -w.total_used,
        p_effective => v_due,
        p_data => jsonb_build_object('lapsed', coalesce(v_old, 0), 'granted', v_new,
            'periods', v_periods, 'allowance', w.allowance,
            'period_start', tokenlib.utc(w.period_start),
            'refresh_date', tokenlib.utc(w.refresh_date)));
end
$$;

-- The new allowance less what this period has used: never a refill, never below zero.
create function tokenlib.apply_plan(
    w public.ai_tokens, p_plan text, p_now timestamptz, p_actor text, p_reason text
) returns public.ai_tokens
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_block bigint;
    g public.ai_token_grants;
    v_amount bigint;
    v_remaining bigint;
    v_from text := w.plan;
begin
    select top_up_block into strict v_block from public.ai_token_parameters;
    w := tokenlib.draw_pending(w);
    select * into strict g from public.ai_token_grants
    where organization_id = w.organization_id and token_type = w.token_type
        and closed_at is null and kind = 'allowance';
    w.plan := p_plan;
    w.allowance := tokenlib.allowance(w.organization_id, p_plan, w.token_type);
    v_amount := coalesce(w.allowance, g.used + v_block);
    v_remaining := greatest(0, v_amount - g.used);
    update public.ai_token_grants
    set amount = v_amount, remaining = v_remaining, source = 'plan ' || coalesce(p_plan, '?')
    where organization_id = w.organization_id and id = g.id;
    return tokenlib.append_event(w, 'plan_change', p_now, v_remaining - g.remaining,
        p_actor => p_actor, p_reason => p_reason, p_subject => g.id,
        p_data => jsonb_build_object('from', v_from, 'to', p_plan, 'allowance', w.allowance));
end
$$;

create function tokenlib.settle(
    w public.ai_tokens, p_plan text, p_now timestamptz,
    p_actor text default 'system', p_reason text default 'plan changed outside tokenlib'
) returns public.ai_tokens
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_due timestamptz;
    r public.ai_token_reservations;
    g public.ai_token_grants;
    v_back bigint;
begin
    loop
        v_due := tokenlib.next_due(w);
        exit when v_due > p_now;
        for r in
            select * from public.ai_token_reservations
            where organization_id = w.organization_id and token_type = w.token_type
                and state = 'held' and expires_at <= v_due
            order by expires_at, id
        loop
            v_back := tokenlib.give_back(r, r.tokens);
            update public.ai_token_reservations set state = 'expired', resolved_at = p_now
            where organization_id = r.organization_id and id = r.id;
            w := tokenlib.append_event(w, 'hold_expired', p_now, v_back, -r.tokens,
                p_subject => r.id, p_effective => r.expires_at,
                p_data => jsonb_build_object('lapsed', r.tokens - v_back));
        end loop;
        for g in
            select * from public.ai_token_grants
            where organization_id = w.organization_id and token_type = w.token_type
                and closed_at is null and arrived_at is not null and kind <> 'allowance'
                and expires_at <= v_due
            order by expires_at, id
        loop
            w := tokenlib.draw_pending(w);
            select * into strict g from public.ai_token_grants
            where organization_id = g.organization_id and id = g.id;
            update public.ai_token_grants set remaining = 0, closed_at = p_now
            where organization_id = g.organization_id and id = g.id;
            w := tokenlib.append_event(w, 'grant_expired', p_now, -g.remaining,
                p_subject => g.id, p_effective => g.expires_at);
        end loop;
        if w.refresh_date <= v_due then
            w := tokenlib.refresh_wallet(w, p_now);
        end if;
        for g in
            select * from public.ai_token_grants
            where organization_id = w.organization_id and token_type = w.token_type
                and closed_at is null and arrived_at is null and effective_at <= v_due
            order by effective_at, id
        loop
            w := tokenlib.draw_pending(w);
            update public.ai_token_grants set arrived_at = p_now
            where organization_id = g.organization_id and id = g.id;
            w := tokenlib.append_event(w, 'grant', p_now, g.amount, p_subject => g.id,
                p_effective => g.effective_at);
        end loop;
    end loop;
    if w.plan is distinct from p_plan and w.token_type <> 'shared' then
        w := tokenlib.apply_plan(w, p_plan, p_now, p_actor, p_reason);
    end if;
    w.due_at := v_due;
    perform tokenlib.store_wallet(w, p_now);
    return w;
end
$$;

-- Locks a wallet, opens its books or brings them up to date, and returns it; null when there is no
-- such organization. `shared` is created only when p_create says so. Lock order everywhere: advisory
-- locks, then wallets by name with `shared` last.
-- The wallet in hand carries in last_entry_at the moment that it was opened at, and the caller dates
-- its entry by that: a clock asked twice could pass an expiry or the end of a period in between.
create function tokenlib.open_wallet(
    p_organization uuid, p_token_type text, p_create boolean default true
) returns public.ai_tokens
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    w public.ai_tokens;
    v_plan text;
    v_now timestamptz;
    v_new boolean := false;
begin
    select * into w from public.ai_tokens
    where organization_id = p_organization and token_type = p_token_type
    for no key update;
    if not found then
        if not p_create or not exists (
            select from public.organizations where id = p_organization) then
            return null;
        end if;
        insert into public.ai_tokens (organization_id, token_type)
        values (p_organization, p_token_type) on conflict do nothing;
        v_new := found;
        select * into strict w from public.ai_tokens
        where organization_id = p_organization and token_type = p_token_type
        for no key update;
    end if;
    -- Read after the lock: a plan change holds it until it has written the new plan.
    select plan into v_plan from public.organizations where id = p_organization;
    if not found then
        return null;
    end if;
    v_now := greatest(tokenlib.clock(), w.last_entry_at);
    if w.event_number = 0 then
        w := tokenlib.settle(tokenlib.open_books(w, v_plan, v_now, v_new), v_plan, v_now);
    elsif w.due_at <= v_now or (w.plan is distinct from v_plan and w.token_type <> 'shared') then
        w := tokenlib.settle(w, v_plan, v_now);
    end if;
    w.last_entry_at := v_now;
    return w;
end
$$;
