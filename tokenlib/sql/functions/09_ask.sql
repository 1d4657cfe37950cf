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
    v_fits constant boolean := tokenlib.check_input(p_units, null, null);
    v_shared public.ai_tokens;
    f record;
begin
    loop
        select c.token_type, c.cost * p_units as cost, t.balance, t.allowance,
            t.event_number > 0 and t.due_at > tokenlib.clock()
                and (t.plan is not distinct from o.plan or t.token_type = 'shared') as current
        into f
        from public.ai_token_features c
        left join public.organizations o on o.id = p_organization
        left join public.ai_tokens t
            on t.organization_id = o.id and t.token_type = c.token_type
        where c.feature = p_feature;
        exit when f.current;
        if not found then
            return 'unknown_feature';
        elsif (tokenlib.open_wallet(p_organization, f.token_type)).id is null then
            return 'unknown_organization';
        end if;
    end loop;
    if f.allowance is null or f.allowance > 0 and f.balance >= f.cost then
        return 'yes';
    elsif f.allowance = 0 then
        return 'no';
    end if;
    select * into v_shared from public.ai_tokens
    where organization_id = p_organization and token_type = 'shared';
    if v_shared.due_at <= tokenlib.clock() or v_shared.event_number = 0 then
        v_shared := tokenlib.open_wallet(p_organization, 'shared', p_create => false);
    end if;
    return case when v_shared.balance >= f.cost then 'yes' else 'no' end;
end
$$;

-- The whole verdict without charging, and the rule that would refuse. p_output_units: what metadata
-- would say that the answer has, or may have at most.
create function tokenlib.can_use(
    p_organization uuid, p_user uuid, p_feature text, p_units bigint, p_output_units bigint,
    p_limits boolean, p_mode text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    a tokenlib.answer;
begin
    a := (tokenlib.admit(p_organization, p_user, p_feature, p_units,
        case when p_output_units is not null
            then jsonb_build_object('output_units', p_output_units) end,
        null, null, p_limits, p_mode, true)).a;
    return a;
end
$$;
