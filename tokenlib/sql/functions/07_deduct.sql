-- Appends a charge to the log and moves the wallet in hand. p_held: what its reservation held, null
-- for a direct charge; p_returned: what of it goes back to the balance.
create function tokenlib.append_usage(
    a tokenlib.answer, w public.ai_tokens, p_units bigint, p_metadata jsonb, p_key text, p_hash bytea,
    p_reservation uuid default null, p_held bigint default 0, p_returned bigint default 0
) returns tokenlib.answer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    l public.ai_token_usage_log;
begin
    w.balance := w.balance + case when p_reservation is null then -a.tokens else p_returned end;
    w.reserved := w.reserved - p_held;
    w.total_used := w.total_used + a.tokens;
    w.log_number := w.log_number + 1;

    l.id := gen_random_uuid();
    l.organization_id := w.organization_id;
    l.user_id := a.user_id;
    l.token_type := w.token_type;
    l.feature_used := a.feature;
    l.tokens_deducted := a.tokens;
    l.remaining_balance := w.balance;
    l.metadata := p_metadata;
    l.created_at := a.created_at;
    l.number := w.log_number;
    l.units := p_units;
    l.tokens_waived := a.waived;
    l.reservation_id := p_reservation;
    l.held := p_held;
    l.returned := p_returned;
    l.idempotency_key := p_key;
    l.request_hash := p_hash;
    l.metadata_digest := tokenlib.digest(p_metadata);
    l.hash_version := 1;
    l.hash := tokenlib.usage_hash(w.log_hash, l);
    insert into public.ai_token_usage_log values (l.*);

    update public.ai_tokens set balance = w.balance, reserved = w.reserved,
        total_used = w.total_used, total_allocated = w.balance + w.reserved + w.total_used,
        pending = w.pending, due_at = w.due_at, last_used_at = a.created_at,
        updated_at = a.created_at, last_entry_at = a.created_at,
        log_number = w.log_number, log_hash = l.hash,
        event_number = w.event_number, event_hash = w.event_hash
    where organization_id = w.organization_id and id = w.id;

    a.status := 'ok';
    a.id := l.id;
    a.token_type := w.token_type;
    a.balance := w.balance;
    a.until := w.refresh_date;
    return a;
end
$$;

-- Charges a feature, all or nothing: balance, total used and log row in one commit. A replay of the
-- key returns the first answer.
create function tokenlib.deduct(
    p_organization uuid, p_user uuid, p_feature text, p_units bigint, p_metadata jsonb,
    p_key text, p_limits boolean, p_mode text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    a tokenlib.answer;
    w public.ai_tokens;
    v_admitted record;
    v_hash bytea := case when p_key is not null
        then tokenlib.request_hash(p_user, p_feature, p_units, p_metadata) end;
begin
    select * into v_admitted from tokenlib.admit(p_organization, p_user, p_feature, p_units,
        p_metadata, p_key, v_hash, p_limits, p_mode, false);
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
    return tokenlib.append_usage(a, w, p_units, p_metadata, p_key, v_hash);
end
$$;
