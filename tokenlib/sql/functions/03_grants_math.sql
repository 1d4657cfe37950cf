-- Grants and the usage that burns them. A charge does not touch grant rows: what it used waits in
-- ai_tokens.pending and is drawn whenever the set of grants changes, in burn order: soonest to
-- expire, then oldest. Between two changes the set is constant, so the order of charges inside does
-- not matter. A live hold draws after the charges; what is released counts as never taken.
-- Always: sum(remaining of open, arrived grants) = balance + pending + holds not yet drawn.

create function tokenlib.draw(p_organization uuid, p_token_type text, p_tokens bigint) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    g record;
    v_left bigint := p_tokens;
    v_take bigint;
    v_drawn jsonb := '[]';
begin
    if v_left = 0 then
        return v_drawn;
    end if;
    for g in
        select id, remaining from public.ai_token_grants
        where organization_id = p_organization and token_type = p_token_type
            and closed_at is null and arrived_at is not null and remaining > 0
        order by expires_at nulls last, effective_at, kind <> 'allowance', created_at, id
    loop
        v_take := least(g.remaining, v_left);
        update public.ai_token_grants set used = used + v_take, remaining = remaining - v_take
        where organization_id = p_organization and id = g.id;
        v_drawn := v_drawn || jsonb_build_array(jsonb_build_array(g.id, v_take));
        v_left := v_left - v_take;
        exit when v_left = 0;
    end loop;
    if v_left > 0 then
        raise exception 'grants of % % fall short of its usage by %', p_organization, p_token_type,
            v_left using errcode = 'TK001', hint = 'Run tokenlib verify.';
    end if;
    return v_drawn;
end
$$;

-- Draws all that waits: the pending usage, then each live hold. Call before the set changes.
create function tokenlib.draw_pending(w public.ai_tokens) returns public.ai_tokens
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    r record;
    v_drawn jsonb;
begin
    perform tokenlib.draw(w.organization_id, w.token_type, w.pending);
    w.pending := 0;
    for r in
        select id, tokens from public.ai_token_reservations
        where organization_id = w.organization_id and token_type = w.token_type
            and state = 'held' and drawn is null and tokens > 0
        order by created_at, id
    loop
        v_drawn := tokenlib.draw(w.organization_id, w.token_type, r.tokens);
        update public.ai_token_reservations set drawn = v_drawn
        where organization_id = w.organization_id and id = r.id;
    end loop;
    return w;
end
$$;

-- Gives tokens that a hold had drawn back to their grants, latest drawn first. Returns how many
-- found their grant still open; the others have expired with it.
create function tokenlib.undraw(p_organization uuid, p_drawn jsonb, p_tokens bigint) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    d record;
    g public.ai_token_grants;
    v_left bigint := p_tokens;
    v_take bigint;
    v_room bigint;
    v_returned bigint := 0;
begin
    for d in
        select (value ->> 0)::uuid as grant_id, (value ->> 1)::bigint as tokens
        from jsonb_array_elements(p_drawn) with ordinality order by ordinality desc
    loop
        exit when v_left = 0;
        v_take := least(d.tokens, v_left);
        v_left := v_left - v_take;
        select * into g from public.ai_token_grants
        where organization_id = p_organization and id = d.grant_id;
        if g.closed_at is not null then
            continue;
        end if;
        -- After a downgrade the allowance may be smaller than what was used of it.
        v_room := least(v_take, greatest(0, g.amount - g.used + v_take) - g.remaining);
        update public.ai_token_grants
        set used = used - v_take, used_before = least(used_before, used - v_take),
            remaining = remaining + v_room
        where organization_id = p_organization and id = d.grant_id;
        v_returned := v_returned + v_room;
    end loop;
    return v_returned;
end
$$;

-- The allowance of one wallet per period; null means unlimited. A contract of the organization wins
-- over its plan; `shared` has none.
create function tokenlib.allowance(p_organization uuid, p_plan text, p_token_type text) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_allowance bigint;
begin
    select allowance into v_allowance from public.ai_token_organization_allowances
    where organization_id = p_organization and token_type = p_token_type;
    if found then
        return v_allowance;
    end if;
    select allowance into v_allowance from public.ai_token_allowances
    where plan = p_plan and token_type = p_token_type;
    if found then
        return v_allowance;
    end if;
    return 0;
end
$$;
