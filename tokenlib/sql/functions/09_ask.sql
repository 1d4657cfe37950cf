-- The UI's questions; never the decision.

-- Balances of one organization, or of one of its wallets, up to date; wallets that are missing are
-- created (all but `shared`). Reads without a lock while nothing is due.
create function tokenlib.balances(p_organization uuid, p_token_type text default null)
returns setof public.ai_tokens
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_type record;
    w public.ai_tokens;
begin
    if not exists (select from public.organizations where id = p_organization) then
        raise exception '%', p_organization using errcode = 'TK404';
    end if;
    for v_type in
        select t.token_type, coalesce(a.event_number = 0 or a.due_at <= tokenlib.clock()
                or (a.plan is distinct from o.plan and t.token_type <> 'shared'), true) as stale
        from public.ai_token_types t
        cross join public.organizations o
        left join public.ai_tokens a
            on a.organization_id = o.id and a.token_type = t.token_type
        where o.id = p_organization and t.token_type = coalesce(p_token_type, t.token_type)
            and (t.token_type <> 'shared' or a.id is not null)
        order by t.token_type = 'shared', t.token_type
    loop
        if v_type.stale then
            perform tokenlib.open_wallet(p_organization, v_type.token_type);
        end if;
    end loop;
    return query
        select a.* from public.ai_tokens a
        join public.ai_token_types t using (token_type)
        where a.organization_id = p_organization
            and a.token_type = coalesce(p_token_type, a.token_type)
        order by t.position;
end
$$;

-- Whether the balance would pay, its own wallet or `shared`; what the plan does not include nothing pays.
create function tokenlib.has_enough(p_organization uuid, p_feature text, p_units bigint)
returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_type text;
    v_cost bigint;
    v_allowance bigint;
    v_enough boolean;
    v_stale boolean;
begin
    perform tokenlib.check_input(p_units, null, null);
    select token_type, cost * p_units into v_type, v_cost
    from public.ai_token_features where feature = p_feature;
    if not found then
        return 'unknown_feature';
    end if;
    for v_pass in 1..2 loop
        select bool_or(a.balance >= v_cost or (a.allowance is null and a.token_type = v_type))
                and bool_and(a.allowance <> 0 or a.allowance is null or a.token_type <> v_type),
            coalesce(bool_or(a.event_number = 0 or a.due_at <= tokenlib.clock()
                or (a.plan is distinct from o.plan and a.token_type <> 'shared')), true)
                or count(*) filter (where a.token_type = v_type) = 0
        into v_enough, v_stale
        from public.organizations o
        join public.ai_tokens a on a.organization_id = o.id
        where o.id = p_organization and a.token_type in (v_type, 'shared');
        exit when not v_stale;
        if (tokenlib.open_wallet(p_organization, v_type)).id is null then
            return 'unknown_organization';
        end if;
        perform tokenlib.open_wallet(p_organization, 'shared', p_create => false);
    end loop;
    return case when v_enough then 'yes' else 'no' end;
end
$$;

-- The whole verdict without charging, and the rule that would refuse.
create function tokenlib.can_use(
    p_organization uuid, p_user uuid, p_feature text, p_units bigint, p_limits boolean, p_mode text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    a tokenlib.answer;
begin
    select (d.a).* into a from tokenlib.admit(p_organization, p_user, p_feature, p_units, null, null,
        null, p_limits, p_mode, true) as d;
    return a;
end
$$;
