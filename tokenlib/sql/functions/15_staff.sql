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
    select role into v_role from public.tokenlib_staff
    where user_id = p_actor and coalesce(until, 'infinity') > tokenlib.clock() for share;
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

-- Keeps the result of a verification of everybody.
create function tokenlib.record_verification(p_wallets bigint, p_entries bigint, p_problems bigint)
returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into public.ai_token_verifications (at, wallets, entries, problems)
    values (tokenlib.clock(), p_wallets, p_entries, p_problems);
end
$$;
