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
create function tokenlib.find_key(
    a tokenlib.answer, p_key text, p_hash bytea
) returns tokenlib.answer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    l record;
begin
    select id, request_hash, expires_at into l from public.ai_token_reservations
    where organization_id = a.organization_id and idempotency_key = p_key and state = 'held';
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

create function tokenlib.lock_key(p_organization uuid, p_key text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    select pg_advisory_xact_lock(hashtextextended(p_key, hashtextextended(p_organization::text, 0)))
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
    where organization_id = p_organization and idempotency_key = p_key and state = 'held'
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
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select tokenlib.digest(jsonb_build_array(p_user, p_feature, p_units, p_metadata))
$$;

create function tokenlib.check_input(
    p_units bigint, p_metadata jsonb, p_key text
) returns void
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
    if p_key is not null and length(p_key) not between 1 and 255 then
        raise exception 'must have 1 to 255 characters'
            using errcode = '22023', column = 'idempotency_key';
    end if;
end
$$;

-- A failed attempt of a person who is known: a malformed call, or one in another organization's name. It
-- stands among the refusals of their own organization, where the next charge with limits finds it. Once
-- they are blocked no more is counted, so that the block ends.
create function tokenlib.record_failed_attempt(p_user uuid, p_feature text, p_problem text)
returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_own uuid;
    v_allowed integer;
    v_now timestamptz := tokenlib.clock();
begin
    select organization_id into v_own from public.user_profiles where id = p_user;
    select failed_attempts into v_allowed from public.ai_token_limits
    where organization_id = v_own or organization_id is null
    order by organization_id nulls last limit 1;
    if v_own is null or v_allowed is null
        or tokenlib.blocked_until(v_own, p_user, v_allowed, v_now) is not null then
        return;
    end if;
    insert into public.ai_token_refusals (organization_id, user_id, feature, rule, minute, first_at,
        last_at, data)
    values (v_own, p_user, left(coalesce(p_feature, ''), 100), 'failed_attempt',
        date_trunc('minute', v_now, 'UTC'), v_now, v_now,
        jsonb_build_object('problem', left(p_problem, 200)))
    on conflict (organization_id, user_id, feature, rule, minute) do update set
        count = ai_token_refusals.count + 1, last_at = excluded.last_at, data = excluded.data;
end
$$;

-- Until when too many failed attempts of the last 10 minutes block a person; null: they do not.
create function tokenlib.blocked_until(
    p_organization uuid, p_user uuid, p_allowed integer, p_now timestamptz
) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return (select last_at + interval '10 minutes' from (
        select last_at, sum(count) over (order by last_at desc, feature) as attempts
        from public.ai_token_refusals
        where organization_id = p_organization and user_id = p_user and rule = 'failed_attempt'
            and last_at > p_now - interval '10 minutes') as failed
    where attempts >= p_allowed
    order by last_at desc limit 1);
end
$$;

-- Limits of one user, counted from the log and the live holds under the user's lock.
create function tokenlib.check_limits(a tokenlib.answer, p_now timestamptz)
returns tokenlib.answer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_limits public.ai_token_limits;
    v_count bigint;
    v_first timestamptz;
    v_last timestamptz;
    v_until timestamptz;
begin
    select * into v_limits from public.ai_token_limits
    where organization_id = a.organization_id or organization_id is null
    order by organization_id nulls last limit 1;
    if not found then
        return a;
    end if;
    v_until := tokenlib.blocked_until(a.organization_id, a.user_id, v_limits.failed_attempts, p_now);
    if v_until is not null then
        a.status := 'rate_limited';
        a.limit_name := 'failed_attempts';
        a.allowed := v_limits.failed_attempts;
        a.retry_after := extract(epoch from v_until - p_now);
        return a;
    end if;
    if a.needed > v_limits.tokens_per_request then
        a.status := 'rate_limited';
        a.limit_name := 'tokens_per_request';
        a.allowed := v_limits.tokens_per_request;
        return a;
    end if;
    select count(*), min(at), max(at) into v_count, v_first, v_last from (
        select created_at as at from public.ai_token_usage_log
        where organization_id = a.organization_id and user_id = a.user_id
            and created_at > p_now - interval '1 minute' and reservation_id is null
        union all
        select created_at from public.ai_token_reservations
        where organization_id = a.organization_id and user_id = a.user_id
            and created_at > p_now - interval '1 minute'
    ) as requests;
    if v_count >= v_limits.requests_per_minute then
        a.status := 'rate_limited';
        a.limit_name := 'requests_per_minute';
        a.allowed := v_limits.requests_per_minute;
        a.retry_after := extract(epoch from v_first + interval '1 minute' - p_now);
    elsif extract(epoch from p_now - v_last) < v_limits.seconds_between_requests then
        a.status := 'rate_limited';
        a.limit_name := 'seconds_between_requests';
        a.allowed := ceil(v_limits.seconds_between_requests);
        a.retry_after := v_limits.seconds_between_requests - extract(epoch from p_now - v_last);
    end if;
    return a;
end
$$;

-- Returns the answer and the wallet that pays, locked. status ok: the caller now writes the charge
-- or the hold. p_asking: only ask, for can_use; nothing is recorded.
create function tokenlib.admit(
    p_organization uuid, p_user uuid, p_feature text, p_units bigint, p_metadata jsonb,
    p_key text, p_hash bytea, p_limits boolean, p_mode text, p_asking boolean,
    out a tokenlib.answer, out w public.ai_tokens
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_now timestamptz;
    v_shared public.ai_tokens;
    f record;
begin
    perform tokenlib.check_input(p_units, p_metadata, p_key);
    if p_mode is not null and p_mode not in ('enforce', 'log_only', 'off') then
        raise exception 'must be enforce, log_only or off, not %', p_mode
            using errcode = '22023', column = 'mode';
    end if;
    a.organization_id := p_organization;
    a.user_id := p_user;
    a.feature := p_feature;
    a.replayed := false;
    select token_type, cost * p_units into a.token_type, a.needed
    from public.ai_token_features where feature = p_feature;
    if not found then
        a.status := 'unknown_feature';
        if p_limits and not p_asking then
            perform tokenlib.record_failed_attempt(p_user, p_feature, 'unknown feature');
        end if;
        return;
    end if;
    if p_limits then
        perform tokenlib.lock_key(p_organization, 'user ' || p_user::text);
    end if;
    w := tokenlib.open_wallet_for(p_organization, a.token_type, p_key);
    if w.id is null then
        a.status := 'unknown_organization';
        return;
    end if;
    v_now := w.last_entry_at;
    a.created_at := v_now;
    a.plan := w.plan;
    a.available := w.balance;
    a.until := w.refresh_date;
    a.status := 'ok';
    if p_key is not null then
        a := tokenlib.find_key(a, p_key, p_hash);
        if a.status <> 'ok' then
            return;
        end if;
    end if;

    select m.id is not null as member, coalesce(s.status, 'active') as status,
        u.paused_at is not null as paused,
        coalesce(p_mode,
            case when s.mode_until is null or s.mode_until > v_now then s.mode end,
            case when p.mode_until is null or p.mode_until > v_now then p.mode end,
            'enforce') as mode
    into strict f
    from public.ai_token_parameters p
    left join public.user_profiles m on m.id = p_user and m.organization_id = p_organization
    left join public.ai_token_organization_settings s on s.organization_id = p_organization
    left join public.ai_token_user_settings u
        on u.organization_id = p_organization and u.user_id = p_user;
    a.mode := f.mode;
    if not f.member then
        a.status := 'not_a_member'; -- in every mode: whose charge would it be?
        if p_limits and not p_asking then
            perform tokenlib.record_failed_attempt(p_user, p_feature, 'another organization');
        end if;
        return;
    end if;

    if a.mode <> 'off' then
        if f.status in ('limited', 'expired') then
            a.status := 'payment_failed';
        elsif f.status = 'suspended' then
            a.status := 'organization_paused';
        elsif f.paused then
            a.status := 'user_paused';
        elsif w.allowance = 0 then
            a.status := 'feature_not_in_plan';
        elsif p_limits then
            a := tokenlib.check_limits(a, v_now);
        end if;
        if a.status = 'ok' and w.balance < a.needed then
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
    end if;
    if a.mode = 'enforce' then
        a.tokens := a.needed;
        a.waived := 0;
    else
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
