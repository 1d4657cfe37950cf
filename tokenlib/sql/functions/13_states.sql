-- Who may use AI at all: payment states, pauses, and the emergency switch. Not one balance moves.

create function tokenlib.set_status(
    p_organization uuid, p_status text, p_actor text, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before text;
    v_now timestamptz := tokenlib.clock();
begin
    if p_status is null or p_status not in ('active', 'limited', 'expired', 'suspended') then
        raise exception 'must be active, limited, expired or suspended, not %', p_status
            using errcode = '22023', column = 'status';
    end if;
    if not exists (select from public.organizations where id = p_organization) then
        return 'unknown_organization';
    end if;
    insert into public.ai_token_organization_settings (organization_id)
    values (p_organization) on conflict do nothing;
    select status into strict v_before from public.ai_token_organization_settings
    where organization_id = p_organization for no key update;
    update public.ai_token_organization_settings set status = p_status, status_since = v_now
    where organization_id = p_organization;
    insert into public.ai_token_changes (organization_id, action, actor, reason, before, after,
        created_at)
    values (p_organization, 'set_status', p_actor, p_reason,
        jsonb_build_object('status', v_before), jsonb_build_object('status', p_status), v_now);
    return 'ok';
end
$$;

create function tokenlib.pause_user(
    p_organization uuid, p_user uuid, p_paused boolean, p_actor text, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before jsonb;
    v_now timestamptz := tokenlib.clock();
begin
    if not exists (select from public.user_profiles
        where id = p_user and organization_id = p_organization) then
        return 'not_a_member';
    end if;
    -- The row first: of two at once the second must see what the first has set.
    insert into public.ai_token_user_settings (organization_id, user_id)
    values (p_organization, p_user) on conflict do nothing;
    select jsonb_build_object('user_id', p_user, 'paused', paused_at is not null)
    into strict v_before from public.ai_token_user_settings
    where organization_id = p_organization and user_id = p_user for no key update;
    update public.ai_token_user_settings set paused_at = case when p_paused then v_now end
    where organization_id = p_organization and user_id = p_user;
    insert into public.ai_token_changes (organization_id, action, actor, reason, before, after,
        created_at)
    values (p_organization, 'pause_user', p_actor, p_reason, v_before,
        jsonb_build_object('user_id', p_user, 'paused', p_paused), v_now);
    return 'ok';
end
$$;

-- The switch: enforce, log only, off; for everyone (p_organization null) or one organization; back
-- by itself at p_until.
create function tokenlib.set_mode(
    p_organization uuid, p_mode text, p_until timestamptz, p_actor text, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before jsonb;
    v_now timestamptz := tokenlib.clock();
begin
    if p_mode is null or p_mode not in ('enforce', 'log_only', 'off') then
        raise exception 'must be enforce, log_only or off, not %', p_mode
            using errcode = '22023', column = 'mode';
    end if;
    -- Enforce may end at once: so an organization's own mode is taken away.
    if p_mode <> 'enforce' and p_until <= v_now then
        raise exception 'must be later than now' using errcode = '22023', column = 'until';
    end if;
    if coalesce(btrim(p_reason), '') = '' then
        raise exception 'must say why the switch is used'
            using errcode = '22023', column = 'reason';
    end if;
    if p_organization is null then
        select jsonb_build_object('mode', mode, 'until', mode_until) into strict v_before
        from public.ai_token_parameters for update;
        update public.ai_token_parameters set mode = p_mode, mode_until = p_until;
    else
        if not exists (select from public.organizations where id = p_organization) then
            return 'unknown_organization';
        end if;
        insert into public.ai_token_organization_settings (organization_id)
        values (p_organization) on conflict do nothing;
        select jsonb_build_object('mode', mode, 'until', mode_until) into strict v_before
        from public.ai_token_organization_settings
        where organization_id = p_organization for no key update;
        update public.ai_token_organization_settings set mode = p_mode, mode_until = p_until
        where organization_id = p_organization;
    end if;
    insert into public.ai_token_changes (organization_id, action, actor, reason, before, after,
        created_at)
    values (p_organization, 'set_mode', p_actor, p_reason, v_before,
        jsonb_build_object('mode', p_mode, 'until', p_until), v_now);
    return 'ok';
end
$$;

-- A finding is settled by an entry with actor and reason; the balance stays as the customer has it.
create function tokenlib.settle_finding(
    p_organization uuid, p_finding uuid, p_actor text, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    f public.ai_token_findings;
    w public.ai_tokens;
    v_now timestamptz;
begin
    if coalesce(btrim(p_reason), '') = '' then
        raise exception 'must say how the finding was settled'
            using errcode = '22023', column = 'reason';
    end if;
    select * into f from public.ai_token_findings
    where organization_id = p_organization and id = p_finding for update;
    if not found then
        return 'unknown_finding';
    elsif f.settled_at is not null then
        return 'already_settled';
    end if;
    -- Not brought up to date: the organization may be gone, and the finding is settled all the same.
    select * into w from public.ai_tokens
    where organization_id = f.organization_id and token_type = f.token_type
    for no key update;
    if not found or w.event_number = 0 then
        w := tokenlib.open_wallet(f.organization_id, f.token_type);
    end if;
    v_now := greatest(tokenlib.clock(), w.last_entry_at);
    if w.id is null then
        insert into public.ai_token_changes (organization_id, action, actor, reason, after,
            created_at)
        values (p_organization, 'settle_finding', p_actor, p_reason,
            jsonb_build_object('finding', f.id, 'kind', f.kind), v_now);
    else
        w := tokenlib.append_event(w, 'finding_settled', v_now, p_actor => p_actor,
            p_reason => p_reason, p_subject => f.id, p_data => jsonb_build_object('kind', f.kind));
        perform tokenlib.store_wallet(w, v_now);
    end if;
    update public.ai_token_findings
    set settled_at = v_now, settled_by = p_actor, settlement = p_reason
    where organization_id = p_organization and id = p_finding;
    return 'ok';
end
$$;
