-- Adds tokens: a purchase, a gift, an adjustment. What is granted beyond the allowance survives a
-- refresh and a plan change until it expires. A replay of the key returns the first answer.
create function tokenlib.grant_tokens(
    p_organization uuid, p_token_type text, p_amount bigint, p_kind text, p_source text,
    p_effective timestamptz, p_expires timestamptz, p_actor text, p_reason text, p_key text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off as $$
declare
    a tokenlib.answer;
    w public.ai_tokens;
    e public.ai_token_events;
    v_now timestamptz;
    v_effective timestamptz;
    v_hash bytea;
begin
    if p_amount is null or p_amount < 1 or p_amount > 1000000000 then
        raise exception 'must be a whole number from 1 to 1000000000, not %', p_amount
            using errcode = '22023', column = 'amount';
    end if;
    if p_kind is null or p_kind not in ('purchase', 'gift', 'adjustment') then
        raise exception 'must be purchase, gift or adjustment, not %', p_kind
            using errcode = '22023', column = 'kind';
    end if;
    if not exists (select from public.ai_token_types where token_type = p_token_type) then
        a.status := 'unknown_token_type';
        return a;
    end if;
    a.organization_id := p_organization;
    a.token_type := p_token_type;
    a.replayed := false;
    if p_key is not null then
        perform tokenlib.check_input(1, null, p_key);
        v_hash := tokenlib.digest(jsonb_build_array('grant', p_token_type, p_amount, p_kind,
            p_source, tokenlib.microseconds(p_effective), tokenlib.microseconds(p_expires)));
    end if;
    w := tokenlib.open_wallet_for(p_organization, p_token_type, p_key);
    if w.id is null then
        a.status := 'unknown_organization';
        return a;
    end if;
    if p_key is not null then
        select * into e from public.ai_token_events
        where organization_id = p_organization and idempotency_key = p_key;
        if found then
            a.status := case when e.request_hash = v_hash then 'ok' else 'conflict' end;
            a.replayed := true;
            a.id := e.subject_id;
            a.tokens := p_amount;
            a.balance := e.balance_after;
            a.created_at := e.effective_at;
            a.until := p_expires;
            return a;
        end if;
        a.status := 'ok';
        a := tokenlib.find_key(a, p_key, v_hash);
        if a.status <> 'ok' then
            a.status := 'conflict';
            return a;
        end if;
    end if;
    v_now := w.last_entry_at;
    v_effective := greatest(coalesce(p_effective, v_now), v_now);
    if p_expires <= v_effective then
        raise exception 'must be later than the time the grant takes effect (%)', v_effective
            using errcode = '22023', column = 'expires_at';
    end if;
    if v_effective <= v_now then
        w := tokenlib.draw_pending(w);
    end if;
    a.id := gen_random_uuid();
    insert into public.ai_token_grants (id, organization_id, token_type, kind, source, amount,
        remaining, created_at, effective_at, arrived_at, expires_at)
    values (a.id, p_organization, p_token_type, p_kind, p_source, p_amount, p_amount, v_now,
        v_effective, case when v_effective <= v_now then v_now end, p_expires);
    w := tokenlib.append_event(w,
        case when v_effective <= v_now then 'grant' else 'grant_scheduled' end, v_now,
        case when v_effective <= v_now then p_amount else 0 end,
        p_actor => p_actor, p_reason => p_reason, p_subject => a.id, p_effective => v_effective,
        p_data => jsonb_build_object('kind', p_kind, 'source', p_source, 'amount', p_amount,
            'expires_at', tokenlib.utc(p_expires)),
        p_key => p_key, p_request_hash => v_hash);
    w.due_at := tokenlib.next_due(w);
    perform tokenlib.store_wallet(w, v_now);
    a.status := 'ok';
    a.tokens := p_amount;
    a.balance := w.balance;
    a.created_at := v_effective;
    a.until := p_expires;
    return a;
end
$$;
