-- Appends a charge to the log and moves the wallet in hand. p_held: what its reservation held, null
-- for a direct charge; p_returned: what of it goes back to the balance.
create function tokenlib.append_usage(
    a tokenlib.answer, w public.ai_tokens, p_units bigint, p_metadata jsonb, p_key text, p_hash bytea,
    p_reservation uuid default null, p_held bigint default 0, p_returned bigint default 0
) returns tokenlib.answer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_id constant uuid := gen_random_uuid();
    v_number constant bigint := w.log_number + 1;
    v_balance constant bigint := w.balance
        + case when p_reservation is null then -a.tokens else p_returned end;
    v_digest constant bytea := tokenlib.digest(p_metadata);
    v_hash constant bytea := tokenlib.charge_hash(w.log_hash, 1::smallint, v_id, w.organization_id,
        w.token_type, v_number, a.user_id, a.feature, p_units, a.tokens, a.waived, v_balance,
        p_reservation, p_held, p_returned, p_key, p_hash, v_digest, a.created_at);
begin
    update public.ai_tokens set balance = v_balance, reserved = w.reserved - p_held,
        total_used = w.total_used + a.tokens,
        total_allocated = v_balance + w.reserved - p_held + w.total_used + a.tokens,
        pending = w.pending, due_at = w.due_at, last_used_at = a.created_at,
        updated_at = a.created_at, last_entry_at = a.created_at,
        log_number = v_number, log_hash = v_hash,
        event_number = w.event_number, event_hash = w.event_hash
    where organization_id = w.organization_id and id = w.id;
    insert into public.ai_token_usage_log (id, organization_id, user_id, token_type, feature_used,
        tokens_deducted, remaining_balance, metadata, created_at, number, units, tokens_waived,
        reservation_id, held, returned, idempotency_key, request_hash, metadata_digest, hash_version,
        hash)
    values (v_id, w.organization_id, a.user_id, w.token_type, a.feature, a.tokens, v_balance,
        p_metadata, a.created_at, v_number, p_units, a.waived, p_reservation, p_held, p_returned,
        p_key, p_hash, v_digest, 1, v_hash);
    a.status := 'ok';
    a.id := v_id;
    a.token_type := w.token_type;
    a.balance := v_balance;
    a.until := w.refresh_date;
    return a;
end
$$;

