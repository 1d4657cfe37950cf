-- The decision: may this user run this feature now, and which wallet pays? In this order: advisory
-- locks, wallet lock, what is due, the key, then policy, limits, balance. A refusal is an answer, not
-- an exception: it is recorded and committed.

create function tokenlib.record_refusal(
    a tokenlib.answer, p_now timestamptz
) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    insert into public.ai_token_refusals (organization_id, user_id, feature, rule, minute, token_type,
        needed, available, first_at, last_at, data)
    values (a.organization_id, a.user_id, a.feature, a.status,
        date_trunc('minute', p_now, 'UTC'), a.token_type, a.needed, a.available, p_now, p_now,
        jsonb_strip_nulls(jsonb_build_object('plan', a.plan, 'limit', a.limit_name,
            'allowed', a.allowed, 'mode', nullif(a.mode, 'enforce'))))
    on conflict (organization_id, user_id, feature, rule, minute) do update set
        count = ai_token_refusals.count + 1, last_at = excluded.last_at,
        needed = excluded.needed, available = excluded.available, data = excluded.data;
end
$$;

-- What is this key, in every table that has keys? ok: free. Holds come first: a hold on another
-- wallet may be deducted between two of these statements, and is then in the log.
-- Here and wherever a key is looked up, `held` is said so that only the index of keys can answer: that
-- of live holds would read all that the organization has.
create function tokenlib.find_key(
    a tokenlib.answer, p_key text, p_hash bytea
) returns tokenlib.answer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    l record;
begin
    select id, request_hash, expires_at into l from public.ai_token_reservations
    where organization_id = a.organization_id and idempotency_key = p_key
        and state in ('held', 'deducted') and state <> 'deducted';
    if found then
        a.status := case when l.request_hash = p_hash then 'in_progress' else 'conflict' end;
        a.id := l.id;
        a.until := l.expires_at;
        return a;
    end if;
    select id, user_id, feature_used, token_type, tokens_deducted, tokens_waived, remaining_balance,
        request_hash, created_at
    into l from public.ai_token_usage_log
    where organization_id = a.organization_id and idempotency_key = p_key;
    if found then
        a.status := case when l.request_hash = p_hash then 'already_spent' else 'conflict' end;
        a.id := l.id;
        a.user_id := l.user_id;
        a.feature := l.feature_used;
        a.token_type := l.token_type;
        a.tokens := l.tokens_deducted;
        a.waived := l.tokens_waived;
        a.balance := l.remaining_balance;
        a.created_at := l.created_at;
        return a;
    end if;
    -- What was charged under an archived key cannot be told any more; it was, and is not again.
    if exists (select from public.ai_token_events
            where organization_id = a.organization_id and idempotency_key = p_key)
        or exists (select from public.ai_token_archived_keys
            where organization_id = a.organization_id and idempotency_key = p_key) then
        a.status := 'conflict';
    end if;
    return a;
end
$$;

-- One name in an organization, until the end of the transaction; null locks nothing.
create function tokenlib.lock_key(p_organization uuid, p_key text) returns boolean
language plpgsql strict set search_path = pg_catalog, pg_temp as $$
begin
    return pg_advisory_xact_lock(
        hashtextextended(p_key, hashtextextended(p_organization::text, 0))) is not null;
end
$$;

-- Locks a key (if any) and the wallet that is asked. The hold of an earlier request with this key may
-- lie on another wallet and be over without anybody having touched it since: then that wallet is
-- brought up to date too, in lock order, and the key is free.
create function tokenlib.open_wallet_for(
    p_organization uuid, p_token_type text, p_key text
) returns public.ai_tokens
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    w public.ai_tokens;
    v_other text;
begin
    if p_key is null then
        return tokenlib.open_wallet(p_organization, p_token_type);
    end if;
    perform tokenlib.lock_key(p_organization, 'key ' || p_key);
    select token_type into v_other from public.ai_token_reservations
    where organization_id = p_organization and idempotency_key = p_key
        and state in ('held', 'deducted') and state <> 'deducted'
        and token_type <> p_token_type and expires_at <= tokenlib.clock();
    if (v_other = 'shared', v_other) < (p_token_type = 'shared', p_token_type) then
        perform tokenlib.open_wallet(p_organization, v_other);
        v_other := null;
    end if;
    w := tokenlib.open_wallet(p_organization, p_token_type);
    if v_other is not null then
        perform tokenlib.open_wallet(p_organization, v_other);
    end if;
    return w;
end
$$;

-- What makes two requests under one key the same request.
create function tokenlib.request_hash(
    p_user uuid, p_feature text, p_units bigint, p_metadata jsonb
) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return sha256(convert_to(
        jsonb_build_array(p_user, p_feature, p_units, p_metadata)::text, 'UTF8'));
