-- What admins set: costs, allowances, limits, parameters, who is staff. Each is on record, before and
-- after.

-- What one unit of a feature costs from now on; live holds keep the cost they were made at.
create function tokenlib.staff_set_cost(
    p_actor uuid, p_feature text, p_cost bigint, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before bigint;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    if p_cost is null or p_cost < 1 or p_cost > 1000000 then
        raise exception 'must be a whole number from 1 to 1000000, not %', p_cost
            using errcode = '22023', column = 'cost';
    end if;
    select cost into v_before from public.ai_token_features where feature = p_feature for update;
    if not found then
        return 'unknown_feature';
    end if;
    update public.ai_token_features set cost = p_cost where feature = p_feature;
    perform tokenlib.record_change(null, 'set_cost', p_actor, p_reason,
        jsonb_build_object('feature', p_feature, 'cost', v_before),
        jsonb_build_object('feature', p_feature, 'cost', p_cost));
    return 'ok';
end
$$;

-- How many output units one unit of a feature pays from now on; null: a use costs the same however long
-- its answer is.
create function tokenlib.staff_set_unit_size(
    p_actor uuid, p_feature text, p_unit_size bigint, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before bigint;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    if p_unit_size not between 1 and 1000000000 then
        raise exception 'must be a whole number from 1 to 1000000000, not %', p_unit_size
            using errcode = '22023', column = 'unit_size';
    end if;
    select unit_size into v_before from public.ai_token_features where feature = p_feature for update;
    if not found then
        return 'unknown_feature';
    end if;
    update public.ai_token_features set unit_size = p_unit_size where feature = p_feature;
    perform tokenlib.record_change(null, 'set_unit_size', p_actor, p_reason,
        jsonb_build_object('feature', p_feature, 'unit_size', v_before),
        jsonb_build_object('feature', p_feature, 'unit_size', p_unit_size));
    return 'ok';
end
$$;

-- What a plan gives per period, null for unlimited. A wallet has it from its next period on.
create function tokenlib.staff_set_allowance(
    p_actor uuid, p_plan text, p_token_type text, p_allowance bigint, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before jsonb;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    if p_allowance not between 0 and 1000000000 then
        raise exception 'must be a whole number from 0 to 1000000000, not %', p_allowance
            using errcode = '22023', column = 'allowance';
    end if;
    if not exists (select from public.ai_token_plans where plan = p_plan) then
        return 'unknown_plan';
    elsif p_token_type = 'shared' or not exists (
        select from public.ai_token_types where token_type = p_token_type) then
        return 'unknown_token_type';
    end if;
    select to_jsonb(a) into v_before from public.ai_token_allowances a
    where a.plan = p_plan and a.token_type = p_token_type for update;
    insert into public.ai_token_allowances (plan, token_type, allowance)
    values (p_plan, p_token_type, p_allowance)
    on conflict (plan, token_type) do update set allowance = excluded.allowance;
    perform tokenlib.record_change(null, 'set_allowance', p_actor, p_reason, v_before,
        jsonb_build_object('plan', p_plan, 'token_type', p_token_type, 'allowance', p_allowance));
    return 'ok';
end
$$;

-- Abuse limits of everyone (p_organization null) or of one organization; a null limit is off.
-- p_own false takes an organization's own limits away: those of everyone hold again.
create function tokenlib.staff_set_limits(
    p_actor uuid, p_organization uuid, p_own boolean, p_requests_per_minute integer,
    p_seconds_between_requests numeric, p_tokens_per_request bigint,
    p_output_units_per_request bigint, p_alert_tokens_per_hour bigint, p_failed_attempts integer,
    p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before jsonb;
    v_after jsonb;
    v_wrong text;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    select name into v_wrong from (values
        ('requests_per_minute', p_requests_per_minute::numeric),
        ('seconds_between_requests', p_seconds_between_requests),
        ('tokens_per_request', p_tokens_per_request),
        ('output_units_per_request', p_output_units_per_request),
        ('alert_tokens_per_hour', p_alert_tokens_per_hour),
        ('failed_attempts', p_failed_attempts)) as l (name, value)
    where value <= 0 or value > 1000000000 limit 1;
    if v_wrong is not null then
        raise exception 'must be more than 0 and at most 1000000000, or empty for no limit'
            using errcode = '22023', column = v_wrong;
    end if;
    if p_organization is not null
        and not exists (select from public.organizations where id = p_organization) then
        return 'unknown_organization';
    end if;
    select to_jsonb(l) - '{organization_id,scope}'::text[] into v_before
    from public.ai_token_limits l
    where l.organization_id is not distinct from p_organization for update;
    if p_own then
        insert into public.ai_token_limits
        values (p_organization, p_requests_per_minute, p_seconds_between_requests,
            p_tokens_per_request, p_output_units_per_request, p_alert_tokens_per_hour,
            p_failed_attempts)
        on conflict (organization_id) do update set
            requests_per_minute = excluded.requests_per_minute,
            seconds_between_requests = excluded.seconds_between_requests,
            tokens_per_request = excluded.tokens_per_request,
            output_units_per_request = excluded.output_units_per_request,
            alert_tokens_per_hour = excluded.alert_tokens_per_hour,
            failed_attempts = excluded.failed_attempts;
        -- Not RETURNING, in which Citus takes no function.
        select to_jsonb(l) - '{organization_id,scope}'::text[] into strict v_after
        from public.ai_token_limits l where l.organization_id is not distinct from p_organization;
    elsif p_organization is null then
        raise exception 'are needed for everyone' using errcode = '22023', column = 'limits';
    else
        delete from public.ai_token_limits where organization_id = p_organization;
    end if;
    perform tokenlib.record_change(p_organization, 'set_limits', p_actor, p_reason, v_before,
        v_after);
    return 'ok';
end
$$;

-- What holds for everyone; null leaves a parameter as it is.
create function tokenlib.staff_set_parameters(
    p_actor uuid, p_hold_life interval, p_top_up_block bigint, p_token_cost_cents numeric,
    p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    p public.ai_token_parameters;
    v_before jsonb;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    if p_hold_life <= interval '0' or p_hold_life > interval '1 day' then
        raise exception 'must be more than 0 s and at most 1 day'
            using errcode = '22023', column = 'hold_life';
    elsif p_top_up_block not between 1 and 1000000000 then
        raise exception 'must be a whole number from 1 to 1000000000, not %', p_top_up_block
            using errcode = '22023', column = 'top_up_block';
    elsif p_token_cost_cents < 0 or p_token_cost_cents > 1000000 then
        raise exception 'must be from 0 to 1000000 cents, not %', p_token_cost_cents
            using errcode = '22023', column = 'token_cost_cents';
    end if;
    select * into strict p from public.ai_token_parameters for update;
    v_before := jsonb_build_object('hold_life', p.hold_life, 'top_up_block', p.top_up_block,
        'token_cost_cents', p.token_cost_cents);
    update public.ai_token_parameters set hold_life = coalesce(p_hold_life, hold_life),
        top_up_block = coalesce(p_top_up_block, top_up_block),
        token_cost_cents = coalesce(p_token_cost_cents, token_cost_cents)
    returning * into strict p;
    perform tokenlib.record_change(null, 'set_parameters', p_actor, p_reason, v_before,
        jsonb_build_object('hold_life', p.hold_life, 'top_up_block', p.top_up_block,
            'token_cost_cents', p.token_cost_cents));
    return 'ok';
end
$$;

-- Makes a person staff, changes them, or (p_role null) takes their rights away. Somebody who is not
-- staff yet needs a name and an e-mail address. One admin by hand always remains. Whom a claim makes
-- staff keeps the claim's role, and loses it for every token that was signed before.
create function tokenlib.staff_set_staff(
    p_actor uuid, p_user uuid, p_role text, p_grants_per_day bigint, p_email text, p_name text,
    p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    s public.tokenlib_staff;
    v_now timestamptz;
    v_there boolean;
    v_before jsonb;
    v_after jsonb;
begin
    perform tokenlib.require_reason(p_reason);
    -- Before the actor's row is held: two admins who change each other take turns.
    perform pg_advisory_xact_lock(hashtextextended('tokenlib staff', 0));
    perform tokenlib.require_staff(p_actor, '{admin}');
    if p_role not in ('admin', 'support') then
        raise exception 'must be admin or support, not %', p_role
            using errcode = '22023', column = 'role';
    elsif p_grants_per_day not between 0 and 1000000000 then
        raise exception 'must be a whole number from 0 to 1000000000, not %', p_grants_per_day
            using errcode = '22023', column = 'grants_per_day';
    elsif p_email is not null and (p_email !~ '^[^@\s]+@[^@\s]+$' or length(p_email) > 320) then
        raise exception 'must be an e-mail address, not %', p_email
            using errcode = '22023', column = 'email';
    elsif p_name is not null and (p_name !~ '\S' or length(p_name) > 200) then
        raise exception 'must have 1 to 200 characters' using errcode = '22023', column = 'name';
    end if;
    v_now := tokenlib.clock(); -- once: inside an update Citus takes no volatile function
    -- Whose claim is over has no address to keep.
    update public.tokenlib_staff set email = user_id::text
    where email = p_email and user_id <> p_user and until <= v_now;
    if p_role is not null and exists (
        select from public.tokenlib_staff where email = p_email and user_id <> p_user) then
        raise exception '% is another staff person''s', p_email
            using errcode = '22023', column = 'email';
    end if;
    select * into s from public.tokenlib_staff where user_id = p_user for update;
    v_there := found and coalesce(s.until, 'infinity') > v_now;
    if not v_there then
        s.issuer := null; s.until := null; s.signed_at := null;
        if p_role is null then
            return 'unknown_staff';
        elsif p_email is null or p_name is null then
            raise exception 'is needed for somebody who is not staff yet' using errcode = '22023',
                column = case when p_email is null then 'email' else 'name' end;
        end if;
    else
        v_before := jsonb_build_object('user_id', p_user, 'email', s.email, 'role', s.role,
            'grants_per_day', s.grants_per_day);
    end if;
    if s.until is not null and p_role <> s.role then
        raise exception 'The role comes from a claim of %, which decides it. It can be ended here.',
            s.issuer using errcode = 'TK403';
    elsif v_there and s.until is null and s.role = 'admin' and p_role is distinct from 'admin'
        and not exists (select from public.tokenlib_staff
            where role = 'admin' and until is null and user_id <> p_user) then
        raise exception 'The last admin stays. Make somebody else admin first.'
            using errcode = 'TK403';
    end if;
    if p_role is null and s.until is not null then
        s.signed_at := greatest(s.signed_at + interval '1 microsecond', v_now);
        update public.tokenlib_staff set until = v_now, signed_at = s.signed_at
        where user_id = p_user;
    elsif p_role is null then
        delete from public.tokenlib_staff where user_id = p_user;
    else
        insert into public.tokenlib_staff (user_id, email, full_name, role, grants_per_day,
            created_at, issuer, until, signed_at)
        values (p_user, coalesce(p_email, s.email), coalesce(btrim(p_name), s.full_name), p_role,
            coalesce(p_grants_per_day, s.grants_per_day, 0), v_now, s.issuer, s.until,
            s.signed_at)
        on conflict (user_id) do update set email = excluded.email,
            full_name = excluded.full_name, role = excluded.role,
            grants_per_day = excluded.grants_per_day, issuer = excluded.issuer,
            until = excluded.until, signed_at = excluded.signed_at
        returning * into strict s;
        v_after := jsonb_build_object('user_id', p_user, 'email', s.email, 'role', s.role,
            'grants_per_day', s.grants_per_day);
    end if;
    perform tokenlib.record_change(null, 'set_staff', p_actor, p_reason, v_before, v_after);
    return 'ok';
end
$$;