-- Charges a feature, all or nothing: balance, total used and log row in one commit. A replay of the
-- key returns the first answer.
-- This is the charge to which every rule says yes at a glance, as most do: two statements, of which the
-- first takes the locks, and the second reads what decides after them and writes. Whatever is not so
-- plain, or not known to be, it leaves as it is to tokenlib.deduct_by_rule, which decides.
create function tokenlib.deduct(
    p_organization uuid, p_user uuid, p_feature text, p_units bigint, p_metadata jsonb,
    p_key text, p_limits boolean, p_mode text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
-- As tokenlib.admit. And one plan: without a key or limits a plan of its own would look cheaper each
-- time than it is to make.
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
    v_fits constant boolean := tokenlib.check_input(p_units, p_metadata, p_key, p_mode);
    v_locked constant boolean := tokenlib.lock_request(
        p_organization, case when p_limits then p_user end, p_key);
    v_hash constant bytea := case when p_key is not null
        then tokenlib.request_hash(p_user, p_feature, p_units, p_metadata) end;
    v_digest constant bytea := tokenlib.digest(p_metadata);
    v_id constant uuid := gen_random_uuid();
    v_wallet uuid;
    v_type text;
    v_plan text;
    v_cost bigint;
    v_until timestamptz;
    v_now timestamptz;
    v_balance bigint;
begin
    -- On Citus these statements would be planned anew for each charge. Where the key has a hold, that
    -- may lie on a wallet that comes first.
    if current_setting('citus.propagate_set_commands', true) is distinct from 'local' then
        select t.id, t.token_type, t.plan, c.cost * p_units, t.refresh_date, t.last_entry_at
        into v_wallet, v_type, v_plan, v_cost, v_until, v_now
        from public.ai_token_features c
        join public.ai_tokens t on t.organization_id = p_organization and t.token_type = c.token_type
        where c.feature = p_feature and t.event_number > 0 and t.balance >= c.cost * p_units
            and (t.allowance = 0) is not true and (p_mode is null or p_mode = 'enforce')
            and (p_key is null or not exists (select from public.ai_token_reservations
                where organization_id = p_organization and idempotency_key = p_key
                    and state in ('held', 'deducted') and state <> 'deducted'))
        for no key update of t;
    end if;
    if v_wallet is not null then
        v_now := greatest(tokenlib.clock(), v_now);
        with wallet as (
            update public.ai_tokens w set balance = w.balance - v_cost,
                total_used = w.total_used + v_cost, pending = w.pending + v_cost,
                last_used_at = v_now, updated_at = v_now, last_entry_at = v_now,
                log_number = w.log_number + 1,
                log_hash = tokenlib.charge_hash(w.log_hash, 1::smallint, v_id, p_organization,
                    v_type, w.log_number + 1, p_user, p_feature, p_units, v_cost, 0,
                    w.balance - v_cost, null, 0, 0, p_key, v_hash, v_digest, v_now)
            where w.organization_id = p_organization and w.id = v_wallet and w.due_at > v_now
                and v_plan = (
                    select o.plan from public.organizations o
                    join public.ai_token_parameters p on p.only_row
                    left join public.ai_token_organization_settings s on s.organization_id = o.id
                    left join public.ai_token_user_settings u
                        on u.organization_id = o.id and u.user_id = p_user
                    where o.id = p_organization
                        and (select organization_id from public.user_profiles where id = p_user)
                            = p_organization
                        and (p.mode = 'enforce' or p.mode_until <= v_now)
                        and (s.mode is null or s.mode = 'enforce' or s.mode_until <= v_now)
                        and (s.status is null or s.status = 'active') and u.paused_at is null)
                and (p_key is null
                    or not exists (select from public.ai_token_usage_log
                        where organization_id = p_organization and idempotency_key = p_key)
                    and not exists (select from public.ai_token_events
                        where organization_id = p_organization and idempotency_key = p_key)
                    and not exists (select from public.ai_token_archived_keys
                        where organization_id = p_organization and idempotency_key = p_key))
                and (not p_limits or (
                    select (l.tokens_per_request < v_cost) is not true
                        and (l.output_units_per_request < (p_metadata ->> 'output_units')::bigint
                            ) is not true
                        and not exists (select from public.ai_token_refusals
                            where organization_id = p_organization and user_id = p_user
                                and rule = 'failed_attempt'
                                and last_at > v_now - interval '10 minutes')
                        -- Too few were ever made, or in the last minute.
                        and ((l.seconds_between_requests > 0) is not true
                                and (l.requests_per_minute <= (
                                    select sum(log_number + event_number) from public.ai_tokens
                                    where organization_id = p_organization)) is not true
                            or tokenlib.requests_left(p_organization, p_user, l.requests_per_minute,
                                l.seconds_between_requests, v_now,
                                case when l.requests_per_minute <= 100 then 100 else 1 end) > 0)
                    from public.ai_token_limits l
                    where l.scope in (p_organization, '00000000-0000-0000-0000-000000000000')
                    order by l.scope desc limit 1))
            returning w.balance, w.log_number, w.log_hash
        )
        insert into public.ai_token_usage_log (id, organization_id, user_id, token_type, feature_used,
            tokens_deducted, remaining_balance, metadata, created_at, number, units, tokens_waived,
            held, returned, idempotency_key, request_hash, metadata_digest, hash_version, hash)
        select v_id, p_organization, p_user, v_type, p_feature, v_cost, balance, p_metadata, v_now,
            log_number, p_units, 0, 0, 0, p_key, v_hash, v_digest, 1, log_hash
        from wallet
        returning remaining_balance into v_balance;
    end if;
    if v_balance is not null then
        return row('ok', v_id, p_organization, p_user, p_feature, v_type, v_cost, 0, v_balance, v_cost,
            v_balance + v_cost, v_plan, null, null, null, v_now, v_until, false, 'enforce', null
            )::tokenlib.answer;
    end if;
    return tokenlib.deduct_by_rule(p_organization, p_user, p_feature, p_units, p_metadata, p_key,
        v_hash, p_limits, p_mode);
end
$$;

-- Any charge: decided rule by rule, and put on record where one says no. Not by one plan: on Citus what
-- has no values has none.
create function tokenlib.deduct_by_rule(
    p_organization uuid, p_user uuid, p_feature text, p_units bigint, p_metadata jsonb,
    p_key text, p_hash bytea, p_limits boolean, p_mode text
) returns tokenlib.answer
language plpgsql set search_path = pg_catalog, pg_temp set plan_cache_mode = auto as $$
declare
    a tokenlib.answer;
    w public.ai_tokens;
    v_admitted record;
begin
    v_admitted := tokenlib.admit(p_organization, p_user, p_feature, p_units, p_metadata, p_key,
        p_hash, p_limits, p_mode, false);
    a := v_admitted.a;
    w := v_admitted.w;
    if a.status = 'already_spent' then
        a.status := 'ok';
        a.replayed := true;
        return a;
    elsif a.status <> 'ok' then
        return a;
    end if;
    w.pending := w.pending + a.tokens;
    return tokenlib.append_usage(a, w, p_units, p_metadata, p_key, p_hash);
end
$$;