end
$$;

-- True, or an error that names the field.
create function tokenlib.check_input(
    p_units bigint, p_metadata jsonb, p_key text, p_mode text default null
) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    if p_units is null or p_units < 1 or p_units > 1000000 then
        raise exception 'must be a whole number from 1 to 1000000, not %', p_units
            using errcode = '22023', column = 'units';
    end if;
    if octet_length(p_metadata::text) > 16384 then
        raise exception 'must be at most 16384 bytes of JSON'
            using errcode = '22023', column = 'metadata';
    end if;
    if p_metadata ? 'output_units' then
        perform tokenlib.output_units(p_metadata);
    end if;
    if p_key is not null and length(p_key) not between 1 and 255 then
        raise exception 'must have 1 to 255 characters'
            using errcode = '22023', column = 'idempotency_key';
    end if;
    if p_mode not in ('enforce', 'log_only', 'off') then
        raise exception 'must be enforce, log_only or off, not %', p_mode
            using errcode = '22023', column = 'mode';
    end if;
    return true;
end
$$;

-- Locks user and key of a request; null locks nothing. True, so that a declaration can hold it.
create function tokenlib.lock_request(p_organization uuid, p_user uuid, p_key text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_seed constant bigint := hashtextextended(p_organization::text, 0);
begin
    return (p_user is null
            or pg_advisory_xact_lock(hashtextextended('user ' || p_user, v_seed)) is not null)
        and (p_key is null
            or pg_advisory_xact_lock(hashtextextended('key ' || p_key, v_seed)) is not null);
end
$$;

-- Where a request did not find what it needs at a glance: opens the wallet's books, settles what is
-- due, frees the key whose hold is over. ok: look again; else what stands in the way.
create function tokenlib.bring_up(
    p_organization uuid, p_user uuid, p_feature text, p_units bigint, p_key text, p_hash bytea
) returns tokenlib.answer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    a tokenlib.answer;
    w public.ai_tokens;
begin
    a.organization_id := p_organization;
    a.user_id := p_user;
    a.feature := p_feature;
    a.replayed := false;
    a.status := 'ok';
    select token_type, cost * p_units into a.token_type, a.needed
    from public.ai_token_features where feature = p_feature;
    if not found then
        a.status := 'unknown_feature';
        return a;
    end if;
    w := tokenlib.open_wallet_for(p_organization, a.token_type, p_key);
    if w.id is null then
        a.status := 'unknown_organization';
        return a;
    end if;
    a.created_at := w.last_entry_at;
    a.plan := w.plan;
    a.available := w.balance;
    a.until := w.refresh_date;
    return case when p_key is null then a else tokenlib.find_key(a, p_key, p_hash) end;
end
$$;

-- Returns the answer and the wallet that pays, locked. status ok: the caller now writes the charge
-- or the hold. p_asking: only ask, for can_use; nothing is recorded.
create function tokenlib.admit(
    p_organization uuid, p_user uuid, p_feature text, p_units bigint, p_metadata jsonb,
    p_key text, p_hash bytea, p_limits boolean, p_mode text, p_asking boolean,
    out a tokenlib.answer, out w public.ai_tokens
)
language plpgsql set search_path = pg_catalog, pg_temp
-- A plan that was made while the log was empty would read all of it when it has grown. Before
-- PostgreSQL 18 what is off costs so much by the books that each statement would be compiled.
set enable_seqscan = off set jit = off as $$
declare
    -- Expressions: a statement that performs them costs some microseconds more.
    v_fits constant boolean := tokenlib.check_input(p_units, p_metadata, p_key, p_mode);
    v_locked constant boolean := tokenlib.lock_request(
        p_organization, case when p_limits then p_user end, p_key);
    v_now timestamptz;
    v_shared public.ai_tokens;
    c record;                                  -- the feature in the catalog
    f record;                                  -- what else decides
    l record;                                  -- a limit that is reached
begin
    loop
        select t.token_type, t.cost * p_units as cost, p_key is not null and exists (
                select from public.ai_token_reservations
                where organization_id = p_organization and idempotency_key = p_key
                    and state in ('held', 'deducted') and state <> 'deducted') as held
        into c
        from public.ai_token_features t where t.feature = p_feature;
        -- Nothing is locked here where the key has a hold: that may lie on a wallet that comes first.
        if not c.held then
            select * into w from public.ai_tokens
            where organization_id = p_organization and token_type = c.token_type
            for no key update;
            -- After the lock, which gave the transaction its number. So was a plan that was changed
            -- meanwhile: the change holds the lock until it has written the new plan.
            v_now := greatest(tokenlib.clock(), w.last_entry_at);
            select o.plan, m.organization_id is distinct from p_organization as stranger,
                case
                    when s.status in ('limited', 'expired') then 'payment_failed'
                    when s.status = 'suspended' then 'organization_paused'
                    when u.paused_at is not null then 'user_paused'
                    when w.allowance = 0 then 'feature_not_in_plan'
                    else 'ok'
                end as status,
                coalesce(p_mode,
                    case when s.mode_until is null or s.mode_until > v_now then s.mode end,
                    case when p.mode_until is null or p.mode_until > v_now then p.mode end,
                    'enforce') as mode,
                p_key is not null and (
                    exists (select from public.ai_token_usage_log
                        where organization_id = p_organization and idempotency_key = p_key)
                    or exists (select from public.ai_token_events
                        where organization_id = p_organization and idempotency_key = p_key)
                    or exists (select from public.ai_token_archived_keys
                        where organization_id = p_organization and idempotency_key = p_key)) as known
            into f
            from public.organizations o
            left join public.ai_token_parameters p on true
            left join public.user_profiles m on m.id = p_user
            left join public.ai_token_organization_settings s on s.organization_id = o.id
            left join public.ai_token_user_settings u
                on u.organization_id = o.id and u.user_id = p_user
            where o.id = p_organization;
            exit when w.event_number > 0 and w.due_at > v_now and not f.known
                and (w.plan is not distinct from f.plan or w.token_type = 'shared');
        end if;
        a := tokenlib.bring_up(p_organization, p_user, p_feature, p_units, p_key, p_hash);
        if a.status <> 'ok' then
            if a.status = 'unknown_feature' and p_limits and not p_asking then
                perform tokenlib.record_failed_attempt(p_user, p_feature, 'unknown feature');
            end if;
            return;
        end if;
    end loop;
    w.last_entry_at := v_now;
    a := row(f.status, null, p_organization, p_user, p_feature, w.token_type, c.cost, 0, null,
        c.cost, w.balance, w.plan, null, null, null, v_now, w.refresh_date, false, f.mode, null
        )::tokenlib.answer;
    if f.stranger then
        a.status := 'not_a_member'; -- in every mode: whose charge would it be?
        if p_limits and not p_asking then
            perform tokenlib.record_failed_attempt(p_user, p_feature, 'another organization');
        end if;
        return;
    end if;
    if a.mode = 'off' then
        a.status := 'ok';
    elsif p_limits and a.status = 'ok' then
        l := tokenlib.check_limits(p_organization, p_user, a.needed, p_metadata, v_now);
        if l.name is not null then
            a.status := 'rate_limited';
            a.limit_name := l.name;
            a.allowed := l.allowed;
            a.retry_after := l.retry_after;
        end if;
    end if;
    if w.balance < a.needed and a.status = 'ok' and a.mode <> 'off' then
        if w.allowance is null then
            if not p_asking and a.mode = 'enforce' then
                w := tokenlib.top_up(w, a.needed - w.balance, v_now);
            end if;
        else
            -- A charge comes whole from its own wallet, else whole from `shared`.
            v_shared := tokenlib.open_wallet(p_organization, 'shared', p_create => false);
            if v_shared.last_entry_at >= w.due_at then
                -- It was waited for, and the own wallet has fallen due meanwhile.
                w := tokenlib.open_wallet(p_organization, a.token_type);
                a.created_at := w.last_entry_at;
                a.available := w.balance;
                a.until := w.refresh_date;
            end if;
            if w.balance >= a.needed then
                a.status := 'ok';
            elsif v_shared.id is not null and v_shared.balance >= a.needed then
                w := v_shared;
                a.token_type := w.token_type;
                a.created_at := greatest(a.created_at, w.last_entry_at);
            else
                a.status := 'insufficient_tokens';
            end if;
        end if;
    end if;
    if a.status <> 'ok' and not p_asking then
        perform tokenlib.record_refusal(a, v_now);
    end if;
    if a.mode <> 'enforce' then
        a.status := 'ok';
        a.tokens := 0;
        a.waived := a.needed;
    end if;
end
$$;

-- Unlimited: the wallet is topped up in blocks, with an entry.
create function tokenlib.top_up(
    w public.ai_tokens, p_missing bigint, p_now timestamptz
) returns public.ai_tokens
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_block bigint;
begin
    select greatest(top_up_block, p_missing) into strict v_block from public.ai_token_parameters;
    update public.ai_token_grants set amount = amount + v_block, remaining = remaining + v_block
    where organization_id = w.organization_id and token_type = w.token_type
        and closed_at is null and kind = 'allowance';
    return tokenlib.append_event(w, 'top_up', p_now, v_block, p_reason => 'unlimited allowance');
end
$$;
