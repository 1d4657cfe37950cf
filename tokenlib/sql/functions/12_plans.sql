-- Five wallets, one per type, with the plan's allowance. Safe to call twice. Returns how many were
-- missing; p_dry_run only counts.
create function tokenlib.initialize(
    p_organization uuid, p_plan text, p_dry_run boolean, out status text, out plan text,
    out created bigint
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_type text;
begin
    created := 0;
    select o.plan into plan from public.organizations o where o.id = p_organization;
    if not found then
        status := 'unknown_organization';
        return;
    elsif p_plan is not null and p_plan is distinct from plan then
        status := 'plan_mismatch';
        return;
    end if;
    for v_type in
        select t.token_type from public.ai_token_types t
        where t.token_type <> 'shared' and not exists (
            select from public.ai_tokens a
            where a.organization_id = p_organization and a.token_type = t.token_type)
        order by t.token_type
    loop
        created := created + 1;
        if not p_dry_run then
            perform tokenlib.open_wallet(p_organization, v_type);
        end if;
    end loop;
    status := 'ok';
end
$$;

-- Moves an organization to another plan: the new allowance less what this period has used, refresh
-- date unchanged, purchases kept; so switching back and forth earns nothing.
create function tokenlib.change_plan(
    p_organization uuid, p_plan text, p_actor text, p_reason text, out status text, out plan text
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_type text;
    v_now timestamptz;
    v_wallets public.ai_tokens[] := '{}';
    w public.ai_tokens;
begin
    if not exists (select from public.ai_token_plans p where p.plan = p_plan) then
        status := 'unknown_plan';
        return;
    end if;
    for v_type in
        select token_type from public.ai_token_types where token_type <> 'shared' order by token_type
    loop
        w := tokenlib.open_wallet(p_organization, v_type);
        if w.id is null then
            status := 'unknown_organization';
            return;
        end if;
        v_wallets := v_wallets || w;
    end loop;
    select o.plan into plan from public.organizations o where o.id = p_organization for no key update;
    if plan is distinct from p_plan then
        update public.organizations o set plan = p_plan where o.id = p_organization;
        v_now := tokenlib.clock();
        foreach w in array v_wallets loop
            w := tokenlib.settle(w, p_plan, greatest(v_now, w.last_entry_at), p_actor, p_reason);
        end loop;
        insert into public.ai_token_changes (organization_id, action, actor, reason, before, after,
            created_at)
        values (p_organization, 'change_plan', p_actor, p_reason, jsonb_build_object('plan', plan),
            jsonb_build_object('plan', p_plan), v_now);
        plan := p_plan;
    end if;
    status := 'ok';
end
$$;

-- Ends every period that is due, once, however many callers run it at the same time. Returns how
-- many wallets were brought up to date, those of at most p_limit organizations, so that one call stays
-- short.
create function tokenlib.refresh(p_organization uuid, p_limit integer) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_now timestamptz := tokenlib.clock();
    v_organization uuid;
    v_type text;
    v_count bigint := 0;
begin
    -- In lock order; a wallet that somebody is using is brought up to date by that touch.
    for v_organization in
        select distinct a.organization_id from public.ai_tokens a
        join public.organizations o on o.id = a.organization_id
        where a.due_at <= v_now and (p_organization is null or a.organization_id = p_organization)
        order by a.organization_id limit p_limit
    loop
        for v_type in
            select token_type from public.ai_tokens
            where organization_id = v_organization and due_at <= v_now
            order by token_type = 'shared', token_type
            for no key update skip locked
        loop
            perform tokenlib.open_wallet(v_organization, v_type);
            v_count := v_count + 1;
        end loop;
    end loop;
    -- On one node whoever adds a request to the API takes away two old ones.
    if p_organization is null
        and current_setting('citus.propagate_set_commands', true) = 'local' then
        v_now := v_now - interval '7 days';
        delete from public.ai_token_api_requests where created_at < v_now;
    end if;
    return v_count;
end
$$;
