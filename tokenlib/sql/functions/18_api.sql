-- The door of the HTTP API: each function names who calls, a person or an API key, and decides here
-- what they may; so a route that gets the organization wrong reads and charges nothing. No answer
-- tells an organization that is another's from one that does not exist. p_secret is the digest of the
-- key that was shown, null for a person: a JWT that names a key in its sub is nobody's.

-- What the caller is to the organization (null: to everyone) in what p_scope stands for: key, member
-- or staff; null: nobody. What staff may, support or admin, their own functions decide.
create function tokenlib.standing(
    p_caller uuid, p_secret bytea, p_organization uuid, p_scope text
) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    k public.ai_token_api_keys;
begin
    if p_secret is not null then
        select * into k from public.ai_token_api_keys where id = p_caller;
        return case when k.revoked_at is null and coalesce(k.expires_at, 'infinity') > tokenlib.clock()
            and p_scope = any (k.scopes)
            and (k.organization_id is null or k.organization_id = p_organization) then 'key' end;
    end if;
    if p_scope <> 'admin' and exists (select from public.user_profiles
        where id = p_caller and organization_id = p_organization) then
        return 'member';
    end if;
    if p_scope <> 'spend' and exists (select from public.tokenlib_staff
        where user_id = p_caller and coalesce(until, 'infinity') > tokenlib.clock()) then
        return 'staff';
    end if;
    return null;
end
$$;

-- Whether the caller may end a hold: a key those of its organizations, a person those that they made
-- here themselves. One whom the product's server made runs an AI call of its.
create function tokenlib.may_end(
    p_standing text, p_caller uuid, p_organization uuid, p_reservation uuid
) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return p_standing = 'key' or exists (select from public.ai_token_api_requests
        where organization_id = p_organization and caller_id = p_caller and verb = 'reserve'
            and subject_id = p_reservation);
end
$$;

