-- What staff may do, decided here and not in the page that shows the button: each function takes the
-- acting person and looks them up in tokenlib_staff before anything else happens. Support gives gifts
-- up to a daily limit and releases holds; the rest is for admins. The actor on record is the person's
-- id as text.

-- The role of a staff person who has one of p_roles; anybody else ends here. Holds the person's row
-- until the end: whoever removes them waits for what they are doing, or is seen by it.
create function tokenlib.require_staff(p_actor uuid, p_roles text[]) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    v_role text;
begin
    select role into v_role from public.tokenlib_staff where user_id = p_actor for share;
    if v_role is null then
        raise exception 'Only staff may do this.' using errcode = 'TK403';
    elsif v_role <> all (p_roles) then
        raise exception 'Only % may do this; your role is %.', array_to_string(p_roles, ' or '),
            v_role using errcode = 'TK403';
    end if;
    return v_role;
end
$$;

create function tokenlib.require_reason(p_reason text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    if coalesce(p_reason, '') !~ '\S' then
        raise exception 'must say why' using errcode = '22023', column = 'reason';
    end if;
end
$$;

create function tokenlib.record_change(
    p_organization uuid, p_action text, p_actor uuid, p_reason text, p_before jsonb, p_after jsonb
) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    insert into public.ai_token_changes (organization_id, action, actor, reason, before, after,
        created_at)
    values (p_organization, p_action, p_actor::text, p_reason, p_before, p_after, tokenlib.clock());
end
$$;

-- What a person granted in the present UTC day, arrived or scheduled.
create function tokenlib.granted_today(p_actor uuid) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    return (select coalesce(sum((data ->> 'amount')::bigint), 0)::bigint from public.ai_token_events
    where kind in ('grant', 'grant_scheduled') and actor = p_actor::text
        and created_at >= date_trunc('day', tokenlib.clock(), 'UTC'));
end
$$;

create function tokenlib.staff_grant(
    p_actor uuid, p_organization uuid, p_token_type text, p_amount bigint, p_kind text,
    p_source text, p_effective timestamptz, p_expires timestamptz, p_reason text, p_key text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_limit bigint;
    v_granted bigint;
begin
    perform tokenlib.require_reason(p_reason);
    -- One grant of a support person at a time: two tabs cannot both see the same room. Their row, since
    -- an advisory lock is a node's own on Citus.
    perform from public.tokenlib_staff
    where user_id = p_actor and role = 'support' for no key update;
    if tokenlib.require_staff(p_actor, '{admin,support}') = 'support' then
        if p_kind is distinct from 'gift' then
            raise exception 'Support gives gifts; an admin adds purchases and adjustments.'
                using errcode = 'TK403';
        elsif p_effective is not null then
            raise exception 'Support gives at once; an admin sets a date.' using errcode = 'TK403';
        end if;
        -- A replay gives nothing, so it needs no room.
        if p_key is null or not exists (select from public.ai_token_events
            where organization_id = p_organization and idempotency_key = p_key) then
            select grants_per_day into strict v_limit from public.tokenlib_staff
            where user_id = p_actor;
            v_granted := tokenlib.granted_today(p_actor);
            if v_granted + p_amount > v_limit then
                raise exception 'You may give % tokens a day; % are left today.', v_limit,
                    greatest(0, v_limit - v_granted) using errcode = 'TK403',
                    hint = 'An admin can grant more, or raise the limit.';
            end if;
        end if;
    end if;
    return tokenlib.grant_tokens(p_organization, p_token_type, p_amount, p_kind, p_source,
        p_effective, p_expires, p_actor::text, p_reason, p_key);
end
$$;

create function tokenlib.staff_release(
    p_actor uuid, p_organization uuid, p_reservation uuid, p_reason text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin,support}');
    return tokenlib.release(p_organization, p_reservation, p_actor::text, p_reason);
end
$$;

create function tokenlib.staff_refund(
    p_actor uuid, p_organization uuid, p_usage uuid, p_reason text, p_key text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    return tokenlib.refund(p_organization, p_usage, p_actor::text, p_reason, p_key);
end
$$;

create function tokenlib.staff_change_plan(
    p_actor uuid, p_organization uuid, p_plan text, p_reason text, out status text, out plan text
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    select c.status, c.plan into status, plan
    from tokenlib.change_plan(p_organization, p_plan, p_actor::text, p_reason) as c;
end
$$;

create function tokenlib.staff_set_status(
    p_actor uuid, p_organization uuid, p_status text, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    return tokenlib.set_status(p_organization, p_status, p_actor::text, p_reason);
end
$$;

create function tokenlib.staff_pause_user(
    p_actor uuid, p_organization uuid, p_user uuid, p_paused boolean, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    return tokenlib.pause_user(p_organization, p_user, p_paused, p_actor::text, p_reason);
end
$$;

create function tokenlib.staff_settle_finding(
    p_actor uuid, p_organization uuid, p_finding uuid, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    return tokenlib.settle_finding(p_organization, p_finding, p_actor::text, p_reason);
end
$$;

create function tokenlib.staff_set_mode(
    p_actor uuid, p_organization uuid, p_mode text, p_until timestamptz, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    return tokenlib.set_mode(p_organization, p_mode, p_until, p_actor::text, p_reason);
end
$$;

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
        insert into public.ai_token_limits as l
        values (p_organization, p_requests_per_minute, p_seconds_between_requests,
            p_tokens_per_request, p_output_units_per_request, p_alert_tokens_per_hour,
            p_failed_attempts)
        on conflict (organization_id) do update set
            requests_per_minute = excluded.requests_per_minute,
            seconds_between_requests = excluded.seconds_between_requests,
            tokens_per_request = excluded.tokens_per_request,
            output_units_per_request = excluded.output_units_per_request,
            alert_tokens_per_hour = excluded.alert_tokens_per_hour,
            failed_attempts = excluded.failed_attempts
        returning to_jsonb(l) - '{organization_id,scope}'::text[] into v_after;
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
-- staff yet needs a name and an e-mail address. One admin always remains.
create function tokenlib.staff_set_staff(
    p_actor uuid, p_user uuid, p_role text, p_grants_per_day bigint, p_email text, p_name text,
    p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    s public.tokenlib_staff;
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
    elsif p_role is not null and exists (
        select from public.tokenlib_staff where email = p_email and user_id <> p_user) then
        raise exception '% is another staff person''s', p_email
            using errcode = '22023', column = 'email';
    end if;
    select * into s from public.tokenlib_staff where user_id = p_user for update;
    if not found then
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
    if s.role = 'admin' and p_role is distinct from 'admin' and not exists (
        select from public.tokenlib_staff where role = 'admin' and user_id <> p_user) then
        raise exception 'The last admin stays. Make somebody else admin first.'
            using errcode = 'TK403';
    end if;
    if p_role is null then
        delete from public.tokenlib_staff where user_id = p_user;
    else
        insert into public.tokenlib_staff (user_id, email, full_name, role, grants_per_day,
            created_at)
        values (p_user, coalesce(p_email, s.email), coalesce(btrim(p_name), s.full_name), p_role,
            coalesce(p_grants_per_day, s.grants_per_day, 0), tokenlib.clock())
        on conflict (user_id) do update set email = excluded.email,
            full_name = excluded.full_name, role = excluded.role,
            grants_per_day = excluded.grants_per_day
        returning * into strict s;
        v_after := jsonb_build_object('user_id', p_user, 'email', s.email, 'role', s.role,
            'grants_per_day', s.grants_per_day);
    end if;
    perform tokenlib.record_change(null, 'set_staff', p_actor, p_reason, v_before, v_after);
    return 'ok';
end
$$;

-- Keeps the result of a verification of everybody.
create function tokenlib.record_verification(p_wallets bigint, p_entries bigint, p_problems bigint)
returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into public.ai_token_verifications (at, wallets, entries, problems)
    values (tokenlib.clock(), p_wallets, p_entries, p_problems);
end
$$;
