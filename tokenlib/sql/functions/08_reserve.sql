-- Holds the cost of a feature while the AI call runs, outside any transaction. The hold ends by
-- itself after p_life. p_id is the caller's name for it: who lost the answer asks again with the same
-- key and the same id, and gets the first answer; anybody else's live hold is in_progress.
create function tokenlib.reserve(
    p_organization uuid, p_user uuid, p_feature text, p_units bigint, p_metadata jsonb,
    p_key text, p_life interval, p_limits boolean, p_mode text, p_id uuid
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off as $$
declare
    a tokenlib.answer;
    w public.ai_tokens;
    v_admitted record;
    v_life interval;
    v_hash bytea := case when p_key is not null
        then tokenlib.request_hash(p_user, p_feature, p_units, p_metadata) end;
begin
    if p_life is not null and (p_life <= interval '0' or p_life > interval '1 day') then
        raise exception 'must be more than 0 s and at most 1 day'
            using errcode = '22023', column = 'hold_for';
    end if;
    v_admitted := tokenlib.admit(p_organization, p_user, p_feature, p_units, p_metadata, p_key,
        v_hash, p_limits, p_mode, false);
    a := v_admitted.a;
    w := v_admitted.w;
    if a.status = 'in_progress' and a.id = p_id then
        select r.token_type, r.tokens, r.waived, r.created_at, e.balance_after
        into strict a.token_type, a.tokens, a.waived, a.created_at, a.balance
        from public.ai_token_reservations r
        join public.ai_token_events e on e.organization_id = r.organization_id
            and e.created_at = r.created_at and e.kind = 'reserve' and e.subject_id = r.id
        where r.organization_id = p_organization and r.id = p_id;
        a.status := 'ok';
        a.replayed := true;
        return a;
    elsif a.status <> 'ok' then
        return a;
    end if;
    select coalesce(p_life, hold_life) into strict v_life from public.ai_token_parameters;
    a.id := p_id;
    if p_id is null or exists (select from public.ai_token_reservations
        where organization_id = p_organization and id = p_id) then
        a.id := gen_random_uuid(); -- no name, or a hold of that name that is over already
    end if;
    a.until := a.created_at + v_life;
    insert into public.ai_token_reservations (id, organization_id, user_id, token_type, feature,
        units, tokens, waived, idempotency_key, request_hash, metadata, created_at, expires_at,
        limited)
    values (a.id, p_organization, p_user, w.token_type, p_feature, p_units, a.tokens, a.waived,
        p_key, v_hash, p_metadata, a.created_at, a.until, p_limits and a.mode = 'enforce');
    w := tokenlib.append_event(w, 'reserve', a.created_at, -a.tokens, a.tokens,
        p_actor => p_user::text, p_reason => p_feature, p_subject => a.id,
        p_data => jsonb_build_object('units', p_units, 'waived', a.waived,
            'idempotency_key', p_key, 'request_hash', encode(v_hash, 'hex'),
            'metadata_digest', encode(tokenlib.digest(p_metadata), 'hex'),
            'expires_at', tokenlib.utc(a.until)));
    w.due_at := least(w.due_at, a.until);
    perform tokenlib.store_wallet(w, a.created_at);
    a.balance := w.balance;
    return a;
end
$$;

-- Finds a reservation and locks its wallet, up to date; so an expired hold is over even if nobody
-- has touched it since.
create function tokenlib.open_reservation(
    p_organization uuid, p_reservation uuid, out r public.ai_token_reservations,
    out w public.ai_tokens
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_token_type text;
begin
    select token_type into v_token_type from public.ai_token_reservations
    where organization_id = p_organization and id = p_reservation;
    if not found then
        return;
    end if;
    w := tokenlib.open_wallet(p_organization, v_token_type);
    select * into strict r from public.ai_token_reservations
    where organization_id = p_organization and id = p_reservation;
end
$$;

-- Charges what was used of a hold, at most what was held; the rest goes back. A replay returns the
-- first answer. Refused where the answer is larger than the limits allow that the hold was made under.
create function tokenlib.deduct_reservation(
    p_organization uuid, p_reservation uuid, p_units bigint, p_metadata jsonb
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off as $$
declare
    a tokenlib.answer;
    r public.ai_token_reservations;
    w public.ai_tokens;
    l public.ai_token_usage_log;
    v_opened record;
    v_units bigint;
    v_cost bigint;
    v_back bigint;
begin
    select * into v_opened from tokenlib.open_reservation(p_organization, p_reservation);
    r := v_opened.r;
    w := v_opened.w;
    a.organization_id := p_organization;
    a.id := p_reservation;
    if r.id is null then
        a.status := 'unknown_reservation';
        return a;
    elsif w.id is null then
        a.status := 'unknown_organization';
        return a;
    end if;
    a.user_id := r.user_id;
    a.feature := r.feature;
    a.token_type := r.token_type;
    a.replayed := r.state = 'deducted';
    if r.state = 'deducted' then
        select * into l from public.ai_token_usage_log
        where organization_id = p_organization and reservation_id = p_reservation;
        if not found then
            a.status := 'reservation_over';
            a.text := 'deducted and archived';
            return a;
        end if;
        a.status := 'ok';
        a.id := l.id;
        a.tokens := l.tokens_deducted;
        a.waived := l.tokens_waived;
        a.balance := l.remaining_balance;
        a.created_at := l.created_at;
        return a;
    elsif r.state <> 'held' then
        a.status := 'reservation_over';
        a.text := r.state;
        return a;
    end if;
    v_units := coalesce(p_units, r.units);
    perform tokenlib.check_input(v_units, p_metadata, null);
    if v_units > r.units then
        raise exception 'must be at most the % that are held, not %', r.units, v_units
            using errcode = '22023', column = 'units';
    end if;
    if r.limited and p_metadata ? 'output_units' then
        -- Known only now. The hold stays, for who wants to charge less or give it back.
        a.allowed := tokenlib.output_limit(p_organization, p_metadata);
        if a.allowed is not null then
            a.status := 'rate_limited';
            a.limit_name := 'output_units_per_request';
            perform tokenlib.record_refusal(a, w.last_entry_at);
            return a;
        end if;
    end if;
    v_cost := (r.tokens + r.waived) / r.units * v_units;
    a.tokens := case when r.waived > 0 then 0 else v_cost end;
    a.waived := case when r.waived > 0 then v_cost else 0 end;
    a.created_at := w.last_entry_at;
    v_back := tokenlib.give_back(r, r.tokens - a.tokens);
    if r.drawn is null then
        w.pending := w.pending + a.tokens;
    end if;
    update public.ai_token_reservations set state = 'deducted', resolved_at = a.created_at
    where organization_id = p_organization and id = p_reservation;
    return tokenlib.append_usage(a, w, v_units, coalesce(p_metadata, r.metadata), r.idempotency_key,
        r.request_hash, r.id, r.tokens, v_back);
end
$$;

-- Gives a hold back. Releasing twice is the same as once.
create function tokenlib.release(
    p_organization uuid, p_reservation uuid, p_actor text, p_reason text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off as $$
declare
    a tokenlib.answer;
    r public.ai_token_reservations;
    w public.ai_tokens;
    v_opened record;
    v_now timestamptz;
    v_back bigint;
begin
    select * into v_opened from tokenlib.open_reservation(p_organization, p_reservation);
    r := v_opened.r;
    w := v_opened.w;
    a.organization_id := p_organization;
    a.id := p_reservation;
    if r.id is null then
        a.status := 'unknown_reservation';
        return a;
    elsif w.id is null then
        a.status := 'unknown_organization';
        return a;
    end if;
    a.user_id := r.user_id;
    a.feature := r.feature;
    a.token_type := r.token_type;
    a.tokens := r.tokens;
    a.replayed := r.state = 'released';
    if r.state = 'held' then
        v_now := w.last_entry_at;
        v_back := tokenlib.give_back(r, r.tokens);
        update public.ai_token_reservations set state = 'released', resolved_at = v_now
        where organization_id = p_organization and id = p_reservation;
        w := tokenlib.append_event(w, 'release', v_now, v_back, -r.tokens,
            p_actor => coalesce(p_actor, r.user_id::text), p_reason => p_reason, p_subject => r.id,
            p_data => jsonb_build_object('lapsed', r.tokens - v_back)
                -- Whose it was, where somebody else decided.
                || case when p_actor <> r.user_id::text
                    then jsonb_build_object('user_id', r.user_id) else '{}' end);
        perform tokenlib.store_wallet(w, v_now);
        a.created_at := v_now;
    elsif r.state <> 'released' then
        a.status := 'reservation_over';
        a.text := r.state;
        return a;
    end if;
    a.status := 'ok';
    a.balance := w.balance;
    return a;
end
$$;