-- Everything that the API writes. Under one Idempotency-Key of a caller a thing is done once, and the
-- first answer is kept in the same commit: in_flight while another call with the key runs, conflict
-- when it was used for something else. What was refused is not kept: it is decided anew.
-- With it, after a charge or a hold: the minute window that has least left.
create function tokenlib.api_write(
    p_caller uuid, p_secret bytea, p_verb text, p_organization uuid, p_user uuid, p_key text, p_hash bytea,
    p_args jsonb, p_mode text, out a tokenlib.answer, out window_name text,
    out window_allowed bigint, out window_left bigint, out window_ends_after double precision
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_scope text := case when p_verb in ('deduct', 'reserve', 'settle', 'release') then 'spend'
        else 'admin' end;
    v_place uuid := coalesce(p_organization, '00000000-0000-0000-0000-000000000000');
    v_target uuid := p_organization;
    v_standing text;
    v_actor uuid := p_caller;
    v_done public.ai_token_api_requests;
    v_state text;                              -- of the hold that was made under the key
    v_limits boolean := true;
    v_reason text := p_args ->> 'reason';
    v_now timestamptz;
    k public.ai_token_api_keys;
begin
    perform tokenlib.check_input(1, null, coalesce(p_key, ''));
    if not pg_try_advisory_xact_lock(hashtextextended(p_key,
        hashtextextended('api ' || v_place::text || p_caller::text, 0))) then
        a.status := 'in_flight';
        return;
    end if;
    -- A person hears what is missing, but nothing of an organization that is not theirs.
    if v_scope = 'admin' and tokenlib.standing(p_caller, p_secret, p_organization, 'admin') is null
        and (tokenlib.standing(p_caller, p_secret, p_organization, 'check') = 'member'
            or (p_organization is null and p_secret is null)) then
        raise exception 'Only staff may do this, and you are not staff. Ask whoever runs this service.'
            using errcode = 'TK403';
    end if;
    -- A key is named by its id: whose it is says the table, not the caller.
    if p_verb in ('rotate_key', 'revoke_key') then
        select organization_id into v_target from public.ai_token_api_keys
        where id = (p_args ->> 'id')::uuid;
        if not found then
            a.status := case when tokenlib.standing(p_caller, p_secret, null, 'admin') is null
                then 'not_yours' else 'unknown_key' end;
            return;
        end if;
    end if;
    v_standing := tokenlib.standing(p_caller, p_secret, v_target, v_scope);
    if p_verb = 'refund' and v_standing is null then
        -- The product's server gives back what it charged; a person needs an admin's rights.
        v_standing := tokenlib.standing(p_caller, p_secret, v_target, 'spend');
        if v_standing = 'key' then
            v_scope := 'spend';
        else
            v_standing := null;
        end if;
    end if;
    if v_standing is null then
        a.status := 'not_yours';
        return;
    end if;
    if v_standing = 'key' then
        if p_verb in ('create_key', 'rotate_key', 'revoke_key') then
            -- In one order: two keys may turn each other.
            perform from public.ai_token_api_keys where id in (p_caller, (p_args ->> 'id')::uuid)
            order by id for update;
        end if;
        select * into strict k from public.ai_token_api_keys where id = p_caller;
        v_actor := k.owner_id;
        v_limits := k.limit_users;
        if v_scope = 'admin' and v_reason ~ '\S' then
            v_reason := v_reason || ' (API key ' || k.name || ')';
        end if;
    elsif v_standing = 'member' then
        if p_user <> p_caller then
            a.status := 'not_yourself';
            return;
        end if;
        p_user := p_caller;
    end if;

    select * into v_done from public.ai_token_api_requests
    where organization_id = v_place and caller_id = p_caller and idempotency_key = p_key;
    if found then
        if v_done.request_hash <> p_hash then
            a.status := 'conflict';
            return;
        elsif p_verb = 'reserve' then
            select case when state = 'held' and expires_at <= tokenlib.clock() then 'expired'
                else state end
            into v_state
            from public.ai_token_reservations
            where organization_id = p_organization and id = v_done.subject_id;
        end if;
        -- A hold has a first answer while it lives. Afterwards the gate says what came of it: else the
        -- AI call would run again for one charge. So it does for a call that names another hold.
        if p_verb <> 'reserve' or (v_state = 'held'
            and coalesce((p_args ->> 'id')::uuid, v_done.subject_id) = v_done.subject_id) then
            a := jsonb_populate_record(null::tokenlib.answer, v_done.answer);
            a.replayed := true;
            return;
        end if;
    elsif p_verb not in ('deduct', 'reserve') and exists (select from public.ai_token_usage_log
        where organization_id = v_place and idempotency_key = p_key and reservation_id is null) then
        a.status := 'conflict'; -- a charge has its key in the log alone
        return;
    end if;

    -- Else whoever found it could keep it alive for ever.
    if p_verb in ('create_key', 'rotate_key', 'revoke_key') and k.digest <> p_secret then
        raise exception 'The secret of this API key was replaced. Manage keys with its new one.'
            using errcode = 'TK403';
    end if;

    if p_verb in ('deduct', 'reserve') then
        if p_user is null then
            raise exception 'is needed: the member for whom the key calls'
                using errcode = '22023', column = 'user_id';
        end if;
        perform tokenlib.check_input((p_args ->> 'units')::bigint, null, null);
        if p_verb = 'reserve' and p_args ->> 'id' is not null then
            perform tokenlib.lock_key(p_organization, 'hold ' || (p_args ->> 'id'));
            if exists (select from public.ai_token_reservations
                where organization_id = p_organization and id = (p_args ->> 'id')::uuid
                    and idempotency_key is distinct from p_key) then
                a.status := 'conflict';
                a.text := 'id';
                return;
            end if;
        end if;
        -- What was charged is told, not done: it counts for no limit.
        if v_state is distinct from 'deducted' then
            a := tokenlib.check_request_limits(p_organization, p_user, k.id, p_args ->> 'feature',
                (p_args ->> 'units')::bigint, p_args -> 'metadata', p_mode, false);
            if a.status <> 'ok' then
                return;
            end if;
        end if;
    elsif p_verb in ('settle', 'release')
        and not tokenlib.may_end(v_standing, p_caller, p_organization, (p_args ->> 'id')::uuid) then
        a.status := 'unknown_reservation';
        a.id := (p_args ->> 'id')::uuid;
        return;
    elsif p_verb = 'settle'
        and tokenlib.output_units(p_args -> 'metadata') > k.output_units_per_request then
        -- Known only now. The hold stays, as where a user's limit refuses.
        v_now := tokenlib.clock();
        select organization_id, user_id, feature, token_type
        into a.organization_id, a.user_id, a.feature, a.token_type
        from public.ai_token_reservations
        where organization_id = p_organization and id = (p_args ->> 'id')::uuid and state = 'held'
            and expires_at > v_now;
        if found then
            a.limit_name := 'key_output_units_per_request';
            a.allowed := k.output_units_per_request;
            a := tokenlib.refuse_request(a, v_now, p_mode, false);
            if a.status <> 'ok' then
                return;
            end if;
        end if;
    end if;

    case p_verb
        when 'deduct' then
            a := tokenlib.deduct(p_organization, p_user, p_args ->> 'feature',
                (p_args ->> 'units')::bigint, nullif(p_args -> 'metadata', 'null'), p_key, v_limits,
                p_mode);
        when 'reserve' then
            a := tokenlib.reserve(p_organization, p_user, p_args ->> 'feature',
                (p_args ->> 'units')::bigint, nullif(p_args -> 'metadata', 'null'), p_key,
                make_interval(secs => (p_args ->> 'hold_seconds')::double precision), v_limits,
                p_mode, (p_args ->> 'id')::uuid);
        when 'settle' then
            a := tokenlib.deduct_reservation(p_organization, (p_args ->> 'id')::uuid,
                (p_args ->> 'units')::bigint, nullif(p_args -> 'metadata', 'null'));
        when 'release' then
            a := tokenlib.release(p_organization, (p_args ->> 'id')::uuid,
                case when v_standing = 'member' then p_caller::text end, v_reason);
        when 'refund' then
            if v_scope = 'spend' then
                a := tokenlib.refund(p_organization, (p_args ->> 'id')::uuid,
                    'API key ' || k.name, v_reason, p_key);
            else
                a := tokenlib.staff_refund(v_actor, p_organization, (p_args ->> 'id')::uuid,
                    v_reason, p_key);
            end if;
        when 'grant' then
            a := tokenlib.staff_grant(v_actor, p_organization, p_args ->> 'token_type',
                (p_args ->> 'amount')::bigint, p_args ->> 'kind', p_args ->> 'source',
                (p_args ->> 'effective_at')::timestamptz, (p_args ->> 'expires_at')::timestamptz,
                v_reason, p_key);
        when 'change_plan' then
            select c.status, c.plan into a.status, a.plan from tokenlib.staff_change_plan(v_actor,
                p_organization, p_args ->> 'plan', v_reason) as c;
        when 'set_status' then
            a.status := tokenlib.staff_set_status(v_actor, p_organization, p_args ->> 'status',
                v_reason);
        when 'pause_user' then
            a.status := tokenlib.staff_pause_user(v_actor, p_organization,
                (p_args ->> 'user_id')::uuid, (p_args ->> 'paused')::boolean, v_reason);
        when 'set_mode' then
            a.status := tokenlib.staff_set_mode(v_actor, p_organization, p_args ->> 'mode',
                (p_args ->> 'until')::timestamptz, v_reason);
        when 'set_request_limit' then
            a.status := tokenlib.staff_set_request_limit(v_actor, p_organization,
                (p_args ->> 'requests_per_minute')::integer, v_reason);
        when 'create_key' then
            a.status := tokenlib.staff_create_key(v_actor, (p_args ->> 'id')::uuid, p_organization,
                p_args ->> 'name', p_args ->> 'start', decode(p_args ->> 'digest', 'hex'),
                array(select jsonb_array_elements_text(p_args -> 'scopes')),
                (p_args ->> 'expires_at')::timestamptz, (p_args ->> 'requests_per_minute')::integer,
                (p_args ->> 'seconds_between_requests')::numeric,
                (p_args ->> 'tokens_per_request')::bigint,
                (p_args ->> 'output_units_per_request')::bigint,
                (p_args ->> 'limit_users')::boolean, v_reason);
            perform tokenlib.require_no_more(k.id, (p_args ->> 'id')::uuid);
        when 'rotate_key' then
            -- The new secret is the caller's to use.
            perform tokenlib.require_no_more(k.id, (p_args ->> 'id')::uuid);
            a.status := tokenlib.staff_rotate_key(v_actor, (p_args ->> 'id')::uuid,
                p_args ->> 'start', decode(p_args ->> 'digest', 'hex'),
                make_interval(secs => (p_args ->> 'overlap_seconds')::double precision), v_reason);
        when 'revoke_key' then
            a.status := tokenlib.staff_revoke_key(v_actor, (p_args ->> 'id')::uuid, v_reason);
    end case;
    if a.status <> 'ok' then
        return;
    end if;
    if v_scope = 'admin' then
        a.organization_id := coalesce(a.organization_id, v_target);
        a.id := coalesce(a.id, (p_args ->> 'id')::uuid);
        a.text := coalesce(a.text, p_args ->> 'start');
    end if;
    v_now := tokenlib.clock();
    insert into public.ai_token_api_requests (organization_id, caller_id, idempotency_key,
        request_hash, verb, subject_id, answer, created_at)
    values (v_place, p_caller, p_key, p_hash, p_verb, a.id, jsonb_strip_nulls(to_jsonb(a)), v_now)
    on conflict (organization_id, caller_id, idempotency_key)
        do update set subject_id = excluded.subject_id, answer = excluded.answer,
            created_at = excluded.created_at;
    -- The table stays short without a worker: who adds one takes away two that are over. On Citus two
    -- of everybody cannot be found; there the refresh of everybody does it.
    if current_setting('citus.propagate_set_commands', true) is distinct from 'local' then
        delete from public.ai_token_api_requests where ctid = any (array(
            select ctid from public.ai_token_api_requests where created_at < v_now - interval '7 days'
            order by created_at limit 2 for update skip locked));
    end if;
    if p_verb in ('deduct', 'reserve') then
        select r.name, r.allowed, greatest(r.allowed - r.used, 0),
            extract(epoch from coalesce(r.first_at, v_now) + interval '1 minute' - v_now)
        into window_name, window_allowed, window_left, window_ends_after
        from tokenlib.request_windows(p_organization, case when v_limits then p_user end, k.id, v_now)
            as r
        order by r.allowed - r.used limit 1;
    end if;
end
$$;
