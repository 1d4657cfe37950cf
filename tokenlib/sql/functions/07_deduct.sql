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
    v_admitted := tokenlib.admit(p_organization, p_user, p_feature, p_units, p_metadata, p_key,
        v_hash, p_limits, p_mode, false);
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
