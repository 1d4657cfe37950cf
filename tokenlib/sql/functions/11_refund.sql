-- Gives back a charge, once, with its own entry. Within the period it lowers what was used, and the
-- tokens return to the grants burnt last; later it is a grant that lives one period. A replay of the
-- key returns the first answer; any other refund of the same charge is already_refunded.
create function tokenlib.refund(
    p_organization uuid, p_usage uuid, p_actor text, p_reason text, p_key text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set timezone = 'UTC'
set enable_seqscan = off set jit = off as $$
declare
    a tokenlib.answer;
    l public.ai_token_usage_log;
    e public.ai_token_events;
    w public.ai_tokens;
    g record;
    v_hash bytea;
    v_now timestamptz;
    v_left bigint;
    v_take bigint;
    v_in_period boolean;
    v_period interval;
begin
    if coalesce(btrim(p_reason), '') = '' then
        raise exception 'must say why the charge is given back'
            using errcode = '22023', column = 'reason';
    end if;
    perform tokenlib.check_input(1, null, p_key);
    a.organization_id := p_organization;
    a.id := p_usage;
    a.replayed := false;
    select * into l from public.ai_token_usage_log
    where organization_id = p_organization and id = p_usage;
    if not found then
        a.status := 'unknown_usage';
        select max((data ->> 'last_at')::timestamptz) into a.until from public.ai_token_events
        where organization_id = p_organization and kind = 'archived';
        return a;
    end if;
    w := tokenlib.open_wallet_for(p_organization, l.token_type, p_key);
    if w.id is null then
        a.status := 'unknown_organization';
        return a;
    end if;
    a.user_id := l.user_id;
    a.feature := l.feature_used;
    a.token_type := l.token_type;
    a.tokens := l.tokens_deducted;
    select * into e from public.ai_token_events
    where organization_id = p_organization and subject_id = p_usage and kind = 'refund';
    if found then
        a.status := case when e.idempotency_key = p_key then 'ok' else 'already_refunded' end;
        a.replayed := true;
        a.balance := e.balance_after;
        a.created_at := e.created_at;
        return a;
    elsif l.tokens_deducted = 0 then
        a.status := 'nothing_to_refund';
        return a;
    end if;
    if p_key is not null then
        v_hash := tokenlib.digest(jsonb_build_array('refund', p_usage));
        a.status := 'ok';
        if (tokenlib.find_key(a, p_key, v_hash)).status <> 'ok' then
            a.status := 'conflict';
            return a;
        end if;
    end if;
    select period into strict v_period from public.ai_token_parameters;
    v_now := w.last_entry_at;
    v_left := l.tokens_deducted;
    v_in_period := l.created_at >= w.period_start and w.total_used >= l.tokens_deducted;
    if v_in_period then
        v_take := least(w.pending, v_left);
        w.pending := w.pending - v_take;
        v_left := v_left - v_take;
        if v_left > 0 then
            w := tokenlib.draw_pending(w);
        end if;
        for g in
            select id, least(v_left, used - used_before - coalesce((
                select sum((d.value ->> 1)::bigint) from public.ai_token_reservations r,
                    jsonb_array_elements(r.drawn) as d
                where w.reserved > 0 and r.organization_id = p_organization
                    and r.token_type = l.token_type and r.state = 'held'
                    and (d.value ->> 0)::uuid = x.id), 0)) as undrawable,
                amount, used
            from public.ai_token_grants x
            where organization_id = p_organization and token_type = l.token_type
                and closed_at is null and arrived_at is not null
            order by expires_at desc nulls first, effective_at desc, kind = 'allowance',
                created_at desc, id desc
        loop
            exit when v_left = 0;
            v_take := least(g.undrawable, v_left);
            -- An allowance cut below what was used of it has no room; a refund grant takes it.
            if v_take > 0 and g.used <= g.amount then
                update public.ai_token_grants
                set used = used - v_take, remaining = remaining + v_take
                where organization_id = p_organization and id = g.id;
                v_left := v_left - v_take;
            end if;
        end loop;
    else
        w := tokenlib.draw_pending(w);
    end if;
    if v_left > 0 then
        insert into public.ai_token_grants (organization_id, token_type, kind, source, amount,
            remaining, created_at, effective_at, arrived_at, expires_at)
        values (p_organization, l.token_type, 'refund', 'usage ' || l.id, v_left, v_left, v_now,
            v_now, v_now, v_now + v_period);
    end if;
    w := tokenlib.append_event(w, 'refund', v_now, l.tokens_deducted, 0,
        case when v_in_period then -l.tokens_deducted else 0 end,
        p_actor => p_actor, p_reason => p_reason, p_subject => l.id,
        p_data => jsonb_build_object('feature', l.feature_used, 'user_id', l.user_id),
        p_key => p_key, p_request_hash => v_hash);
    w.due_at := tokenlib.next_due(w);
    perform tokenlib.store_wallet(w, v_now);
    a.status := 'ok';
    a.balance := w.balance;
    a.created_at := v_now;
    return a;
end
$$;
