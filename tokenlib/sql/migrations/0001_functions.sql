-- The clock of the books. The one function that the test template replaces. In plpgsql, which keeps
-- its plan: before PostgreSQL 18 a function in SQL is planned anew for every call.
create function tokenlib.clock() returns timestamptz
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    return clock_timestamp();
end
$$;
-- Entries: what is hashed, and how an entry is appended. An entry's hash covers the hash before it
-- and every column, in a form that no session setting changes: times as epoch microseconds, bytes
-- as hex, metadata by its digest (so that personal data can be erased and the chain still holds).

create type tokenlib.answer as (
    status text,               -- ok, or the name of what stands in the way
    id uuid,                   -- the usage, reservation, grant or user that the status speaks of
    organization_id uuid,
    user_id uuid,
    feature text,
    token_type text,
    tokens bigint,             -- charged, held, granted or given back
    waived bigint,             -- let through by the switch
    balance bigint,            -- of the wallet, after
    needed bigint,
    available bigint,
    plan text,
    limit_name text,
    allowed bigint,
    retry_after double precision,
    created_at timestamptz,
    until timestamptz,         -- refresh date, or the expiry of a hold or grant
    replayed boolean,
    mode text,
    text text
);

create function tokenlib.microseconds(p_time timestamptz) returns bigint
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select (extract(epoch from p_time) * 1000000)::bigint
$$;

-- A time in an entry's data, as people read it.
create function tokenlib.utc(p_time timestamptz) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select to_char(p_time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;

create function tokenlib.digest(p_document jsonb) returns bytea
language sql immutable strict set search_path = pg_catalog, pg_temp as $$
    select sha256(convert_to(p_document::text, 'UTF8'))
$$;

-- The hashes are plpgsql, which keeps its plan: before PostgreSQL 18 a function in SQL is planned anew
-- for every entry, and verify takes three times as long. A charge hands its columns over one by one:
-- to fill a row of twenty columns first would cost more than the hash.
create function tokenlib.charge_hash(
    p_before bytea, p_version smallint, p_id uuid, p_organization uuid, p_token_type text,
    p_number bigint, p_user uuid, p_feature text, p_units bigint, p_deducted bigint, p_waived bigint,
    p_balance bigint, p_reservation uuid, p_held bigint, p_returned bigint, p_key text,
    p_request_hash bytea, p_metadata_digest bytea, p_created_at timestamptz
) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return sha256(p_before || convert_to(json_build_array(p_version, p_id, p_organization,
        p_token_type, p_number, p_user, p_feature, p_units, p_deducted, p_waived, p_balance,
        p_reservation, p_held, p_returned, p_key, encode(p_request_hash, 'hex'),
        encode(p_metadata_digest, 'hex'), (extract(epoch from p_created_at) * 1000000)::bigint
        )::text, 'UTF8'));
end
$$;

create function tokenlib.usage_hash(p_before bytea, e public.ai_token_usage_log) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return tokenlib.charge_hash(p_before, e.hash_version, e.id, e.organization_id, e.token_type,
        e.number, e.user_id, e.feature_used, e.units, e.tokens_deducted, e.tokens_waived,
        e.remaining_balance, e.reservation_id, e.held, e.returned, e.idempotency_key,
        e.request_hash, e.metadata_digest, e.created_at);
end
$$;

-- A log row of the old system stands in no chain: the wallet's opening entry holds the number of them
-- and the digest of these, in the order of time and id.
create function tokenlib.legacy_hash(e public.ai_token_usage_log) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return sha256(convert_to(jsonb_build_array(e.id, e.organization_id, e.token_type, e.user_id,
        e.feature_used, e.tokens_deducted, e.remaining_balance,
        encode(coalesce(e.metadata_digest, tokenlib.digest(e.metadata)), 'hex'),
        tokenlib.microseconds(e.created_at))::text, 'UTF8'));
end
$$;

create function tokenlib.event_hash(p_before bytea, e public.ai_token_events) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    return sha256(p_before || convert_to(json_build_array(
        e.hash_version, e.id, e.organization_id, e.token_type, e.number, e.after_log, e.kind,
        e.balance_change, e.reserved_change, e.used_change, e.balance_after,
        tokenlib.microseconds(e.effective_at), tokenlib.microseconds(e.created_at), e.actor,
        e.reason, e.subject_id, e.idempotency_key, encode(e.request_hash, 'hex'), e.data)::text,
        'UTF8'));
end
$$;

-- Moves the figures of the wallet in hand and appends the event that says so. The caller holds the
-- wallet's row lock and stores it with tokenlib.store_wallet.
create function tokenlib.append_event(
    w public.ai_tokens, p_kind text, p_now timestamptz,
    p_balance bigint default 0, p_reserved bigint default 0, p_used bigint default 0,
    p_actor text default 'system', p_reason text default null, p_subject uuid default null,
    p_effective timestamptz default null, p_data jsonb default '{}',
    p_key text default null, p_request_hash bytea default null
) returns public.ai_tokens
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    e public.ai_token_events;
begin
    w.balance := w.balance + p_balance;
    w.reserved := w.reserved + p_reserved;
    w.total_used := w.total_used + p_used;
    w.total_allocated := w.balance + w.reserved + w.total_used;
    w.event_number := w.event_number + 1;
    w.last_entry_at := p_now;

    e.id := gen_random_uuid();
    e.organization_id := w.organization_id;
    e.token_type := w.token_type;
    e.number := w.event_number;
    e.after_log := w.log_number;
    e.kind := p_kind;
    e.balance_change := p_balance;
    e.reserved_change := p_reserved;
    e.used_change := p_used;
    e.balance_after := w.balance;
    e.effective_at := coalesce(p_effective, p_now);
    e.created_at := p_now;
    e.actor := p_actor;
    e.reason := p_reason;
    e.subject_id := p_subject;
    e.idempotency_key := p_key;
    e.request_hash := p_request_hash;
    e.data := p_data;
    e.hash_version := 1;
    e.hash := tokenlib.event_hash(w.event_hash, e);
    insert into public.ai_token_events values (e.*);
    w.event_hash := e.hash;
    return w;
end
$$;

-- Stores the figures of the wallet in hand. Nothing but these functions can.
create function tokenlib.store_wallet(w public.ai_tokens, p_now timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    update public.ai_tokens set
        balance = w.balance, reserved = w.reserved, total_used = w.total_used,
        total_allocated = w.total_allocated, refresh_date = w.refresh_date,
        period_start = w.period_start, plan = w.plan, allowance = w.allowance,
        pending = w.pending, due_at = w.due_at, last_used_at = w.last_used_at,
        log_number = w.log_number, log_hash = w.log_hash,
        event_number = w.event_number, event_hash = w.event_hash,
        last_entry_at = w.last_entry_at, updated_at = p_now
    where organization_id = w.organization_id and id = w.id;
end
$$;
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
-- Opens the books of a wallet that has none: a new one gets its allowance; one that plain SQL or
-- the old system wrote is taken in as it stands. Its usable balance is kept, the sums are made to
-- close, its legacy log rows are counted and digested, and what was wrong becomes a finding.
create function tokenlib.open_books(
    w public.ai_tokens, p_plan text, p_now timestamptz, p_new boolean, p_found jsonb default null
) returns public.ai_tokens
-- In UTC a day has 24 hours, whatever time zone the session is in.
language plpgsql set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
declare
    v_period interval;
    v_block bigint;
    v_allowance bigint := tokenlib.allowance(w.organization_id, p_plan, w.token_type);
    v_balance bigint := w.balance;
    v_used bigint := w.total_used;
    v_limit bigint;
    v_from_allowance bigint;
    v_grant uuid;
    v_rows bigint := 0;
    v_digest text;
    v_logged bigint;
    v_orphans bigint;
    v_found jsonb := coalesce(p_found, jsonb_build_object('balance', w.balance,
        'total_allocated', w.total_allocated, 'total_used', w.total_used));
    v_finding record;
begin
    select period, top_up_block into strict v_period, v_block from public.ai_token_parameters;
    w.plan := p_plan;
    w.allowance := v_allowance;
    w.period_start := w.refresh_date - v_period;
    if p_new then
        w.refresh_date := p_now + v_period;
        w.period_start := p_now;
        v_balance := coalesce(v_allowance, v_block);
        v_used := 0;
    end if;
    v_limit := coalesce(v_allowance, greatest(v_block, v_balance) + v_used);
    v_from_allowance := least(v_balance, greatest(0, v_limit - v_used));

    if w.token_type <> 'shared' then
        insert into public.ai_token_grants (organization_id, token_type, kind, source, amount, used,
            remaining, created_at, effective_at, arrived_at, expires_at)
        values (w.organization_id, w.token_type, 'allowance', 'plan ' || coalesce(p_plan, '?'),
            v_limit, v_limit - v_from_allowance, v_from_allowance, p_now, w.period_start, p_now,
            w.refresh_date)
        returning id into v_grant;
    else
        v_from_allowance := 0;
    end if;
    if v_balance > v_from_allowance then
        insert into public.ai_token_grants (organization_id, token_type, kind, source, amount,
            remaining, created_at, effective_at, arrived_at)
        values (w.organization_id, w.token_type, 'adopted', 'balance before tokenlib',
            v_balance - v_from_allowance, v_balance - v_from_allowance, p_now, p_now, p_now);
    end if;

    select count(*),
        encode(sha256(string_agg(tokenlib.legacy_hash(row(l.*)::public.ai_token_usage_log),
            ''::bytea order by l.created_at, l.id)), 'hex'),
        coalesce(sum(l.tokens_deducted) filter (where l.created_at >= w.period_start), 0),
        count(*) filter (where l.user_id is null or u.id is null)
    into v_rows, v_digest, v_logged, v_orphans
    from public.ai_token_usage_log l
    left join public.user_profiles u
        on u.id = l.user_id and u.organization_id = l.organization_id
    where l.organization_id = w.organization_id and l.token_type = w.token_type
        and l.number is null;
    if not p_new then
        for v_finding in
            select * from (values
                ('emergency_balance', (v_found ->> 'balance')::bigint = 9999,
                    'balance 9999, the old emergency value'),
                ('balance_above_allocated',
                    (v_found ->> 'balance')::bigint > (v_found ->> 'total_allocated')::bigint,
                    format('balance %s above total_allocated %s', v_found ->> 'balance',
                        v_found ->> 'total_allocated')),
                ('used_differs_from_log', (v_found ->> 'total_used')::bigint <> v_logged,
                    format('total_used %s, the log of the period says %s', v_found ->> 'total_used',
                        v_logged)),
                ('log_of_deleted_users', v_orphans > 0,
                    format('%s log rows of users that no longer exist', v_orphans))
            ) as f (kind, present, detail)
            where present
        loop
            insert into public.ai_token_findings (organization_id, token_type, kind, detail, found,
                found_at)
            values (w.organization_id, w.token_type, v_finding.kind, v_finding.detail, v_found,
                p_now);
        end loop;
    end if;

    w.balance := 0;
    w.reserved := 0;
    w.total_used := 0;
    return tokenlib.append_event(w, 'opening', p_now, v_balance, 0, v_used,
        p_subject => v_grant,
        p_reason => case when p_new then 'opened on plan ' || p_plan else 'adopted as found' end,
        p_data => jsonb_build_object('plan', p_plan, 'allowance', v_allowance,
                'period_start', tokenlib.utc(w.period_start),
                'refresh_date', tokenlib.utc(w.refresh_date))
            || case when p_new then '{}'::jsonb else jsonb_build_object('found', v_found) end
            || case when p_new and v_rows = 0 then '{}'::jsonb
                else jsonb_build_object('legacy_rows', v_rows, 'legacy_digest', v_digest) end);
end
$$;
-- Brings a wallet up to date: whatever has fallen due since the last touch happens now, in the order
-- of its times: holds expire, grants expire, the period ends, scheduled grants arrive. Then a plan
-- that somebody changed outside (a billing webhook) is applied. The caller holds the row lock.

create function tokenlib.next_due(w public.ai_tokens) returns timestamptz
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_hold timestamptz;
    v_grant timestamptz;
begin
    select min(expires_at) into v_hold from public.ai_token_reservations
    where organization_id = w.organization_id and token_type = w.token_type and state = 'held';
    select min(case when arrived_at is null then effective_at else expires_at end) into v_grant
    from public.ai_token_grants
    where organization_id = w.organization_id and token_type = w.token_type
        and closed_at is null and (arrived_at is null or kind <> 'allowance');
    return least(w.refresh_date, v_hold, v_grant);
end
$$;

-- Ends a hold and gives back what was not used of it: to the balance, or, where its grant has
-- expired meanwhile, to nobody. Returns how many tokens came back.
create function tokenlib.give_back(
    r public.ai_token_reservations, p_tokens bigint
) returns bigint
language sql set search_path = pg_catalog, pg_temp as $$
    select case when r.drawn is null then p_tokens
        else tokenlib.undraw(r.organization_id, r.drawn, p_tokens) end
$$;

create function tokenlib.refresh_wallet(w public.ai_tokens, p_now timestamptz) returns public.ai_tokens
language plpgsql set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
declare
    v_period interval;
    v_block bigint;
    v_periods bigint;
    v_due timestamptz := w.refresh_date;
    v_old bigint := 0;
    v_new bigint := 0;
begin
    select period, top_up_block into strict v_period, v_block from public.ai_token_parameters;
    -- Whole periods from the wallet's own date; idle ones are skipped in one step.
    v_periods := floor(extract(epoch from p_now - w.refresh_date) / extract(epoch from v_period)) + 1;
    w := tokenlib.draw_pending(w);
    update public.ai_token_grants set remaining = 0, closed_at = p_now
    from (select id as old_id, remaining as old_remaining from public.ai_token_grants
        where organization_id = w.organization_id and token_type = w.token_type
            and closed_at is null and kind = 'allowance') as old
    where organization_id = w.organization_id and id = old_id
    returning old_remaining into v_old;
    w.refresh_date := w.refresh_date + v_periods * v_period;
    w.period_start := w.refresh_date - v_period;
    update public.ai_token_grants set used_before = used
    where organization_id = w.organization_id and token_type = w.token_type and closed_at is null
        and used_before <> used;
    if w.token_type <> 'shared' then
        w.allowance := tokenlib.allowance(w.organization_id, w.plan, w.token_type);
        v_new := coalesce(w.allowance, v_block);
        insert into public.ai_token_grants (organization_id, token_type, kind, source, amount,
            remaining, created_at, effective_at, arrived_at, expires_at)
        values (w.organization_id, w.token_type, 'allowance', 'plan ' || coalesce(w.plan, '?'),
            v_new, v_new, p_now, w.period_start, p_now, w.refresh_date);
    end if;
    return tokenlib.append_event(w, 'refresh', p_now, v_new - coalesce(v_old, 0), 0, -w.total_used,
        p_effective => v_due,
        p_data => jsonb_build_object('lapsed', coalesce(v_old, 0), 'granted', v_new,
            'periods', v_periods, 'allowance', w.allowance,
            'period_start', tokenlib.utc(w.period_start),
            'refresh_date', tokenlib.utc(w.refresh_date)));
end
$$;

-- The new allowance less what this period has used: never a refill, never below zero.
create function tokenlib.apply_plan(
    w public.ai_tokens, p_plan text, p_now timestamptz, p_actor text, p_reason text
) returns public.ai_tokens
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_block bigint;
    g public.ai_token_grants;
    v_amount bigint;
    v_remaining bigint;
    v_from text := w.plan;
begin
    select top_up_block into strict v_block from public.ai_token_parameters;
    w := tokenlib.draw_pending(w);
    select * into strict g from public.ai_token_grants
    where organization_id = w.organization_id and token_type = w.token_type
        and closed_at is null and kind = 'allowance';
    w.plan := p_plan;
    w.allowance := tokenlib.allowance(w.organization_id, p_plan, w.token_type);
    v_amount := coalesce(w.allowance, g.used + v_block);
    v_remaining := greatest(0, v_amount - g.used);
    update public.ai_token_grants
    set amount = v_amount, remaining = v_remaining, source = 'plan ' || coalesce(p_plan, '?')
    where organization_id = w.organization_id and id = g.id;
    return tokenlib.append_event(w, 'plan_change', p_now, v_remaining - g.remaining,
        p_actor => p_actor, p_reason => p_reason, p_subject => g.id,
        p_data => jsonb_build_object('from', v_from, 'to', p_plan, 'allowance', w.allowance));
end
$$;

create function tokenlib.settle(
    w public.ai_tokens, p_plan text, p_now timestamptz,
    p_actor text default 'system', p_reason text default 'plan changed outside tokenlib'
) returns public.ai_tokens
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_due timestamptz;
    r public.ai_token_reservations;
    g public.ai_token_grants;
    v_back bigint;
begin
    loop
        v_due := tokenlib.next_due(w);
        exit when v_due > p_now;
        for r in
            select * from public.ai_token_reservations
            where organization_id = w.organization_id and token_type = w.token_type
                and state = 'held' and expires_at <= v_due
            order by expires_at, id
        loop
            v_back := tokenlib.give_back(r, r.tokens);
            update public.ai_token_reservations set state = 'expired', resolved_at = p_now
            where organization_id = r.organization_id and id = r.id;
            w := tokenlib.append_event(w, 'hold_expired', p_now, v_back, -r.tokens,
                p_subject => r.id, p_effective => r.expires_at,
                p_data => jsonb_build_object('lapsed', r.tokens - v_back));
        end loop;
        for g in
            select * from public.ai_token_grants
            where organization_id = w.organization_id and token_type = w.token_type
                and closed_at is null and arrived_at is not null and kind <> 'allowance'
                and expires_at <= v_due
            order by expires_at, id
        loop
            w := tokenlib.draw_pending(w);
            select * into strict g from public.ai_token_grants
            where organization_id = g.organization_id and id = g.id;
            update public.ai_token_grants set remaining = 0, closed_at = p_now
            where organization_id = g.organization_id and id = g.id;
            w := tokenlib.append_event(w, 'grant_expired', p_now, -g.remaining,
                p_subject => g.id, p_effective => g.expires_at);
        end loop;
        if w.refresh_date <= v_due then
            w := tokenlib.refresh_wallet(w, p_now);
        end if;
        for g in
            select * from public.ai_token_grants
            where organization_id = w.organization_id and token_type = w.token_type
                and closed_at is null and arrived_at is null and effective_at <= v_due
            order by effective_at, id
        loop
            w := tokenlib.draw_pending(w);
            update public.ai_token_grants set arrived_at = p_now
            where organization_id = g.organization_id and id = g.id;
            w := tokenlib.append_event(w, 'grant', p_now, g.amount, p_subject => g.id,
                p_effective => g.effective_at);
        end loop;
    end loop;
    if w.plan is distinct from p_plan and w.token_type <> 'shared' then
        w := tokenlib.apply_plan(w, p_plan, p_now, p_actor, p_reason);
    end if;
    w.due_at := v_due;
    perform tokenlib.store_wallet(w, p_now);
    return w;
end
$$;

-- Locks a wallet, opens its books or brings them up to date, and returns it; null when there is no
-- such organization. `shared` is created only when p_create says so. Lock order everywhere: advisory
-- locks, then wallets by name with `shared` last.
-- The wallet in hand carries in last_entry_at the moment that it was opened at, and the caller dates
-- its entry by that: a clock asked twice could pass an expiry or the end of a period in between.
create function tokenlib.open_wallet(
    p_organization uuid, p_token_type text, p_create boolean default true
) returns public.ai_tokens
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    w public.ai_tokens;
    v_plan text;
    v_now timestamptz;
    v_new boolean := false;
begin
    select * into w from public.ai_tokens
    where organization_id = p_organization and token_type = p_token_type
    for no key update;
    if not found then
        if not p_create or not exists (
            select from public.organizations where id = p_organization) then
            return null;
        end if;
        insert into public.ai_tokens (organization_id, token_type)
        values (p_organization, p_token_type) on conflict do nothing;
        v_new := found;
        select * into strict w from public.ai_tokens
        where organization_id = p_organization and token_type = p_token_type
        for no key update;
    end if;
    -- Read after the lock: a plan change holds it until it has written the new plan.
    select plan into v_plan from public.organizations where id = p_organization;
    if not found then
        return null;
    end if;
    v_now := greatest(tokenlib.clock(), w.last_entry_at);
    if w.event_number = 0 then
        w := tokenlib.settle(tokenlib.open_books(w, v_plan, v_now, v_new), v_plan, v_now);
    elsif w.due_at <= v_now or (w.plan is distinct from v_plan and w.token_type <> 'shared') then
        w := tokenlib.settle(w, v_plan, v_now);
    end if;
    w.last_entry_at := v_now;
    return w;
end
$$;
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
-- Limits of each user, and the block after failed attempts.

-- A failed attempt of a person who is known: a malformed call, or one in another organization's name. It
-- stands among the refusals of their own organization, where the next charge with limits finds it. Once
-- they are blocked no more is counted, so that the block ends.
create function tokenlib.record_failed_attempt(p_user uuid, p_feature text, p_problem text)
returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_own uuid;
    v_allowed integer;
    -- First, as a charge has it by its locks: what closes the refusals stands on that.
    v_id constant xid8 := pg_current_xact_id();
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

-- What a model wrote, or may write at most, where metadata say so; null: not known. What is there and no
-- count would stand for anything, so it is an error.
create function tokenlib.output_units(p_metadata jsonb) returns bigint
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    if (p_metadata -> 'output_units')::text !~ '^[0-9]{1,10}$' then
        raise exception 'must be a whole number from 0 to 9999999999'
            using errcode = '22023', column = 'metadata.output_units';
    end if;
    return (p_metadata ->> 'output_units')::bigint;
end
$$;

-- The limit of output units a request that these metadata break; null: none.
create function tokenlib.output_limit(p_organization uuid, p_metadata jsonb) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
    select case when tokenlib.output_units(p_metadata) > output_units_per_request
        then output_units_per_request end
    from public.ai_token_limits
    where scope in (p_organization, '00000000-0000-0000-0000-000000000000')
    order by scope desc limit 1
$$;

-- The limit that a request of so many tokens would break, counted from the log and the holds under the
-- user's lock; a name that is null: none.
create function tokenlib.check_limits(
    p_organization uuid, p_user uuid, p_tokens bigint, p_metadata jsonb, p_now timestamptz,
    out name text, out allowed bigint, out retry_after double precision
)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    f record;
    v_until timestamptz;
begin
    select l.requests_per_minute, l.seconds_between_requests, l.tokens_per_request, l.failed_attempts,
        exists (select from public.ai_token_refusals
            where organization_id = p_organization and user_id = p_user
                and rule = 'failed_attempt' and last_at > p_now - interval '10 minutes') as failed,
        greatest(
            -- Not max, for which PostgreSQL 15 may read the whole minute.
            (select created_at from public.ai_token_usage_log
                where organization_id = p_organization and user_id = p_user
                    and created_at > p_now - interval '1 minute' and reservation_id is null
                order by created_at desc limit 1),
            (select created_at from public.ai_token_reservations
                where organization_id = p_organization and user_id = p_user
                    and created_at > p_now - interval '1 minute'
                order by created_at desc limit 1)) as last_at,
        (select sum(log_number + event_number) from public.ai_tokens
            where organization_id = p_organization) as entries
    into f
    from public.ai_token_limits l
    where l.scope in (p_organization, '00000000-0000-0000-0000-000000000000')
    order by l.scope desc limit 1;
    if f.failed then
        v_until := tokenlib.blocked_until(p_organization, p_user, f.failed_attempts, p_now);
    end if;
    if v_until is not null then
        name := 'failed_attempts';
        allowed := f.failed_attempts;
        retry_after := extract(epoch from v_until - p_now);
    elsif p_tokens > f.tokens_per_request then
        name := 'tokens_per_request';
        allowed := f.tokens_per_request;
    elsif p_metadata ? 'output_units'
        and tokenlib.output_limit(p_organization, p_metadata) is not null then
        name := 'output_units_per_request';
        allowed := tokenlib.output_limit(p_organization, p_metadata);
    elsif f.last_at is not null then
        -- Where fewer entries were ever made than are allowed, no minute holds more.
        if f.entries >= f.requests_per_minute then
            v_until := tokenlib.minute_full_until(
                p_organization, p_user, f.requests_per_minute, p_now);
        end if;
        if v_until is not null then
            name := 'requests_per_minute';
            allowed := f.requests_per_minute;
            retry_after := extract(epoch from v_until - p_now);
        elsif extract(epoch from p_now - f.last_at) < f.seconds_between_requests then
            name := 'seconds_between_requests';
            allowed := ceil(f.seconds_between_requests);
            retry_after := f.seconds_between_requests - extract(epoch from p_now - f.last_at);
        end if;
    end if;
end
$$;

-- Until when a user's last minute holds as many requests as are allowed, or more; null: it does not.
-- Looks at no more of them than are allowed. Where that is many it first asks the wallets: they number
-- their entries without a gap and in the order of time. Of those that the last minute has touched, let
-- each have an equal part of what is allowed: where the entry that stands so many places before the
-- last is older than a minute, or there is none, everybody together made fewer.
create function tokenlib.minute_full_until(
    p_organization uuid, p_user uuid, p_allowed integer, p_now timestamptz
) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_since constant timestamptz := p_now - interval '1 minute';
    v_many boolean := true;
    v_count bigint;
    v_first timestamptz;
begin
    if p_allowed > 100 then
        with series as (
            select token_type, log_number as last, true as charges from public.ai_tokens
            where organization_id = p_organization and last_used_at > v_since
            union all
            select e.token_type, e.number, false from public.ai_tokens t
            join public.ai_token_events e on e.organization_id = t.organization_id
                and e.token_type = t.token_type and e.number = t.event_number
            where t.organization_id = p_organization and e.created_at > v_since
        ), places as (
            select *, last + 1 - ceil(p_allowed::numeric / count(*) over ())::bigint as place
            from series
        )
        select exists (select from places p
                join public.ai_token_usage_log l on l.organization_id = p_organization
                    and l.token_type = p.token_type and l.number = p.place
                where p.charges and l.created_at > v_since)
            or exists (select from places p
                join public.ai_token_events e on e.organization_id = p_organization
                    and e.token_type = p.token_type and e.number = p.place
                where not p.charges and e.created_at > v_since)
        into v_many;
    end if;
    if v_many then
        select count(*), min(at) into v_count, v_first from (
            (select created_at as at from public.ai_token_usage_log
                where organization_id = p_organization and user_id = p_user
                    and created_at > v_since and reservation_id is null
                order by created_at desc limit p_allowed)
            union all
            (select created_at from public.ai_token_reservations
                where organization_id = p_organization and user_id = p_user
                    and created_at > v_since
                order by created_at desc limit p_allowed)
            order by at desc limit p_allowed
        ) as newest;
    end if;
    return case when v_count >= p_allowed then v_first + interval '1 minute' end;
end
$$;

-- How many requests of a minute a user has left, at a glance that counts up to p_most: none where they
-- have to wait between two and made one, or where as many as are allowed or counted were made.
create function tokenlib.requests_left(
    p_organization uuid, p_user uuid, p_allowed integer, p_seconds numeric, p_now timestamptz,
    p_most integer
) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_most constant integer := case when p_seconds > 0 then 1 else least(p_allowed, p_most) end;
    v_made bigint;
begin
    select count(*) into v_made from (
        (select from public.ai_token_usage_log
            where organization_id = p_organization and user_id = p_user
                and created_at > p_now - interval '1 minute' limit v_most)
        union all
        (select from public.ai_token_reservations
            where organization_id = p_organization and user_id = p_user
                and created_at > p_now - interval '1 minute' limit v_most)) as made;
    return case when v_made >= v_most then 0 else least(p_allowed - v_made, v_most) end;
end
$$;
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
-- The UI's questions; never the decision.

-- Balances of one organization, or of one of its wallets, up to date; wallets that are missing are
-- created (all but `shared`). Reads without a lock while nothing is due.
create function tokenlib.balances(p_organization uuid, p_token_type text default null)
returns setof public.ai_tokens
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_type record;
    w public.ai_tokens;
begin
    if not exists (select from public.organizations where id = p_organization) then
        raise exception '%', p_organization using errcode = 'TK404';
    end if;
    for v_type in
        select t.token_type, coalesce(a.event_number = 0 or a.due_at <= tokenlib.clock()
                or (a.plan is distinct from o.plan and t.token_type <> 'shared'), true) as stale
        from public.ai_token_types t
        cross join public.organizations o
        left join public.ai_tokens a
            on a.organization_id = o.id and a.token_type = t.token_type
        where o.id = p_organization and t.token_type = coalesce(p_token_type, t.token_type)
            and (t.token_type <> 'shared' or a.id is not null)
        order by t.token_type = 'shared', t.token_type
    loop
        if v_type.stale then
            perform tokenlib.open_wallet(p_organization, v_type.token_type);
        end if;
    end loop;
    return query
        select a.* from public.ai_tokens a
        join public.ai_token_types t using (token_type)
        where a.organization_id = p_organization
            and a.token_type = coalesce(p_token_type, a.token_type)
        order by t.position;
end
$$;

-- Whether the balance would pay, its own wallet or `shared`; what the plan does not include nothing pays.
create function tokenlib.has_enough(p_organization uuid, p_feature text, p_units bigint)
returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_fits constant boolean := tokenlib.check_input(p_units, null, null);
    v_shared public.ai_tokens;
    f record;
begin
    loop
        select c.token_type, c.cost * p_units as cost, t.balance, t.allowance,
            t.event_number > 0 and t.due_at > tokenlib.clock()
                and (t.plan is not distinct from o.plan or t.token_type = 'shared') as current
        into f
        from public.ai_token_features c
        left join public.organizations o on o.id = p_organization
        left join public.ai_tokens t
            on t.organization_id = o.id and t.token_type = c.token_type
        where c.feature = p_feature;
        exit when f.current;
        if not found then
            return 'unknown_feature';
        elsif (tokenlib.open_wallet(p_organization, f.token_type)).id is null then
            return 'unknown_organization';
        end if;
    end loop;
    if f.allowance is null or f.allowance > 0 and f.balance >= f.cost then
        return 'yes';
    elsif f.allowance = 0 then
        return 'no';
    end if;
    select * into v_shared from public.ai_tokens
    where organization_id = p_organization and token_type = 'shared';
    if v_shared.due_at <= tokenlib.clock() or v_shared.event_number = 0 then
        v_shared := tokenlib.open_wallet(p_organization, 'shared', p_create => false);
    end if;
    return case when v_shared.balance >= f.cost then 'yes' else 'no' end;
end
$$;

-- The whole verdict without charging, and the rule that would refuse. p_output_units: what metadata
-- would say that the answer has, or may have at most.
create function tokenlib.can_use(
    p_organization uuid, p_user uuid, p_feature text, p_units bigint, p_output_units bigint,
    p_limits boolean, p_mode text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    a tokenlib.answer;
begin
    a := (tokenlib.admit(p_organization, p_user, p_feature, p_units,
        case when p_output_units is not null
            then jsonb_build_object('output_units', p_output_units) end,
        null, null, p_limits, p_mode, true)).a;
    return a;
end
$$;
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
-- Five wallets, one per type, with the plan's allowance. Safe to call twice. Returns how many were
-- missing; p_dry_run only counts.
create function tokenlib.initialize(
    p_organization uuid, p_plan text, p_dry_run boolean, out status text, out plan text,
    out created bigint
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_type text;
begin
    created := 0;
    select o.plan into plan from public.organizations o where o.id = p_organization;
    if not found then
        status := 'unknown_organization';
        return;
    elsif p_plan is not null and p_plan is distinct from plan then
        status := 'plan_mismatch';
        return;
    end if;
    for v_type in
        select t.token_type from public.ai_token_types t
        where t.token_type <> 'shared' and not exists (
            select from public.ai_tokens a
            where a.organization_id = p_organization and a.token_type = t.token_type)
        order by t.token_type
    loop
        created := created + 1;
        if not p_dry_run then
            perform tokenlib.open_wallet(p_organization, v_type);
        end if;
    end loop;
    status := 'ok';
end
$$;

-- Moves an organization to another plan: the new allowance less what this period has used, refresh
-- date unchanged, purchases kept; so switching back and forth earns nothing.
create function tokenlib.change_plan(
    p_organization uuid, p_plan text, p_actor text, p_reason text, out status text, out plan text
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_type text;
    v_now timestamptz;
    v_wallets public.ai_tokens[] := '{}';
    w public.ai_tokens;
begin
    if not exists (select from public.ai_token_plans p where p.plan = p_plan) then
        status := 'unknown_plan';
        return;
    end if;
    for v_type in
        select token_type from public.ai_token_types where token_type <> 'shared' order by token_type
    loop
        w := tokenlib.open_wallet(p_organization, v_type);
        if w.id is null then
            status := 'unknown_organization';
            return;
        end if;
        v_wallets := v_wallets || w;
    end loop;
    select o.plan into plan from public.organizations o where o.id = p_organization for no key update;
    if plan is distinct from p_plan then
        update public.organizations o set plan = p_plan where o.id = p_organization;
        v_now := tokenlib.clock();
        foreach w in array v_wallets loop
            w := tokenlib.settle(w, p_plan, greatest(v_now, w.last_entry_at), p_actor, p_reason);
        end loop;
        insert into public.ai_token_changes (organization_id, action, actor, reason, before, after,
            created_at)
        values (p_organization, 'change_plan', p_actor, p_reason, jsonb_build_object('plan', plan),
            jsonb_build_object('plan', p_plan), v_now);
        plan := p_plan;
    end if;
    status := 'ok';
end
$$;

-- Ends every period that is due, once, however many callers run it at the same time. Returns how
-- many wallets were brought up to date, those of at most p_limit organizations, so that one call stays
-- short.
create function tokenlib.refresh(p_organization uuid, p_limit integer) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_now timestamptz := tokenlib.clock();
    v_organization uuid;
    v_type text;
    v_count bigint := 0;
begin
    -- In lock order; a wallet that somebody is using is brought up to date by that touch.
    for v_organization in
        select distinct a.organization_id from public.ai_tokens a
        join public.organizations o on o.id = a.organization_id
        where a.due_at <= v_now and (p_organization is null or a.organization_id = p_organization)
        order by a.organization_id limit p_limit
    loop
        for v_type in
            select token_type from public.ai_tokens
            where organization_id = v_organization and due_at <= v_now
            order by token_type = 'shared', token_type
            for no key update skip locked
        loop
            perform tokenlib.open_wallet(v_organization, v_type);
            v_count := v_count + 1;
        end loop;
    end loop;
    -- On one node whoever adds a request to the API takes away two old ones.
    if p_organization is null
        and current_setting('citus.propagate_set_commands', true) = 'local' then
        v_now := v_now - interval '7 days';
        delete from public.ai_token_api_requests where created_at < v_now;
    end if;
    return v_count;
end
$$;
-- Who may use AI at all: payment states, pauses, and the emergency switch. Not one balance moves.

create function tokenlib.set_status(
    p_organization uuid, p_status text, p_actor text, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before text;
    v_now timestamptz := tokenlib.clock();
begin
    if p_status is null or p_status not in ('active', 'limited', 'expired', 'suspended') then
        raise exception 'must be active, limited, expired or suspended, not %', p_status
            using errcode = '22023', column = 'status';
    end if;
    if not exists (select from public.organizations where id = p_organization) then
        return 'unknown_organization';
    end if;
    insert into public.ai_token_organization_settings (organization_id)
    values (p_organization) on conflict do nothing;
    select status into strict v_before from public.ai_token_organization_settings
    where organization_id = p_organization for no key update;
    update public.ai_token_organization_settings set status = p_status, status_since = v_now
    where organization_id = p_organization;
    insert into public.ai_token_changes (organization_id, action, actor, reason, before, after,
        created_at)
    values (p_organization, 'set_status', p_actor, p_reason,
        jsonb_build_object('status', v_before), jsonb_build_object('status', p_status), v_now);
    return 'ok';
end
$$;

create function tokenlib.pause_user(
    p_organization uuid, p_user uuid, p_paused boolean, p_actor text, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before jsonb;
    v_now timestamptz := tokenlib.clock();
begin
    if not exists (select from public.user_profiles
        where id = p_user and organization_id = p_organization) then
        return 'not_a_member';
    end if;
    -- The row first: of two at once the second must see what the first has set.
    insert into public.ai_token_user_settings (organization_id, user_id)
    values (p_organization, p_user) on conflict do nothing;
    select jsonb_build_object('user_id', p_user, 'paused', paused_at is not null)
    into strict v_before from public.ai_token_user_settings
    where organization_id = p_organization and user_id = p_user for no key update;
    update public.ai_token_user_settings set paused_at = case when p_paused then v_now end
    where organization_id = p_organization and user_id = p_user;
    insert into public.ai_token_changes (organization_id, action, actor, reason, before, after,
        created_at)
    values (p_organization, 'pause_user', p_actor, p_reason, v_before,
        jsonb_build_object('user_id', p_user, 'paused', p_paused), v_now);
    return 'ok';
end
$$;

-- The switch: enforce, log only, off; for everyone (p_organization null) or one organization; back
-- by itself at p_until.
create function tokenlib.set_mode(
    p_organization uuid, p_mode text, p_until timestamptz, p_actor text, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before jsonb;
    v_now timestamptz := tokenlib.clock();
begin
    if p_mode is null or p_mode not in ('enforce', 'log_only', 'off') then
        raise exception 'must be enforce, log_only or off, not %', p_mode
            using errcode = '22023', column = 'mode';
    end if;
    -- Enforce may end at once: so an organization's own mode is taken away.
    if p_mode <> 'enforce' and p_until <= v_now then
        raise exception 'must be later than now' using errcode = '22023', column = 'until';
    end if;
    if coalesce(btrim(p_reason), '') = '' then
        raise exception 'must say why the switch is used'
            using errcode = '22023', column = 'reason';
    end if;
    if p_organization is null then
        select jsonb_build_object('mode', mode, 'until', mode_until) into strict v_before
        from public.ai_token_parameters for update;
        update public.ai_token_parameters set mode = p_mode, mode_until = p_until;
    else
        if not exists (select from public.organizations where id = p_organization) then
            return 'unknown_organization';
        end if;
        insert into public.ai_token_organization_settings (organization_id)
        values (p_organization) on conflict do nothing;
        select jsonb_build_object('mode', mode, 'until', mode_until) into strict v_before
        from public.ai_token_organization_settings
        where organization_id = p_organization for no key update;
        update public.ai_token_organization_settings set mode = p_mode, mode_until = p_until
        where organization_id = p_organization;
    end if;
    insert into public.ai_token_changes (organization_id, action, actor, reason, before, after,
        created_at)
    values (p_organization, 'set_mode', p_actor, p_reason, v_before,
        jsonb_build_object('mode', p_mode, 'until', p_until), v_now);
    return 'ok';
end
$$;

-- A finding is settled by an entry with actor and reason; the balance stays as the customer has it.
create function tokenlib.settle_finding(
    p_organization uuid, p_finding uuid, p_actor text, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    f public.ai_token_findings;
    w public.ai_tokens;
    v_now timestamptz;
begin
    if coalesce(btrim(p_reason), '') = '' then
        raise exception 'must say how the finding was settled'
            using errcode = '22023', column = 'reason';
    end if;
    select * into f from public.ai_token_findings
    where organization_id = p_organization and id = p_finding for update;
    if not found then
        return 'unknown_finding';
    elsif f.settled_at is not null then
        return 'already_settled';
    end if;
    -- Not brought up to date: the organization may be gone, and the finding is settled all the same.
    select * into w from public.ai_tokens
    where organization_id = f.organization_id and token_type = f.token_type
    for no key update;
    if not found or w.event_number = 0 then
        w := tokenlib.open_wallet(f.organization_id, f.token_type);
    end if;
    v_now := greatest(tokenlib.clock(), w.last_entry_at);
    if w.id is null then
        insert into public.ai_token_changes (organization_id, action, actor, reason, after,
            created_at)
        values (p_organization, 'settle_finding', p_actor, p_reason,
            jsonb_build_object('finding', f.id, 'kind', f.kind), v_now);
    else
        w := tokenlib.append_event(w, 'finding_settled', v_now, p_actor => p_actor,
            p_reason => p_reason, p_subject => f.id, p_data => jsonb_build_object('kind', f.kind));
        perform tokenlib.store_wallet(w, v_now);
    end if;
    update public.ai_token_findings
    set settled_at = v_now, settled_by = p_actor, settlement = p_reason
    where organization_id = p_organization and id = p_finding;
    return 'ok';
end
$$;
-- For products that have no tables of their own for these.

create function tokenlib.create_organization(p_name text, p_plan text) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_id uuid;
begin
    if coalesce(btrim(p_name), '') = '' or length(p_name) > 200 then
        raise exception 'must have 1 to 200 characters' using errcode = '22023', column = 'name';
    end if;
    if not exists (select from public.ai_token_plans where plan = p_plan) then
        return null;
    end if;
    insert into public.organizations (name, plan) values (btrim(p_name), p_plan)
    returning id into v_id;
    perform tokenlib.initialize(v_id, p_plan, false);
    return v_id;
end
$$;

-- An e-mail address stands once in an organization, in any case. The table may be the product's own,
-- which says nothing of that: so whoever adds an address takes turns.
create function tokenlib.add_member(
    p_organization uuid, p_name text, p_email text, out status text, out id uuid
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    if coalesce(btrim(p_name), '') = '' or length(p_name) > 200 then
        raise exception 'must have 1 to 200 characters' using errcode = '22023', column = 'name';
    end if;
    if p_email is null or p_email !~ '^[^@\s]+@[^@\s]+$' or length(p_email) > 320 then
        raise exception 'must be an e-mail address, not %', to_json(p_email)
            using errcode = '22023', column = 'email';
    end if;
    if not exists (select from public.organizations o where o.id = p_organization) then
        status := 'unknown_organization';
        return;
    end if;
    perform tokenlib.lock_key(p_organization, 'email ' || lower(p_email));
    select u.id into id from public.user_profiles u
    where u.organization_id = p_organization and lower(u.email) = lower(p_email)
    order by u.id limit 1;
    if found then
        status := 'already_a_member';
        return;
    end if;
    insert into public.user_profiles as u (organization_id, full_name, email)
    values (p_organization, btrim(p_name), p_email) returning u.id into id;
    status := 'ok';
end
$$;

-- Quests of the demo feature. Members write nothing directly; the acting user is checked here.
create function tokenlib.save_quest(
    p_organization uuid, p_user uuid, p_title text, p_description text, p_quarter text,
    p_target bigint, p_metadata jsonb
) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_id uuid;
begin
    if not exists (select from public.user_profiles
        where id = p_user and organization_id = p_organization) then
        return null;
    end if;
    insert into public.quests (organization_id, title, description, quarter, target_amount, metadata,
        created_by, created_at)
    values (p_organization, p_title, p_description, p_quarter, p_target, p_metadata, p_user,
        tokenlib.clock())
    returning id into v_id;
    return v_id;
end
$$;

create function tokenlib.advance_quest(
    p_organization uuid, p_user uuid, p_quest uuid, p_progress integer, p_metadata jsonb
) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from public.user_profiles
        where id = p_user and organization_id = p_organization) then
        return false;
    end if;
    update public.quests set progress = p_progress, metadata = p_metadata,
        status = case when p_progress = 100 then 'completed' else 'active' end
    where organization_id = p_organization and id = p_quest;
    return found;
end
$$;

-- Keeps the history of what the health view measured.
create function tokenlib.record_latency(p_operation text, p_milliseconds double precision)
returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into public.ai_token_latencies (measured_at, operation, milliseconds)
    values (clock_timestamp(), p_operation, p_milliseconds);
end
$$;
-- What staff may do, decided here and not in the page that shows the button: each function takes the
-- acting person and looks them up in tokenlib_staff before anything else happens. Support gives gifts
-- up to a daily limit and releases holds; the rest is for admins. The actor on record is the person's
-- id as text.

-- The role of a staff person who has one of p_roles; anybody else ends here. Holds the person's row
-- until the end: whoever removes them waits for what they are doing, or is seen by it.
create function tokenlib.require_staff(p_actor uuid, p_roles text[]) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    v_role text;
begin
    select role into v_role from public.tokenlib_staff
    where user_id = p_actor and coalesce(until, 'infinity') > tokenlib.clock() for share;
    if v_role is null then
        raise exception 'Only staff may do this.' using errcode = 'TK403';
    elsif v_role <> all (p_roles) then
        raise exception 'Only % may do this; your role is %.', array_to_string(p_roles, ' or '),
            v_role using errcode = 'TK403';
    end if;
    return v_role;
end
$$;

create function tokenlib.require_reason(p_reason text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    if coalesce(p_reason, '') !~ '\S' then
        raise exception 'must say why' using errcode = '22023', column = 'reason';
    end if;
end
$$;

create function tokenlib.record_change(
    p_organization uuid, p_action text, p_actor uuid, p_reason text, p_before jsonb, p_after jsonb
) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    insert into public.ai_token_changes (organization_id, action, actor, reason, before, after,
        created_at)
    values (p_organization, p_action, p_actor::text, p_reason, p_before, p_after, tokenlib.clock());
end
$$;

-- What a person granted in the present UTC day, arrived or scheduled.
create function tokenlib.granted_today(p_actor uuid) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    return (select coalesce(sum((data ->> 'amount')::bigint), 0)::bigint from public.ai_token_events
    where kind in ('grant', 'grant_scheduled') and actor = p_actor::text
        and created_at >= date_trunc('day', tokenlib.clock(), 'UTC'));
end
$$;

create function tokenlib.staff_grant(
    p_actor uuid, p_organization uuid, p_token_type text, p_amount bigint, p_kind text,
    p_source text, p_effective timestamptz, p_expires timestamptz, p_reason text, p_key text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_limit bigint;
    v_granted bigint;
begin
    perform tokenlib.require_reason(p_reason);
    -- One grant of a support person at a time: two tabs cannot both see the same room. Their row, since
    -- an advisory lock is a node's own on Citus.
    perform from public.tokenlib_staff
    where user_id = p_actor and role = 'support' for no key update;
    if tokenlib.require_staff(p_actor, '{admin,support}') = 'support' then
        if p_kind is distinct from 'gift' then
            raise exception 'Support gives gifts; an admin adds purchases and adjustments.'
                using errcode = 'TK403';
        elsif p_effective is not null then
            raise exception 'Support gives at once; an admin sets a date.' using errcode = 'TK403';
        end if;
        -- A replay gives nothing, so it needs no room.
        if p_key is null or not exists (select from public.ai_token_events
            where organization_id = p_organization and idempotency_key = p_key) then
            select grants_per_day into strict v_limit from public.tokenlib_staff
            where user_id = p_actor;
            v_granted := tokenlib.granted_today(p_actor);
            if v_granted + p_amount > v_limit then
                raise exception 'You may give % tokens a day; % are left today.', v_limit,
                    greatest(0, v_limit - v_granted) using errcode = 'TK403',
                    hint = 'An admin can grant more, or raise the limit.';
            end if;
        end if;
    end if;
    return tokenlib.grant_tokens(p_organization, p_token_type, p_amount, p_kind, p_source,
        p_effective, p_expires, p_actor::text, p_reason, p_key);
end
$$;

create function tokenlib.staff_release(
    p_actor uuid, p_organization uuid, p_reservation uuid, p_reason text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin,support}');
    return tokenlib.release(p_organization, p_reservation, p_actor::text, p_reason);
end
$$;

create function tokenlib.staff_refund(
    p_actor uuid, p_organization uuid, p_usage uuid, p_reason text, p_key text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    return tokenlib.refund(p_organization, p_usage, p_actor::text, p_reason, p_key);
end
$$;

create function tokenlib.staff_change_plan(
    p_actor uuid, p_organization uuid, p_plan text, p_reason text, out status text, out plan text
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    select c.status, c.plan into status, plan
    from tokenlib.change_plan(p_organization, p_plan, p_actor::text, p_reason) as c;
end
$$;

create function tokenlib.staff_set_status(
    p_actor uuid, p_organization uuid, p_status text, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    return tokenlib.set_status(p_organization, p_status, p_actor::text, p_reason);
end
$$;

create function tokenlib.staff_pause_user(
    p_actor uuid, p_organization uuid, p_user uuid, p_paused boolean, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    return tokenlib.pause_user(p_organization, p_user, p_paused, p_actor::text, p_reason);
end
$$;

create function tokenlib.staff_settle_finding(
    p_actor uuid, p_organization uuid, p_finding uuid, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    return tokenlib.settle_finding(p_organization, p_finding, p_actor::text, p_reason);
end
$$;

create function tokenlib.staff_set_mode(
    p_actor uuid, p_organization uuid, p_mode text, p_until timestamptz, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    return tokenlib.set_mode(p_organization, p_mode, p_until, p_actor::text, p_reason);
end
$$;

-- Keeps the result of a verification of everybody.
create function tokenlib.record_verification(p_wallets bigint, p_entries bigint, p_problems bigint)
returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into public.ai_token_verifications (at, wallets, entries, problems)
    values (tokenlib.clock(), p_wallets, p_entries, p_problems);
end
$$;
-- Erases the metadata of one person: of their log rows, reservations and quests. Each wallet gets an
-- entry first, with who, why and how many; the log's trigger lets nothing pass without it, and verify
-- finds metadata that is gone without it. The chain still holds, since it covers a digest. The user
-- may be deleted by now.
create function tokenlib.erase_metadata(
    p_organization uuid, p_user uuid, p_actor text, p_reason text,
    out status text, out log_entries bigint, out reservations bigint, out quests bigint
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_type text;
    w public.ai_tokens;
    v_now timestamptz;
    v_rows bigint;
begin
    perform tokenlib.require_reason(p_reason);
    if not exists (select from public.organizations where id = p_organization)
        and not exists (select from public.ai_tokens where organization_id = p_organization) then
        raise exception '%', p_organization using errcode = 'TK404';
    end if;
    -- Whoever was erased before is still known by the rows: then there is nothing left to do.
    if not exists (select from public.user_profiles
            where id = p_user and organization_id = p_organization)
        and not exists (select from public.ai_token_usage_log
            where organization_id = p_organization and user_id = p_user)
        and not exists (select from public.ai_token_reservations
            where organization_id = p_organization and user_id = p_user)
        and not exists (select from public.quests q
            where q.organization_id = p_organization and q.created_by = p_user) then
        status := 'not_a_member';
        return;
    end if;
    log_entries := 0;
    -- Also a wallet with a hold alone: who deducts it meanwhile would log what is erased here.
    for v_type in
        select token_type from (
            select token_type from public.ai_token_usage_log
            where organization_id = p_organization and user_id = p_user and metadata is not null
            union
            select token_type from public.ai_token_reservations
            where organization_id = p_organization and user_id = p_user and metadata is not null
        ) as found
        order by token_type = 'shared', token_type
    loop
        -- Not brought up to date: the organization may be gone, and erasing must still be possible.
        select * into w from public.ai_tokens
        where organization_id = p_organization and token_type = v_type
        for no key update;
        if not found or w.event_number = 0 then
            w := tokenlib.open_wallet(p_organization, v_type);
            if w.id is null then
                raise exception '%', p_organization using errcode = 'TK404';
            end if;
        end if;
        select count(*) into v_rows from public.ai_token_usage_log
        where organization_id = p_organization and token_type = v_type and user_id = p_user
            and metadata is not null;
        continue when v_rows = 0;
        v_now := greatest(tokenlib.clock(), w.last_entry_at);
        w := tokenlib.append_event(w, 'metadata_erased', v_now, p_actor => p_actor,
            p_reason => p_reason, p_subject => p_user,
            p_data => jsonb_build_object('log_entries', v_rows));
        perform tokenlib.store_wallet(w, v_now);
        update public.ai_token_usage_log
        set metadata = null,
            metadata_digest = coalesce(metadata_digest, tokenlib.digest(metadata))
        where organization_id = p_organization and token_type = v_type and user_id = p_user
            and metadata is not null;
        log_entries := log_entries + v_rows;
    end loop;
    update public.ai_token_reservations set metadata = null
    where organization_id = p_organization and user_id = p_user and metadata is not null;
    get diagnostics reservations = row_count;
    update public.quests q set metadata = '{}'
    where q.organization_id = p_organization and q.created_by = p_user and q.metadata <> '{}';
    get diagnostics quests = row_count;
    insert into public.ai_token_changes (organization_id, action, actor, reason, after, created_at)
    values (p_organization, 'erase_metadata', p_actor, p_reason,
        jsonb_build_object('user_id', p_user, 'log_entries', log_entries,
            'reservations', reservations, 'quests', quests), tokenlib.clock());
    status := 'ok';
end
$$;
-- API keys: made, rotated and revoked by admins, each on record. The secret never comes here, only its
-- HMAC and what it begins with.

-- p_id is the caller's name for it, so that a reply that was lost can be asked for again.
create function tokenlib.staff_create_key(
    p_actor uuid, p_id uuid, p_organization uuid, p_name text, p_start text, p_digest bytea,
    p_scopes text[], p_expires timestamptz, p_requests_per_minute integer,
    p_seconds_between_requests numeric, p_tokens_per_request bigint,
    p_output_units_per_request bigint, p_limit_users boolean, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_now timestamptz := tokenlib.clock();
    v_wrong text;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    select name into v_wrong from (values
        ('requests_per_minute', p_requests_per_minute::numeric),
        ('seconds_between_requests', p_seconds_between_requests),
        ('tokens_per_request', p_tokens_per_request),
        ('output_units_per_request', p_output_units_per_request)) as l (name, value)
    where value <= 0 or value > 1000000000 limit 1;
    if v_wrong is not null then
        raise exception 'must be more than 0 and at most 1000000000, or empty for no limit'
            using errcode = '22023', column = v_wrong;
    elsif p_name is null or p_name !~ '\S' or length(p_name) > 100 then
        raise exception 'must have 1 to 100 characters' using errcode = '22023', column = 'name';
    elsif cardinality(p_scopes) is distinct from (select count(distinct s) from unnest(p_scopes) as s)
        or p_scopes = '{}' or not p_scopes <@ '{check,spend,read,admin,metrics}' then
        raise exception 'must be some of check, spend, read, admin, metrics, each once'
            using errcode = '22023', column = 'scopes';
    elsif p_expires <= v_now then
        raise exception 'must be later than now' using errcode = '22023', column = 'expires_at';
    elsif p_organization is not null and 'metrics' = any (p_scopes) then
        raise exception 'may not have metrics in a key of one organization: they speak of all'
            using errcode = '22023', column = 'scopes';
    end if;
    if p_organization is not null
        and not exists (select from public.organizations where id = p_organization) then
        return 'unknown_organization';
    elsif exists (select from public.ai_token_api_keys where id = p_id and digest = p_digest) then
        return 'ok';
    end if;
    insert into public.ai_token_api_keys (id, organization_id, name, start, digest, scopes, owner_id,
        requests_per_minute, seconds_between_requests, tokens_per_request, output_units_per_request,
        limit_users, created_at, expires_at)
    values (p_id, p_organization, btrim(p_name), p_start, p_digest, p_scopes, p_actor,
        p_requests_per_minute, p_seconds_between_requests, p_tokens_per_request,
        p_output_units_per_request, coalesce(p_limit_users, false), v_now, p_expires);
    perform tokenlib.record_change(p_organization, 'create_key', p_actor, p_reason, null,
        jsonb_build_object('id', p_id, 'name', btrim(p_name), 'start', p_start, 'scopes', p_scopes,
            'expires_at', p_expires));
    return 'ok';
end
$$;

-- A key that makes another, or gets its new secret, gets no more than it has itself: in scopes, time,
-- each limit, and whom it acts as. In which organizations, tokenlib.standing has decided. Of a person it
-- asks nothing.
create function tokenlib.require_no_more(p_maker uuid, p_key uuid) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_more text;
begin
    select l.name into v_more
    from public.ai_token_api_keys m
    join public.ai_token_api_keys k on k.id = p_key
    cross join lateral (values
        ('owner_id', k.owner_id = m.owner_id),
        ('scopes', k.scopes <@ m.scopes),
        ('expires_at', coalesce(k.expires_at, 'infinity') <= coalesce(m.expires_at, 'infinity')),
        ('requests_per_minute', m.requests_per_minute is null
            or coalesce(k.requests_per_minute <= m.requests_per_minute, false)),
        ('seconds_between_requests', m.seconds_between_requests is null
            or coalesce(k.seconds_between_requests >= m.seconds_between_requests, false)),
        ('tokens_per_request', m.tokens_per_request is null
            or coalesce(k.tokens_per_request <= m.tokens_per_request, false)),
        ('output_units_per_request', m.output_units_per_request is null
            or coalesce(k.output_units_per_request <= m.output_units_per_request, false)),
        ('limit_users', k.limit_users >= m.limit_users)) as l (name, within)
    where m.id = p_maker and not l.within limit 1;
    if v_more = 'owner_id' then
        raise exception 'A key may rotate only keys of the admin whom it acts as.'
            using errcode = 'TK403';
    elsif v_more is not null then
        raise exception 'A key cannot get more for another than it has itself: %.', v_more
            using errcode = 'TK403';
    end if;
end
$$;

-- A new secret for the same key; the one before it stays good for p_overlap.
create function tokenlib.staff_rotate_key(
    p_actor uuid, p_id uuid, p_start text, p_digest bytea, p_overlap interval, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    k public.ai_token_api_keys;
    v_now timestamptz := tokenlib.clock();
    -- A sum that hangs on the session's zone: inside the update it is none for Citus.
    v_until timestamptz := case when p_overlap > interval '0' then v_now + p_overlap end;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    if p_overlap is null or p_overlap < interval '0' or p_overlap > interval '30 days' then
        raise exception 'must be from 0 s to 30 days' using errcode = '22023', column = 'overlap';
    end if;
    select * into k from public.ai_token_api_keys where id = p_id for update;
    if not found then
        return 'unknown_key';
    elsif k.digest = p_digest then
        return 'ok';
    elsif k.revoked_at is not null or k.expires_at <= v_now then
        return 'key_over';
    end if;
    update public.ai_token_api_keys set digest = p_digest, start = p_start,
        old_digest = case when p_overlap > interval '0' then k.digest end,
        old_until = v_until
    where id = p_id;
    perform tokenlib.record_change(k.organization_id, 'rotate_key', p_actor, p_reason,
        jsonb_build_object('id', p_id, 'name', k.name, 'start', k.start),
        jsonb_build_object('id', p_id, 'name', k.name, 'start', p_start,
            'old_until', v_now + p_overlap));
    return 'ok';
end
$$;

-- Ends a key at once: the next call with it is refused. Twice is the same as once.
create function tokenlib.staff_revoke_key(p_actor uuid, p_id uuid, p_reason text) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    k public.ai_token_api_keys;
    v_now timestamptz := tokenlib.clock(); -- inside the update Citus takes no volatile function
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    select * into k from public.ai_token_api_keys where id = p_id for update;
    if not found then
        return 'unknown_key';
    elsif k.revoked_at is not null then
        return 'ok';
    end if;
    update public.ai_token_api_keys set revoked_at = v_now where id = p_id;
    perform tokenlib.record_change(k.organization_id, 'revoke_key', p_actor, p_reason,
        jsonb_build_object('id', p_id, 'name', k.name, 'start', k.start, 'scopes', k.scopes), null);
    return 'ok';
end
$$;

-- How many calls that charge or hold the API takes a minute from an organization, over all its users
-- and keys. Null: no limit for everyone (p_organization null), as for everyone for one organization.
create function tokenlib.staff_set_request_limit(
    p_actor uuid, p_organization uuid, p_requests_per_minute integer, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before integer;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    if p_requests_per_minute not between 1 and 1000000000 then
        raise exception 'must be from 1 to 1000000000, or empty for no limit'
            using errcode = '22023', column = 'requests_per_minute';
    end if;
    if p_organization is null then
        select organization_requests_per_minute into strict v_before
        from public.ai_token_parameters for update;
        update public.ai_token_parameters
        set organization_requests_per_minute = p_requests_per_minute;
    else
        if not exists (select from public.organizations where id = p_organization) then
            return 'unknown_organization';
        end if;
        select requests_per_minute into v_before from public.ai_token_organization_settings
        where organization_id = p_organization for no key update;
        insert into public.ai_token_organization_settings (organization_id, requests_per_minute)
        values (p_organization, p_requests_per_minute)
        on conflict (organization_id) do update
        set requests_per_minute = excluded.requests_per_minute;
    end if;
    perform tokenlib.record_change(p_organization, 'set_request_limit', p_actor, p_reason,
        jsonb_build_object('requests_per_minute', v_before),
        jsonb_build_object('requests_per_minute', p_requests_per_minute));
    return 'ok';
end
$$;

-- The last use of a key is kept to the minute. Whoever finds the row taken leaves this to them: a
-- charge does not wait for it.
create function tokenlib.use_key(p_id uuid, p_now timestamptz) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
    update public.ai_token_api_keys set last_used_at = p_now
    where id = (select id from public.ai_token_api_keys
        where id = p_id and coalesce(last_used_at, '-infinity') < p_now - interval '1 minute'
        for no key update skip locked)
$$;

-- The key that a secret opens, while it is good.
create function tokenlib.authenticate_key(
    p_digest bytea, out id uuid, out organization_id uuid, out name text, out scopes text[]
) returns setof record
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    k public.ai_token_api_keys;
    v_now timestamptz := tokenlib.clock();
begin
    select * into k from public.ai_token_api_keys a
    where a.digest = p_digest or (a.old_digest = p_digest and a.old_until > v_now);
    if k.id is null or k.revoked_at is not null or k.expires_at <= v_now then
        return;
    end if;
    perform tokenlib.use_key(k.id, v_now);
    id := k.id;
    organization_id := k.organization_id;
    name := k.name;
    scopes := k.scopes;
    return next;
end
$$;
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
-- The limits of API keys and of organizations on calls that charge or hold.

-- The minute windows that a call stands in: of the user, of the key, of the organization. What was
-- refused or replayed does not count.
create function tokenlib.request_windows(
    p_organization uuid, p_user uuid, p_key uuid, p_now timestamptz
) returns table (name text, allowed bigint, used bigint, first_at timestamptz)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_since timestamptz := p_now - interval '1 minute';
begin
    select requests_per_minute into allowed from public.ai_token_limits
    where organization_id = p_organization or organization_id is null
    order by organization_id nulls last limit 1;
    if p_user is not null and allowed is not null then
        name := 'user_requests_per_minute';
        select count(*), min(at) into used, first_at from (
            select created_at as at from public.ai_token_usage_log
            where organization_id = p_organization and user_id = p_user
                and created_at > v_since and reservation_id is null
            union all
            select created_at from public.ai_token_reservations
            where organization_id = p_organization and user_id = p_user and created_at > v_since
        ) as requests;
        return next;
    end if;
    select requests_per_minute into allowed from public.ai_token_api_keys where id = p_key;
    if allowed is not null then
        name := 'key_requests_per_minute';
        select count(*), min(created_at) into used, first_at from public.ai_token_api_requests
        where caller_id = p_key and created_at > v_since and verb in ('deduct', 'reserve');
        return next;
    end if;
    select coalesce(s.requests_per_minute, p.organization_requests_per_minute) into strict allowed
    from public.ai_token_parameters p
    left join public.ai_token_organization_settings s on s.organization_id = p_organization;
    if allowed is not null then
        name := 'organization_requests_per_minute';
        select count(*), min(created_at) into used, first_at from public.ai_token_api_requests
        where organization_id = p_organization and created_at > v_since
            and verb in ('deduct', 'reserve');
        return next;
    end if;
end
$$;

-- What a limit that is reached means by the switch: rate_limited, or ok; on record unless it is off.
create function tokenlib.refuse_request(
    a tokenlib.answer, p_now timestamptz, p_mode text, p_asking boolean
) returns tokenlib.answer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    select coalesce(p_mode,
        case when s.mode_until is null or s.mode_until > p_now then s.mode end,
        case when p.mode_until is null or p.mode_until > p_now then p.mode end, 'enforce')
    into strict a.mode
    from public.ai_token_parameters p
    left join public.ai_token_organization_settings s on s.organization_id = a.organization_id;
    a.status := 'rate_limited';
    if a.mode <> 'off' and not p_asking then
        -- As a charge, which has its transaction id before it reads the clock.
        perform pg_current_xact_id();
        perform tokenlib.record_refusal(a, tokenlib.clock());
    end if;
    if a.mode <> 'enforce' then
        a.status := 'ok';
    end if;
    return a;
end
$$;

-- Limits of the key and of the organization; those of the user are the gate's own. status ok, or
-- rate_limited and on record. Callers of the same key or organization take turns where it has a limit.
-- p_asking: only ask; nobody waits, and nothing is recorded.
create function tokenlib.check_request_limits(
    p_organization uuid, p_user uuid, p_key uuid, p_feature text, p_units bigint, p_metadata jsonb,
    p_mode text, p_asking boolean
) returns tokenlib.answer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    a tokenlib.answer;
    k public.ai_token_api_keys;
    r record;
    v_now timestamptz;
    v_last timestamptz;
begin
    a.status := 'ok';
    select * into k from public.ai_token_api_keys where id = p_key;
    if not p_asking
        and (k.requests_per_minute is not null or k.seconds_between_requests is not null) then
        -- One lock wherever it calls: a key may be for every organization.
        perform tokenlib.lock_key('00000000-0000-0000-0000-000000000000', 'key ' || p_key::text);
    end if;
    if not p_asking and exists (select from public.ai_token_parameters p
        left join public.ai_token_organization_settings s on s.organization_id = p_organization
        where coalesce(s.requests_per_minute, p.organization_requests_per_minute) is not null) then
        perform tokenlib.lock_key(p_organization, 'requests');
    end if;
    v_now := tokenlib.clock();
    a.organization_id := p_organization;
    a.user_id := p_user;
    a.feature := p_feature;
    select token_type, cost * p_units into a.token_type, a.needed
    from public.ai_token_features where feature = p_feature;
    if a.needed > k.tokens_per_request then
        a.limit_name := 'key_tokens_per_request';
        a.allowed := k.tokens_per_request;
    elsif tokenlib.output_units(p_metadata) > k.output_units_per_request then
        a.limit_name := 'key_output_units_per_request';
        a.allowed := k.output_units_per_request;
    end if;
    for r in select * from tokenlib.request_windows(p_organization, null, p_key, v_now) loop
        if a.limit_name is null and r.used >= r.allowed then
            a.limit_name := r.name;
            a.allowed := r.allowed;
            a.retry_after := extract(epoch from r.first_at + interval '1 minute' - v_now);
        end if;
    end loop;
    if a.limit_name is null and k.seconds_between_requests is not null then
        select max(created_at) into v_last from public.ai_token_api_requests
        where caller_id = p_key and verb in ('deduct', 'reserve');
        if extract(epoch from v_now - v_last) < k.seconds_between_requests then
            a.limit_name := 'key_seconds_between_requests';
            a.allowed := ceil(k.seconds_between_requests);
            a.retry_after := k.seconds_between_requests - extract(epoch from v_now - v_last);
        end if;
    end if;
    return case when a.limit_name is null then a
        else tokenlib.refuse_request(a, v_now, p_mode, p_asking) end;
end
$$;
-- The rollups of the log, closed step by step (five minutes) while charges are being written, with
-- nothing added to a charge. A charge has its transaction id before it reads the clock (it locks its
-- wallet first), and created_at is not before that. So: read the clock, then take an id; every transaction
-- that may still write before that time has an id below it. Once a later snapshot finds all of those
-- over, the time before is closed.

-- What an organization is kept under as a whole: as a person would be, of the id that stands for all.
create function tokenlib.whole_scope(p_organization uuid) returns uuid
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select md5(p_organization::text || '00000000-0000-0000-0000-000000000000')::uuid
$$;

-- The organizations that scopes of a kind (see usage_steps) speak of; null: of all.
create function tokenlib.scoped_organizations(p_kind text, p_scopes uuid[]) returns uuid[]
language sql stable set search_path = pg_catalog, pg_temp as $$
    select case p_kind when 'organization' then p_scopes when 'whole' then array(
        select organization_id from public.ai_token_usage_kept where scope = any (p_scopes)) end
$$;

-- What lies from p_from to p_to by scope, feature, wallet and step. p_kind says what the scopes are: all
-- (one, the zero UUID), plan (every one, as counted), organization, whole or user (those of p_scopes): a
-- whole is an organization without features and wallets.
create function tokenlib.usage_steps(
    p_kind text, p_scopes uuid[], p_step interval, p_from timestamptz, p_to timestamptz
) returns table (scope uuid, feature text, token_type text, start timestamptz, uses bigint,
    tokens bigint, waived bigint, refunded bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    v_organizations constant uuid[] := tokenlib.scoped_organizations(p_kind, p_scopes);
begin
    if p_kind = 'user' then
        return query
        select e.scope, '', '', e.start, sum(e.uses)::bigint, sum(e.tokens)::bigint,
            sum(e.waived)::bigint, sum(e.refunded)::bigint
        from (
            select k.scope, date_bin(p_step, l.created_at, '2000-01-01 00:00Z') as start,
                count(*) as uses, sum(l.tokens_deducted) as tokens, sum(l.tokens_waived) as waived,
                0 as refunded
            from public.ai_token_usage_kept k
            join public.ai_token_usage_log l
                on l.organization_id = k.organization_id and l.user_id = k.user_id
            where k.scope = any (p_scopes) and l.created_at >= p_from and l.created_at < p_to
            group by 1, 2
            union all
            select k.scope, date_bin(p_step, e.created_at, '2000-01-01 00:00Z'), 0, 0, 0,
                sum(e.balance_change)
            from public.ai_token_usage_kept k
            join public.ai_token_events e on e.organization_id = k.organization_id
                and e.kind = 'refund' and e.data ->> 'user_id' = k.user_id::text
            where k.scope = any (p_scopes) and e.created_at >= p_from and e.created_at < p_to
            group by 1, 2
        ) as e
        group by 1, 4;
        return;
    end if;
    return query
    select case p_kind when 'all' then '00000000-0000-0000-0000-000000000000'
            when 'plan' then md5(e.plan)::uuid
            when 'whole' then tokenlib.whole_scope(e.organization_id) else e.organization_id end,
        e.feature, e.token_type, e.start, sum(e.uses)::bigint, sum(e.tokens)::bigint,
        sum(e.waived)::bigint, sum(e.refunded)::bigint
    from (
        select case when p_kind = 'plan' then n.plan end as plan,
            case when p_kind in ('organization', 'whole') then l.organization_id end
                as organization_id,
            case when p_kind = 'whole' then '' else l.feature_used end as feature,
            case when p_kind = 'whole' then '' else l.token_type end as token_type,
            date_bin(p_step, l.created_at, '2000-01-01 00:00Z') as start,
            count(*) as uses, sum(l.tokens_deducted) as tokens, sum(l.tokens_waived) as waived,
            0 as refunded
        from public.ai_token_usage_log l
        left join public.ai_token_usage_seen n
            on p_kind = 'plan' and n.organization_id = l.organization_id
        where l.created_at >= p_from and l.created_at < p_to
            and (v_organizations is null or l.organization_id = any (v_organizations))
        group by 1, 2, 3, 4, 5
        union all
        select case when p_kind = 'plan' then n.plan end,
            case when p_kind in ('organization', 'whole') then e.organization_id end,
            case when p_kind = 'whole' then '' else coalesce(e.data ->> 'feature', '') end,
            case when p_kind = 'whole' then '' else e.token_type end,
            date_bin(p_step, e.created_at, '2000-01-01 00:00Z'), 0, 0, 0, sum(e.balance_change)
        from public.ai_token_events e
        left join public.ai_token_usage_seen n
            on p_kind = 'plan' and n.organization_id = e.organization_id
        where e.kind = 'refund' and e.created_at >= p_from and e.created_at < p_to
            and (v_organizations is null or e.organization_id = any (v_organizations))
        group by 1, 2, 3, 4, 5
    ) as e
    group by 1, 2, 3, 4;
end
$$;

-- Folds what lies from p_from to p_to into the sums; both are on the grid of p_step. What stood at p_from
-- is the base.
create function tokenlib.fold_sums(
    p_kind text, p_scopes uuid[], p_step interval, p_from timestamptz, p_to timestamptz
) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    insert into public.ai_token_usage_sums
        (organization_id, feature, token_type, at, uses, tokens, waived, refunded)
    select f.scope, f.feature, f.token_type, f.start + p_step,
        coalesce(b.uses, 0) + sum(f.uses) over before,
        coalesce(b.tokens, 0) + sum(f.tokens) over before,
        coalesce(b.waived, 0) + sum(f.waived) over before,
        coalesce(b.refunded, 0) + sum(f.refunded) over before
    from tokenlib.usage_steps(p_kind, p_scopes, p_step, p_from, p_to) as f
    left join lateral (
        select * from public.ai_token_usage_sums s
        where s.organization_id = f.scope and s.feature = f.feature
            and s.token_type = f.token_type and s.at <= p_from
        order by s.at desc limit 1) as b on true
    window before as (partition by f.scope, f.feature, f.token_type order by f.start)
$$;

-- Who had 10,000 charges in 30 days as an organization, or 1,000 as a person, is kept from then on; their
-- past is folded once. Such an organization is kept as a whole, too: a list of many has no use for features.
create function tokenlib.fold_kept(p_from timestamptz, p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c_all constant uuid := '00000000-0000-0000-0000-000000000000';
    v_kind text;
    v_step interval;
    v_from timestamptz;
    v_to timestamptz;
    v_ids uuid[];
begin
    for v_kind, v_step in values ('organization', interval '15 minutes'), ('whole', '15 minutes'),
        ('user', '1 hour')
    loop
        v_to := date_bin(v_step, p_to, '2000-01-01 00:00Z');
        continue when v_to <= p_from;
        for v_from, v_ids in
            select closed_to, array_agg(scope) from public.ai_token_usage_kept
            where plan is null and closed_to < v_to and v_kind = case when user_id is null
                then 'organization' when user_id = c_all then 'whole' else 'user' end
            group by closed_to
        loop
            perform tokenlib.fold_sums(v_kind, v_ids, v_step, v_from, v_to);
            update public.ai_token_usage_kept set closed_to = v_to where scope = any (v_ids);
        end loop;
        with found as (
            insert into public.ai_token_usage_kept (scope, organization_id, user_id, closed_to)
            select case v_kind when 'organization' then organization_id
                    else md5(organization_id::text || user_id)::uuid end,
                organization_id, case when v_kind <> 'organization' then user_id end, v_to
            from public.ai_token_usage_windows
            where days = 30 and case when v_kind <> 'user' then
                    user_id = c_all and uses >= 10000
                else user_id not in (c_all, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
                    and uses >= 1000 end
            on conflict do nothing
            returning scope)
        select array_agg(scope) into v_ids from found;
        if v_ids is not null then
            perform tokenlib.fold_sums(v_kind, v_ids, v_step, '-infinity', v_to);
        end if;
    end loop;
end
$$;

-- Organizations whose use the sums count to another plan than they have now. If p_late only rows that
-- were written since nobody's differed are compared: unless one is missing. What is older than two
-- billion transactions has no age.
create function tokenlib.plans_changed(p_late boolean)
returns table (organization_id uuid, counted text, plan text)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_age integer;
    v_known bigint;
    v_all bigint;
    v_late uuid[];
begin
    select age(plans_xid::xid), plans_organizations into v_age, v_known
    from public.ai_token_usage_closed;
    if p_late and v_age >= 0 then
        select count(*), array_agg(id) filter (where age(xmin) <= v_age or age(xmin) < 0)
        into v_all, v_late
        from public.organizations;
        if v_all >= v_known then
            return query
            select n.organization_id, n.plan, coalesce(o.plan, '')
            from unnest(v_late) as id
            join public.organizations o using (id)
            join public.ai_token_usage_seen n on n.organization_id = id
            where n.plan <> coalesce(o.plan, '');
            return;
        end if;
    end if;
    return query
    select n.organization_id, n.plan, coalesce(o.plan, '')
    from public.ai_token_usage_seen n
    left join public.organizations o on o.id = n.organization_id
    where n.plan <> coalesce(o.plan, '');
end
$$;

-- By plan. What an organization used before it changed its plan follows it there at midnight, or at once
-- where that is much, since until then it is read row by row: then all plans are made anew, as far as
-- nothing is archived.
create function tokenlib.fold_plans(p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    v_from timestamptz := (select min(closed_to) from public.ai_token_usage_kept
        where plan is not null);
    v_xid xid8 := pg_snapshot_xmin(pg_current_snapshot()); -- before anything is looked at
    v_moved uuid[];
begin
    if v_from >= p_to then
        return;
    end if;
    v_moved := array(select organization_id from tokenlib.plans_changed(false));
    if v_moved <> '{}' and (date_bin('24 hours', v_from, '2000-01-01 00:00Z')
            < date_bin('24 hours', p_to, '2000-01-01 00:00Z')
        or (select sum(uses) from public.ai_token_usage_windows
            where organization_id = any (v_moved) and days = 90
                and user_id = '00000000-0000-0000-0000-000000000000') > 10000
        -- No row of these is found late.
        or (select count(*) from public.organizations where id = any (v_moved))
            < cardinality(v_moved)) then
        v_from := tokenlib.usage_archived_to();
        v_from := case when v_from < p_to then v_from end;
        delete from public.ai_token_usage_sums s using public.ai_token_usage_kept k
        where s.organization_id = k.scope and k.plan is not null
            and (v_from is null or s.at > v_from);
        update public.ai_token_usage_seen n set plan = m.plan
        from tokenlib.plans_changed(false) as m where m.organization_id = n.organization_id;
        v_moved := '{}';
    end if;
    if v_moved = '{}' then
        update public.ai_token_usage_closed set plans_xid = v_xid,
            plans_organizations = (select count(*) from public.organizations);
    end if;
    perform tokenlib.fold_sums('plan', null, '15 minutes', coalesce(v_from, '-infinity'), p_to);
    insert into public.ai_token_usage_kept (scope, plan, closed_to)
    select md5(plan)::uuid, plan, p_to
    from (select plan from public.ai_token_usage_seen union select plan from public.ai_token_plans
        union select '') as plans
    on conflict (scope) do update set closed_to = excluded.closed_to;
end
$$;

-- Of 17 days before p_to: the movers of a week look back over 15.
create function tokenlib.fold_days(p_from timestamptz, p_to timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    insert into public.ai_token_usage_days as d (organization_id, day, tokens, first_at, last_at)
    select organization_id, date_bin('24 hours', created_at, '2000-01-01 00:00Z'),
        sum(tokens_deducted), min(created_at), max(created_at)
    from public.ai_token_usage_log
    where created_at >= p_from and created_at < p_to
    group by 1, 2
    on conflict (organization_id, day) do update set tokens = d.tokens + excluded.tokens,
        last_at = excluded.last_at;
    -- At a midnight, since it reads the whole table.
    delete from public.ai_token_usage_days
    where day < date_bin('24 hours', p_to - interval '408 hours', '2000-01-01 00:00Z')
        and date_bin('24 hours', p_from, '2000-01-01 00:00Z')
            < date_bin('24 hours', p_to, '2000-01-01 00:00Z');
$$;

-- Closes what can be closed, at most p_most of time in one call; `behind` says that more is ready.
-- Nothing where somebody else is at it. Whoever calls it again goes on where this ended.
create function tokenlib.close_usage(p_most interval, out closed_to timestamptz, out behind boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set timezone = 'UTC' set work_mem = '64MB' as $$
declare
    c public.ai_token_usage_closed;
    v_from timestamptz;
    v_ready timestamptz;
    v_next timestamptz;
    v_id xid8;
begin
    if current_setting('transaction_isolation') <> 'read committed'
        or pg_current_xact_id_if_assigned() is not null then
        raise exception 'usage is closed in read committed, and first in its transaction'
            using errcode = '25001';
    end if;
    behind := false;
    -- Which transactions are over a node of Citus knows of itself alone, so nothing can be closed: the
    -- questions read the log.
    if current_setting('citus.propagate_set_commands', true) = 'local' then
        return;
    end if;
    if not pg_try_advisory_xact_lock(7305404) then
        return;
    end if;
    -- In this order: the clock, then an id of our own. Whoever writes has an id before they read the
    -- clock, so that of whoever read it before us is below ours; the highest of a snapshot is not enough,
    -- which knows of ids that are over. A minute of the past is left, for a clock that is set back a little.
    v_next := date_bin('5 minutes', tokenlib.clock() - interval '1 minute', '2000-01-01 00:00Z');
    v_id := pg_current_xact_id();
    select * into c from public.ai_token_usage_closed;
    if not found then
        insert into public.ai_token_usage_closed default values;
    end if;
    if pg_snapshot_xmin(pg_current_snapshot()) >= c.next_xid then
        v_from := coalesce(c.closed_to, date_bin('5 minutes', least(c.next_to,
            (select min(created_at) from public.ai_token_usage_log),
            (select min(created_at) from public.ai_token_events where kind = 'refund'),
            (select min(last_at) from public.ai_token_refusals)), '2000-01-01 00:00Z'));
        v_ready := c.next_to;
        c.closed_to := least(v_ready, v_from + p_most);
        behind := c.closed_to < v_ready;
        perform tokenlib.fold_sums('all', null, '5 minutes', v_from, c.closed_to);
        perform tokenlib.fold_active(v_from, c.closed_to);
        perform tokenlib.fold_refusals(v_from, c.closed_to);
        perform tokenlib.fold_plans(date_bin('15 minutes', c.closed_to, '2000-01-01 00:00Z'));
        -- Of a long way only the last window is wanted.
        if c.windows_to = v_from and v_ready - v_from <= interval '1 day' then
            perform tokenlib.fold_windows(v_from, c.closed_to);
            perform tokenlib.fold_wallets(v_from, c.closed_to);
            perform tokenlib.fold_costs(v_from, c.closed_to);
            perform tokenlib.fold_refused(v_from, c.closed_to);
            c.windows_to := c.closed_to;
        elsif not behind then
            perform tokenlib.make_windows(c.closed_to);
            perform tokenlib.fold_wallets(null, c.closed_to);
            perform tokenlib.fold_costs(null, c.closed_to);
            perform tokenlib.fold_refused(null, c.closed_to);
            c.windows_to := c.closed_to;
        end if;
        if c.windows_to = c.closed_to then
            perform tokenlib.fold_kept(v_from, c.closed_to);
            perform tokenlib.fold_hasty(c.closed_to);
        end if;
        if not behind then
            c.next_to := null;
            c.next_xid := null;
        end if;
    end if;
    if c.next_to is null and (c.closed_to is null or c.closed_to < v_next) then
        c.next_to := v_next;
        c.next_xid := v_id;
    end if;
    update public.ai_token_usage_closed u set closed_to = c.closed_to, windows_to = c.windows_to,
        next_to = c.next_to, next_xid = c.next_xid;
    closed_to := c.closed_to;
end
$$;

-- Up to when rows of the log may lie in an archive, on the grid of all sums; null: none do.
create function tokenlib.usage_archived_to() returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
    select date_bin('1 hour', max((data ->> 'last_at')::timestamptz), '2000-01-01 00:00Z')
        + interval '1 hour'
    from public.ai_token_events where kind = 'archived'
$$;

-- Forgets the rollups: the questions read the log again, and close_usage begins anew. What was used while
-- rows are archived of is kept as it stands, since the log cannot tell it any more: also who counts as
-- active until the last of these charges leaves the longest window.
create function tokenlib.forget_usage() returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_keep timestamptz := tokenlib.usage_archived_to();
    v_closed timestamptz;
begin
    perform pg_advisory_xact_lock(7305404);
    select closed_to into v_closed from public.ai_token_usage_closed;
    if v_closed is null then
        v_keep := null; -- nothing is known of the archived time
    elsif v_closed < v_keep + interval '2160 hours' then
        raise exception 'usage is closed up to % only, and rows up to % are archived', v_closed, v_keep
            using errcode = '55000', hint = 'Close usage first.';
    end if;
    delete from public.ai_token_usage_closed where v_keep is null;
    update public.ai_token_usage_closed
    set closed_to = v_keep, windows_to = null, next_to = null, next_xid = null, hasty_to = null;
    delete from public.ai_token_usage_hasty;
    delete from public.ai_token_usage_bursts;
    delete from public.ai_token_usage_kept where v_keep is null;
    update public.ai_token_usage_kept set closed_to = least(closed_to, v_keep);
    delete from public.ai_token_usage_sums where v_keep is null or at > v_keep;
    delete from public.ai_token_refusal_sums where v_keep is null or at > v_keep;
    delete from public.ai_token_refusal_windows;
    delete from public.ai_token_refusal_rules;
    delete from public.ai_token_refusal_seen;
    delete from public.ai_token_wallet_sums;
    delete from public.ai_token_usage_windows;
    delete from public.ai_token_usage_pace;
    delete from public.ai_token_usage_costs;
    delete from public.ai_token_usage_cost_sums;
    delete from public.ai_token_usage_days;
    delete from public.ai_token_usage_active
    where v_keep is null or at > v_keep + days * interval '24 hours';
    delete from public.ai_token_usage_seen where v_keep is null;
    -- The plan is still wanted; who was charged since is found again in the log.
    update public.ai_token_usage_seen set last_at = '-infinity' where last_at >= v_keep;
end
$$;
-- The windows that end at the last closing: what each organization used in them, and how many did.

-- What lies in each window at p_to, counted anew in one reading of the longest.
create function tokenlib.make_windows(p_to timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    delete from public.ai_token_usage_windows;
    with used as (
        select organization_id,
            coalesce(user_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff') as user_id,
            count(*) filter (where created_at >= p_to - interval '24 hours') as uses_1,
            count(*) filter (where created_at >= p_to - interval '168 hours') as uses_7,
            count(*) filter (where created_at >= p_to - interval '720 hours') as uses_30,
            count(*) as uses_90,
            sum(tokens_deducted) filter (where created_at >= p_to - interval '24 hours')
                as tokens_1,
            sum(tokens_deducted) filter (where created_at >= p_to - interval '168 hours')
                as tokens_7,
            sum(tokens_deducted) filter (where created_at >= p_to - interval '720 hours')
                as tokens_30,
            sum(tokens_deducted) as tokens_90
        from public.ai_token_usage_log
        where created_at >= p_to - interval '2160 hours' and created_at < p_to
        group by 1, 2
    ), each as (
        select u.organization_id, u.user_id, d.days, d.uses, d.tokens
        from used u
        cross join lateral (values (1, u.uses_1, u.tokens_1), (7, u.uses_7, u.tokens_7),
            (30, u.uses_30, u.tokens_30), (90, u.uses_90, u.tokens_90)) as d (days, uses, tokens)
        where d.uses > 0
    )
    insert into public.ai_token_usage_windows (organization_id, user_id, days, uses, tokens)
    select organization_id, user_id, days, uses, tokens from each
    union all
    select organization_id, '00000000-0000-0000-0000-000000000000', days, sum(uses), sum(tokens)
    from each
    group by organization_id, days;

    delete from public.ai_token_usage_pace;
    insert into public.ai_token_usage_pace (organization_id, token_type, tokens)
    select organization_id, token_type, sum(tokens_deducted)
    from public.ai_token_usage_log
    where created_at >= p_to - interval '168 hours' and created_at < p_to
    group by 1, 2
    having sum(tokens_deducted) > 0;

    delete from public.ai_token_usage_days;
    select tokenlib.fold_days(date_bin('24 hours', p_to - interval '408 hours', '2000-01-01 00:00Z'),
        p_to);
$$;

-- Moves the ends of each window: what enters is added, what leaves is taken off.
create function tokenlib.fold_windows(p_from timestamptz, p_to timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    insert into public.ai_token_usage_windows as w (organization_id, user_id, days, uses, tokens)
    select organization_id, coalesce(user_id, '00000000-0000-0000-0000-000000000000'), days,
        sum(uses), sum(tokens)
    from (
        select l.organization_id,
            coalesce(l.user_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff') as user_id, d.days,
            s.sign * count(*) as uses, s.sign * sum(l.tokens_deducted) as tokens
        from unnest(array[1, 7, 30, 90]) as d (days)
        cross join lateral (values (1, p_from, p_to), (-1, p_from - d.days * interval '24 hours',
            p_to - d.days * interval '24 hours')) as s (sign, since, until)
        join public.ai_token_usage_log l on l.created_at >= s.since and l.created_at < s.until
        group by l.organization_id, l.user_id, d.days, s.sign
    ) as moved
    group by grouping sets ((organization_id, user_id, days), (organization_id, days))
    on conflict (organization_id, user_id, days) do update
        set uses = w.uses + excluded.uses, tokens = w.tokens + excluded.tokens;
    -- By the two indexes.
    delete from public.ai_token_usage_windows where days in (1, 7, 30, 90) and tokens = 0
        and uses = 0 and user_id = '00000000-0000-0000-0000-000000000000';
    delete from public.ai_token_usage_windows where days in (1, 7, 30, 90) and tokens = 0
        and uses = 0 and user_id <> '00000000-0000-0000-0000-000000000000';

    insert into public.ai_token_usage_pace as p (organization_id, token_type, tokens)
    select l.organization_id, l.token_type, sum(s.sign * l.tokens_deducted)
    from (values (1, p_from, p_to), (-1, p_from - interval '168 hours',
        p_to - interval '168 hours')) as s (sign, since, until)
    join public.ai_token_usage_log l on l.created_at >= s.since and l.created_at < s.until
    group by 1, 2
    on conflict (organization_id, token_type) do update set tokens = p.tokens + excluded.tokens;
    delete from public.ai_token_usage_pace p
    using (select distinct organization_id, token_type from public.ai_token_usage_log
        where (created_at >= p_from and created_at < p_to)
            or (created_at >= p_from - interval '168 hours'
                and created_at < p_to - interval '168 hours')) as moved
    where p.organization_id = moved.organization_id and p.token_type = moved.token_type
        and p.tokens = 0;
    select tokenlib.fold_days(p_from, p_to);
$$;

-- An organization counts in a window from its charge on until `days` later, and not twice where the
-- charge before it counts still: so each charge changes the counts at two moments, both known now.
create function tokenlib.fold_active(p_from timestamptz, p_to timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    with steps as (
        select distinct organization_id,
            date_bin('5 minutes', created_at, '2000-01-01 00:00Z') as start
        from public.ai_token_usage_log
        where created_at >= p_from and created_at < p_to
    ), chained as (
        select s.start, coalesce(
            lag(s.start) over (partition by s.organization_id order by s.start),
            date_bin('5 minutes', n.last_at, '2000-01-01 00:00Z')) as before
        from steps s
        left join public.ai_token_usage_seen n on n.organization_id = s.organization_id
    ), windows as materialized (
        -- What forget_usage kept, counted already, is not counted twice: it alone is known after p_from.
        select d.days, case when n.active is null then '-infinity' else (
            select max(k.at) from public.ai_token_usage_active k
            where k.days = d.days and k.active is not null) end as kept_to
        from unnest(array[1, 7, 30, 90]) as d (days)
        left join lateral (select active from public.ai_token_usage_active
            where days = d.days and at > p_from order by at limit 1) as n on true
    )
    insert into public.ai_token_usage_active as a (days, at, change)
    select d.days, m.at + interval '5 minutes', sum(m.change)
    from chained c
    cross join windows d
    cross join lateral (values
        (greatest(c.start, c.before + d.days * interval '24 hours'), 1),
        (c.start + d.days * interval '24 hours', -1)) as m (at, change)
    where m.at + interval '5 minutes' > d.kept_to
    group by 1, 2
    on conflict (days, at) do update set change = a.change + excluded.change;

    -- Materialized: where the table was empty when this was planned, it would run once for each row.
    with r as materialized (
        select days, at, coalesce((
                select b.active from public.ai_token_usage_active b
                where b.days = f.days and b.at <= p_from
                order by b.at desc limit 1), 0)
            + sum(change) over (partition by days order by at) as active
        from public.ai_token_usage_active f
        where at > p_from and at <= p_to
    )
    update public.ai_token_usage_active a set active = r.active
    from r
    where a.days = r.days and a.at = r.at;

    insert into public.ai_token_usage_seen as n (organization_id, last_at, plan)
    select f.organization_id, max(f.created_at), coalesce(max(o.plan), '')
    from (
        select organization_id, created_at from public.ai_token_usage_log
        where created_at >= p_from and created_at < p_to
        union all
        -- Of a charge that may be archived.
        select organization_id, '-infinity' from public.ai_token_events
        where kind = 'refund' and created_at >= p_from and created_at < p_to
    ) as f
    left join public.organizations o on o.id = f.organization_id
    group by 1
    on conflict (organization_id) do update
        set last_at = greatest(n.last_at, excluded.last_at);
$$;
-- What was used in a window, from the rollups and the raw rows at its edges, exact to the row: the
-- same as the log alone answers, which is asked where nothing is closed. They run as who asks.

-- The part of a window that the rollups answer: from `lo` to `hi`; both are p_until where there is
-- none. p_organization null: everybody.
create function tokenlib.usage_closed(
    p_since timestamptz, p_until timestamptz, p_organization uuid,
    out lo timestamptz, out hi timestamptz
)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_step interval := case when p_organization is null then '5 minutes' else '15 minutes' end;
begin
    if p_organization is null then
        select closed_to into hi from public.ai_token_usage_closed;
    else
        select closed_to into hi from public.ai_token_usage_kept
        where scope = p_organization;
    end if;
    hi := case when hi is not null then least(hi, date_bin(v_step, p_until, '2000-01-01 00:00Z')) end;
    lo := date_bin(v_step, p_since + v_step - interval '1 microsecond', '2000-01-01 00:00Z');
    if hi is null or lo >= hi then
        lo := p_until;
        hi := p_until;
    end if;
end
$$;

-- By feature and wallet. The log is read by usage_by_time, or by usage_by_user for an organization.
create function tokenlib.usage_between(
    p_since timestamptz, p_until timestamptz, p_organization uuid
) returns table (feature text, token_type text, uses bigint, tokens bigint, waived bigint,
    refunded bigint)
language plpgsql stable rows 20 set search_path = pg_catalog, pg_temp as $$
declare
    v_scope uuid := coalesce(p_organization, '00000000-0000-0000-0000-000000000000');
    v_lo timestamptz;
    v_hi timestamptz;
begin
    select lo, hi into v_lo, v_hi from tokenlib.usage_closed(p_since, p_until, p_organization);
    if v_lo < v_hi then
        return query
        with recursive keys as (
            (select s.feature, s.token_type from public.ai_token_usage_sums s
            where s.organization_id = v_scope
            order by s.feature, s.token_type limit 1)
            union all
            select n.* from keys k
            cross join lateral (
                select s.feature, s.token_type from public.ai_token_usage_sums s
                where s.organization_id = v_scope
                    and (s.feature, s.token_type) > (k.feature, k.token_type)
                order by s.feature, s.token_type limit 1) as n
        )
        select k.feature, k.token_type, h.uses - coalesce(l.uses, 0),
            h.tokens - coalesce(l.tokens, 0), h.waived - coalesce(l.waived, 0),
            h.refunded - coalesce(l.refunded, 0)
        from keys k
        cross join lateral (
            select * from public.ai_token_usage_sums s
            where s.organization_id = v_scope and s.feature = k.feature
                and s.token_type = k.token_type and s.at <= v_hi
            order by s.at desc limit 1) as h
        left join lateral (
            select * from public.ai_token_usage_sums s
            where s.organization_id = v_scope and s.feature = k.feature
                and s.token_type = k.token_type and s.at <= v_lo
            order by s.at desc limit 1) as l on true
        where h.at > v_lo;
        if p_since < v_lo then
            return query select * from tokenlib.usage_edge(p_since, v_lo, p_organization);
        end if;
        if v_hi < p_until and p_until - v_hi < interval '1 hour' then
            return query select * from tokenlib.usage_edge(v_hi, p_until, p_organization);
        elsif v_hi < p_until then
            return query select * from tokenlib.usage_raw(v_hi, p_until, p_organization);
        end if;
    else
        return query select * from tokenlib.usage_raw(p_since, p_until, p_organization);
    end if;
end
$$;

-- The same from the log alone.
create function tokenlib.usage_raw(p_since timestamptz, p_until timestamptz, p_organization uuid)
returns table (feature text, token_type text, uses bigint, tokens bigint, waived bigint,
    refunded bigint)
language plpgsql stable rows 20 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
begin
    return query
    select l.feature_used, l.token_type, count(*), sum(l.tokens_deducted)::bigint,
        sum(l.tokens_waived)::bigint, 0::bigint
    from public.ai_token_usage_log l
    where l.created_at >= p_since and l.created_at < p_until
        and (p_organization is null or l.organization_id = p_organization)
    group by 1, 2
    union all
    select coalesce(e.data ->> 'feature', ''), e.token_type, 0::bigint, 0::bigint, 0::bigint,
        sum(e.balance_change)::bigint
    from public.ai_token_events e
    where e.kind = 'refund' and e.created_at >= p_since and e.created_at < p_until
        and (p_organization is null or e.organization_id = p_organization)
    group by 1, 2;
end
$$;

-- The same of a few minutes, also of an organization by the time: it has many charges, or it would not
-- be kept. The plan is made once, for it takes longer than the answer.
create function tokenlib.usage_edge(p_since timestamptz, p_until timestamptz, p_organization uuid)
returns table (feature text, token_type text, uses bigint, tokens bigint, waived bigint,
    refunded bigint)
language plpgsql stable rows 20 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as $$
begin
    return query
    select l.feature_used, l.token_type, count(*), sum(l.tokens_deducted)::bigint,
        sum(l.tokens_waived)::bigint, 0::bigint
    from (select * from public.ai_token_usage_log
        where created_at >= p_since and created_at < p_until offset 0) as l
    where p_organization is null or l.organization_id = p_organization
    group by 1, 2
    union all
    select coalesce(e.data ->> 'feature', ''), e.token_type, 0::bigint, 0::bigint, 0::bigint,
        sum(e.balance_change)::bigint
    from (select * from public.ai_token_events
        where kind = 'refund' and created_at >= p_since and created_at < p_until offset 0) as e
    where p_organization is null or e.organization_id = p_organization
    group by 1, 2;
end
$$;

-- What scopes of a kind (see usage_steps) that are closed up to p_closed used in each bar. The rows are parts,
-- also below 0, which add up to it: of each point between two bars what the sums say at the nearest step, and the
-- raw rows from there to the point; and the rows after p_closed.
create function tokenlib.usage_parts(
    p_kind text, p_scopes uuid[], p_closed timestamptz, p_since timestamptz, p_until timestamptz,
    p_bucket text, p_zone text
) returns table (scope uuid, start timestamptz, feature text, token_type text, uses bigint,
    tokens bigint, waived bigint, refunded bigint)
language plpgsql stable rows 1000 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_step interval := case p_kind when 'all' then '5 minutes' when 'user' then '1 hour'
        else '15 minutes' end;
    v_organizations constant uuid[] := tokenlib.scoped_organizations(p_kind, p_scopes);
begin
    return query
    with recursive bars as materialized (
        select * from tokenlib.bars(p_since, p_until, p_bucket, p_zone)
    ), points as materialized (
        select at, least(date_bin(v_step, at + v_step / 2, '2000-01-01 00:00Z'), p_closed) as step,
            max(ended) as ended, max(begun) as begun
        from (select since as at, null::timestamptz as ended, start as begun from bars
            union all select until, start, null from bars) as each
        group by at
    ), keys as (
        select f.* from unnest(p_scopes) as u (scope)
        cross join lateral (
            select u.scope, s.feature, s.token_type from public.ai_token_usage_sums s
            where s.organization_id = u.scope
            order by s.feature, s.token_type limit 1) as f
        union all
        select k.scope, n.feature, n.token_type from keys k
        cross join lateral (
            select s.feature, s.token_type from public.ai_token_usage_sums s
            where s.organization_id = k.scope
                and (s.feature, s.token_type) > (k.feature, k.token_type)
            order by s.feature, s.token_type limit 1) as n
    ), ranges as materialized (
        -- Columns, since under row security an index takes no function.
        select least(step, at) as since, greatest(step, at) as until, ended, begun,
            case when step < at then 1 else -1 end as sign
        from points where at <= p_closed and step <> at
        union all
        select greatest(since, p_closed), until, start, null, 1 from bars where until > p_closed
    ), raw as (
        select case p_kind when 'all' then '00000000-0000-0000-0000-000000000000'::uuid
                when 'plan' then md5(coalesce(case when e.created_at < p_closed
                    then (select n.plan from public.ai_token_usage_seen n
                        where n.organization_id = e.organization_id)
                    else (select o.plan from public.organizations o
                        where o.id = e.organization_id) end, ''))::uuid
                when 'whole' then md5(e.organization_id::text
                    || '00000000-0000-0000-0000-000000000000')::uuid
                else e.organization_id end as scope,
            r.sign, r.ended, r.begun, case when p_kind = 'whole' then '' else e.feature end as feature,
            case when p_kind = 'whole' then '' else e.token_type end as token_type, e.uses, e.tokens,
            e.waived, e.refunded
        from ranges r
        cross join lateral (
            select organization_id, created_at, feature_used as feature, token_type, 1 as uses,
                tokens_deducted as tokens, tokens_waived as waived, 0 as refunded
            from public.ai_token_usage_log
            where created_at >= r.since and created_at < r.until
            union all
            select organization_id, created_at, coalesce(data ->> 'feature', ''), token_type, 0, 0, 0,
                balance_change
            from public.ai_token_events
            where kind = 'refund' and created_at >= r.since and created_at < r.until
        ) as e
        where p_kind <> 'user'
            and (v_organizations is null or e.organization_id = any (v_organizations))
        union all
        select k.scope, r.sign, r.ended, r.begun, '', '', 1, l.tokens_deducted, l.tokens_waived, 0
        from ranges r
        cross join public.ai_token_usage_kept k
        cross join lateral (
            select tokens_deducted, tokens_waived from public.ai_token_usage_log
            where organization_id = k.organization_id and user_id = k.user_id
                and created_at >= r.since and created_at < r.until offset 0) as l
        where p_kind = 'user' and k.scope = any (p_scopes)
        union all
        select k.scope, r.sign, r.ended, r.begun, '', '', 0, 0, 0, e.balance_change
        from ranges r
        cross join lateral (
            select organization_id, data ->> 'user_id' as user_id, balance_change
            from public.ai_token_events
            where kind = 'refund' and created_at >= r.since and created_at < r.until offset 0) as e
        join public.ai_token_usage_kept k on k.organization_id = e.organization_id
            and k.user_id::text = e.user_id and k.scope = any (p_scopes)
        where p_kind = 'user'
    ), figures as (
        select k.scope, p.ended, p.begun, k.feature, k.token_type, h.uses, h.tokens, h.waived,
            h.refunded
        from keys k
        cross join points p
        cross join lateral (
            select * from public.ai_token_usage_sums s
            where s.organization_id = k.scope and s.feature = k.feature
                and s.token_type = k.token_type and s.at <= p.step
            order by s.at desc limit 1) as h
        union all
        select scope, ended, begun, feature, token_type, sum(sign * uses), sum(sign * tokens),
            sum(sign * waived), sum(sign * refunded)
        from raw
        group by 1, 2, 3, 4, 5
    )
    select f.scope, s.start, f.feature, f.token_type, sum(s.sign * f.uses)::bigint,
        sum(s.sign * f.tokens)::bigint, sum(s.sign * f.waived)::bigint,
        sum(s.sign * f.refunded)::bigint
    from figures f
    cross join lateral (values (f.ended, 1), (f.begun, -1)) as s (start, sign)
    where s.start is not null
    group by 1, 2, 3, 4
    having sum(s.sign * f.uses) <> 0 or sum(s.sign * f.refunded) <> 0;
end
$$;

-- By hour, day or week of a time zone, by "24 hours" from the full hour before p_since on (what sums are kept
-- up to), or (null) all in one. A bar begins where the name of the bar changes, which is not always where
-- its calendar says: some zones set the clock at midnight.
create function tokenlib.usage_bars(
    p_since timestamptz, p_until timestamptz, p_bucket text, p_zone text, p_organization uuid
) returns table (start timestamptz, feature text, token_type text, uses bigint, tokens bigint,
    waived bigint, refunded bigint)
language plpgsql stable rows 200 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    v_closed timestamptz := (select c.closed_to from public.ai_token_usage_closed c);
    v_origin constant timestamptz := date_bin('1 hour', p_since, '2000-01-01 00:00Z');
begin
    perform now() at time zone p_zone; -- refuses a wrong name without rows
    if p_organization is not null then
        return query
        select o.start, o.feature, o.token_type, o.uses, o.tokens, o.waived, o.refunded
        from tokenlib.usage_organizations(array[p_organization], p_since, p_until, p_bucket,
            p_zone, true) as o;
    elsif p_since < v_closed then
        return query
        select p.start, p.feature, p.token_type, p.uses, p.tokens, p.waived, p.refunded
        from tokenlib.usage_parts('all', array['00000000-0000-0000-0000-000000000000'::uuid],
            v_closed, p_since, p_until, p_bucket, p_zone) as p;
    else
        return query
        select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', l.created_at, v_origin)
                else date_trunc(p_bucket, l.created_at, p_zone) end, l.feature_used, l.token_type,
            count(*), sum(l.tokens_deducted)::bigint, sum(l.tokens_waived)::bigint, 0::bigint
        from public.ai_token_usage_log l
        where l.created_at >= p_since and l.created_at < p_until
        group by 1, 2, 3
        union all
        select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', e.created_at, v_origin)
                else date_trunc(p_bucket, e.created_at, p_zone) end, coalesce(e.data ->> 'feature', ''),
            e.token_type, 0::bigint, 0::bigint, 0::bigint, sum(e.balance_change)::bigint
        from public.ai_token_events e
        where e.kind = 'refund' and e.created_at >= p_since and e.created_at < p_until
        group by 1, 2, 3;
    end if;
end
$$;

create function tokenlib.bars(
    p_since timestamptz, p_until timestamptz, p_bucket text, p_zone text
) returns table (start timestamptz, since timestamptz, until timestamptz)
language sql stable rows 30 set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
    with points as (
        select p_since as at
        union all
        -- Every change of the clock is at a quarter of an hour.
        select q from generate_series(date_bin('15 minutes', p_since, '2000-01-01 00:00Z'),
            p_until, interval '15 minutes') as q where p_bucket = 'hour'
        union all
        select b from generate_series(date_bin('1 hour', p_since, '2000-01-01 00:00Z'), p_until,
            interval '24 hours') as b where p_bucket = '24 hours'
        union all
        select d at time zone p_zone - back
        from generate_series(date_trunc('day', p_since at time zone p_zone),
            p_until at time zone p_zone + interval '1 day', interval '1 day') as d
        cross join (values (interval '0'), (interval '1 hour')) as b (back)
        where p_bucket in ('day', 'week')
    ), named as (
        select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', at,
                    date_bin('1 hour', p_since, '2000-01-01 00:00Z'))
                else date_trunc(p_bucket, at, p_zone) end as start, min(at) as since
        from points where at >= p_since and at < p_until
        group by 1
    )
    select start, since, lead(since, 1, p_until) over (order by since) from named
$$;
-- Archives the log of one wallet up to an entry whose rows stand in a file by now: an entry of the
-- wallet says what is gone and where the chain ends there, the keys are kept, and the rows go. Nobody
-- but the owner can, and the log's trigger lets no row pass without that entry. p_documents: how many
-- rows in the file have metadata, since an erasure may have come between.
create function tokenlib.archive_log(
    p_organization uuid, p_token_type text, p_through bigint, p_documents bigint,
    p_file text, p_actor text
) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    w public.ai_tokens;
    l public.ai_token_usage_log;
    s record;
    v_now timestamptz;
begin
    -- Not brought up to date: the organization may be gone, and its log is archived all the same.
    select * into strict w from public.ai_tokens
    where organization_id = p_organization and token_type = p_token_type
    for no key update;
    select count(*) as entries, count(metadata) as documents, count(idempotency_key) as keys,
        min(number) as first, min(created_at) as first_at, sum(tokens_deducted) as deducted,
        sum(tokens_waived) as waived, sum(held) as held,
        sum(case when reservation_id is null then -tokens_deducted else returned end) as change
    into strict s from public.ai_token_usage_log
    where organization_id = p_organization and token_type = p_token_type and number <= p_through;
    select * into strict l from public.ai_token_usage_log
    where organization_id = p_organization and token_type = p_token_type and number = p_through;
    if s.entries <> p_through - s.first + 1 or s.documents <> p_documents then
        raise exception 'the log of wallet % of organization % changed while it was archived',
            p_token_type, p_organization using errcode = 'TK003';
    end if;
    if l.created_at > tokenlib.clock() - interval '92 days' then
        raise exception 'must be at least 92 days ago' using errcode = '22023', column = 'before';
    end if;
    v_now := greatest(tokenlib.clock(), w.last_entry_at);
    w := tokenlib.append_event(w, 'archived', v_now, p_actor => p_actor,
        p_data => jsonb_build_object('file', p_file, 'first', s.first, 'through', p_through,
            'hash', encode(l.hash, 'hex'), 'keys', s.keys, 'tokens_deducted', s.deducted,
            'tokens_waived', s.waived, 'balance_change', s.change, 'reserved_change', -s.held,
            'balance_after', l.remaining_balance, 'first_at', tokenlib.utc(s.first_at),
            'last_at', tokenlib.utc(l.created_at)));
    perform tokenlib.store_wallet(w, v_now);
    insert into public.ai_token_archived_keys (organization_id, idempotency_key)
    select p_organization, idempotency_key from public.ai_token_usage_log
    where organization_id = p_organization and token_type = p_token_type and number <= p_through
        and idempotency_key is not null;
    delete from public.ai_token_usage_log
    where organization_id = p_organization and token_type = p_token_type and number <= p_through;
    return s.entries;
end
$$;

-- Makes the rollups of the time before p_to anew, from a log that has all of its rows again: those of the
-- files stand in a child of it that only this session sees (see archives.roll_up). Nobody but the owner can.
-- Others see what was before until it is committed, and close_usage goes on from p_to.
create function tokenlib.roll_archived_usage(p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp set timezone = 'UTC' set work_mem = '64MB' as $$
declare
    v_from timestamptz := date_bin('5 minutes', least(p_to,
        (select min(created_at) from public.ai_token_usage_log),
        (select min(created_at) from public.ai_token_events where kind = 'refund'),
        (select min(last_at) from public.ai_token_refusals)), '2000-01-01 00:00Z');
    v_to timestamptz;
    v_kind text;
    v_step interval;
    v_ids uuid[];
begin
    perform pg_advisory_xact_lock(7305404);
    if not exists (select from public.ai_token_usage_closed where closed_to >= p_to) then
        raise exception 'usage is not closed up to %', p_to
            using errcode = '55000', hint = 'Close usage first.';
    end if;
    delete from public.ai_token_usage_closed;
    delete from public.ai_token_usage_sums;
    delete from public.ai_token_refusal_sums;
    delete from public.ai_token_usage_active;
    delete from public.ai_token_usage_seen;
    delete from public.ai_token_usage_hasty;
    delete from public.ai_token_usage_bursts;
    delete from public.ai_token_usage_windows;
    delete from public.ai_token_usage_pace;
    delete from public.ai_token_usage_costs;
    delete from public.ai_token_usage_cost_sums;
    delete from public.ai_token_usage_days;
    delete from public.ai_token_refusal_windows;
    delete from public.ai_token_refusal_rules;
    delete from public.ai_token_refusal_seen;
    delete from public.ai_token_wallet_sums;
    delete from public.ai_token_usage_kept where plan is not null;
    while v_from < p_to loop
        v_to := least(v_from + interval '1 day', p_to);
        perform tokenlib.fold_sums('all', null, '5 minutes', v_from, v_to);
        perform tokenlib.fold_active(v_from, v_to);
        perform tokenlib.fold_refusals(v_from, v_to);
        perform tokenlib.fold_plans(date_bin('15 minutes', v_to, '2000-01-01 00:00Z'));
        v_from := v_to;
    end loop;
    for v_kind, v_step, v_ids in
        select k.kind, k.step, array_agg(u.scope)
        from (values ('organization', interval '15 minutes'), ('whole', interval '15 minutes'),
            ('user', interval '1 hour')) as k (kind, step)
        join public.ai_token_usage_kept u on u.plan is null and k.kind = case
            when u.user_id is null then 'organization'
            when u.user_id = '00000000-0000-0000-0000-000000000000' then 'whole' else 'user' end
        group by 1, 2
    loop
        perform tokenlib.fold_sums(v_kind, v_ids, v_step, '-infinity', p_to);
    end loop;
    update public.ai_token_usage_kept set closed_to = p_to where plan is null;
    insert into public.ai_token_usage_closed (closed_to) values (p_to);
end
$$;
-- Many charges in one commit, for callers of one process who ask at the same moment. Only plain ones
-- are charged here: those to which every rule says yes, by what is seen at a glance. Whatever is not
-- plain gets no row, and its caller asks tokenlib.deduct alone, which decides and puts on record.

-- The lists go together, by `place`: 1, 2, 3 … in the order of arrival. The answer has a row per charge
-- that was made, and one that says `locked` where somebody else has the wallet, the person or the key
-- in hand. p_wait: all are of one organization, and wait for its wallets and people.
create function tokenlib.deduct_many(
    p_ids uuid[], p_organizations uuid[], p_users uuid[], p_features text[], p_units bigint[],
    p_metadata jsonb[], p_keys text[], p_limits boolean[], p_wait boolean
)
returns table (place bigint, locked boolean, token_type text, tokens bigint, balance bigint,
    created_at timestamptz)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
-- Lists of any length have one plan, by the indexes, and none is worth compiling.
set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan
set jit = off as $$
#variable_conflict use_column
declare
    v_length constant integer := cardinality(p_ids);
    v_mine bigint[];                           -- the places whose locks were got
    v_now timestamptz;
    v_microseconds bigint;
    r record;
    -- The wallet in hand: what it has left, what was taken of it, and where its log ends.
    v_wallet uuid;
    v_balance bigint;
    v_taken bigint;
    v_number bigint;
    v_head bytea;
    v_counted uuid[];                          -- charged here already, by those whose requests count
    -- What was charged, wallet after wallet.
    v_places bigint[];
    v_wallets uuid[];
    v_takens bigint[];
    v_types text[];
    v_tokens bigint[];
    v_balances bigint[];
    v_numbers bigint[];
    v_requests bytea[];
    v_digests bytea[];
    v_hashes bytea[];
begin
    -- On Citus a charge belongs on the node of its organization: everybody asks alone.
    if current_setting('citus.propagate_set_commands', true) = 'local' then
        return;
    end if;
    -- Waiting for locks in the gate's own order: people, wallets. A key is not waited for.
    if p_wait then
        perform pg_advisory_xact_lock(person) from (
            select distinct hashtextextended('user ' || member::text,
                hashtextextended(organization::text, 0)) as person
            from unnest(p_organizations, p_users, p_limits) as a (organization, member, limits)
            where limits
            order by person offset 0) as people;
        select array_agg(place) into v_mine
        from unnest(p_keys) with ordinality as a (key, place)
        where key is null or pg_try_advisory_xact_lock(hashtextextended('key ' || key,
            hashtextextended(p_organizations[1]::text, 0)));
        perform from public.ai_tokens
        where organization_id = p_organizations[1] and token_type in (
            select f.token_type from public.ai_token_features f where f.feature = any (p_features))
        order by token_type for no key update;
    else
        select array_agg(place) into v_mine from (
            select place
            from (
                select place, feature, p_organizations[place] as organization,
                    hashtextextended(p_organizations[place]::text, 0) as seed
                from unnest(p_features) with ordinality as a (feature, place) offset 0) as a
            cross join lateral (select t.token_type from public.ai_token_features t
                where t.feature = a.feature limit 1) as f
            join public.ai_tokens t
                on t.organization_id = organization and t.token_type = f.token_type
            where (not p_limits[place] or pg_try_advisory_xact_lock(
                    hashtextextended('user ' || p_users[place], seed)))
                and (p_keys[place] is null or pg_try_advisory_xact_lock(
                    hashtextextended('key ' || p_keys[place], seed)))
            for no key update of t skip locked) as mine;
        if coalesce(cardinality(v_mine), 0) < v_length then
            return query
                select a.place, true, null::text, null::bigint, null::bigint, null::timestamptz
                from unnest(p_organizations, p_features) with ordinality
                    as a (organization, feature, place)
                where a.place <> all (coalesce(v_mine, '{}')) and (
                    select count(*) from public.ai_token_features f
                    join public.ai_tokens t
                        on t.organization_id = a.organization and t.token_type = f.token_type
                    where f.feature = a.feature) > 0;
        end if;
    end if;

    -- What the gate reads after its locks, read after these.
    v_now := tokenlib.clock();
    v_microseconds := (extract(epoch from v_now) * 1000000)::bigint;
    for r in
        select place, id, organization, member, a.feature, units, key, limits, wallet, token_type, cost,
            balance, log_number, log_hash, requests_per_minute, seconds_between_requests,
            case when key is not null then sha256(convert_to(
                jsonb_build_array(member, a.feature, units, metadata)::text, 'UTF8'))
                end as request_hash,
            sha256(convert_to(metadata::text, 'UTF8')) as digest,
            -- Entries are numbered: who makes fewer than are allowed, whoever makes them, stays within it.
            seconds_between_requests > 0 or requests_per_minute < v_length + (
                select sum(log_number + event_number) from public.ai_tokens
                where organization_id = organization) as close
        from (
            select place, units, p_ids[place] as id, p_organizations[place] as organization,
                p_users[place] as member, p_features[place] as feature,
                p_metadata[place] as metadata, p_keys[place] as key, p_limits[place] as limits
            from unnest(p_units) with ordinality as a (units, place)
            where place = any (v_mine) offset 0) as a
        cross join lateral (
            select t.id as wallet, f.token_type, f.cost * a.units as cost, t.balance, t.log_number,
                t.log_hash
            from public.ai_token_features f
            join public.ai_tokens t
                on t.organization_id = a.organization and t.token_type = f.token_type
            join public.organizations o on o.id = t.organization_id
            where f.feature = a.feature and t.plan = o.plan and t.allowance > 0
                and t.event_number > 0 and t.due_at > v_now and t.last_entry_at <= v_now
            limit 1) as w
        left join lateral (
            select * from public.ai_token_limits
            where limits and scope = coalesce(
                (select scope from public.ai_token_limits where scope = organization),
                '00000000-0000-0000-0000-000000000000')
            limit 1) as l on true
        where units between 1 and 1000000
            and (select organization_id from public.user_profiles where id = member) = organization
            and (metadata is null or octet_length(metadata::text) <= 16384)
            and coalesce((metadata -> 'output_units')::text ~ '^[0-9]{1,10}$', true)
            and (select mode from public.ai_token_parameters) = 'enforce'
            and (select true from public.ai_token_organization_settings
                where organization_id = organization
                    and (mode is not null or status <> 'active')) is null
            and (select true from public.ai_token_user_settings
                where organization_id = organization and user_id = member
                    and paused_at is not null) is null
            -- Of those with one key the first, of whatever organization.
            and (key is null or place = array_position(p_keys, key) and length(key) between 1 and 255
                and (select true from public.ai_token_reservations
                    where organization_id = organization and idempotency_key = key
                        and state in ('held', 'deducted') and state <> 'deducted') is null
                and (select true from public.ai_token_usage_log
                    where organization_id = organization and idempotency_key = key) is null
                and (select true from public.ai_token_events
                    where organization_id = organization and idempotency_key = key) is null
                and (select true from public.ai_token_archived_keys
                    where organization_id = organization and idempotency_key = key) is null)
            and coalesce(cost <= tokens_per_request, true)
            and coalesce((metadata ->> 'output_units')::bigint <= output_units_per_request, true)
            and (failed_attempts is null or (select true from public.ai_token_refusals
                where organization_id = organization and user_id = member
                    and rule = 'failed_attempt' and last_at > v_now - interval '10 minutes'
                limit 1) is null)
        order by wallet, place
    loop
        if r.wallet is distinct from v_wallet then
            v_wallet := r.wallet;
            v_balance := r.balance;
            v_taken := 0;
            v_number := r.log_number;
            v_head := r.log_hash;
        end if;
        continue when v_balance < r.cost;
        if r.close then
            continue when (r.seconds_between_requests > 0 and r.member = any (v_counted))
                or tokenlib.requests_left(r.organization, r.member, r.requests_per_minute,
                    r.seconds_between_requests, v_now, 500)
                    <= coalesce(cardinality(array_positions(v_counted, r.member)), 0);
            v_counted := v_counted || r.member;
        end if;
        v_balance := v_balance - r.cost;
        v_taken := v_taken + r.cost;
        v_number := v_number + 1;
        v_head := sha256(v_head || convert_to(json_build_array(1, r.id, r.organization, r.token_type,
            v_number, r.member, r.feature, r.units, r.cost, 0, v_balance, null, 0, 0, r.key,
            encode(r.request_hash, 'hex'), encode(r.digest, 'hex'), v_microseconds)::text, 'UTF8'));
        v_places := v_places || r.place;
        v_wallets := v_wallets || v_wallet;
        v_takens := v_takens || v_taken;
        v_types := v_types || r.token_type;
        v_tokens := v_tokens || r.cost;
        v_balances := v_balances || v_balance;
        v_numbers := v_numbers || v_number;
        v_requests := v_requests || r.request_hash;
        v_digests := v_digests || r.digest;
        v_hashes := v_hashes || v_head;
        place := r.place;
        locked := false;
        token_type := r.token_type;
        tokens := r.cost;
        balance := v_balance;
        created_at := v_now;
        return next;
    end loop;
    -- What the last charge of a wallet has left of it.
    update public.ai_tokens t set balance = v_balances[n], total_used = t.total_used + v_takens[n],
        pending = t.pending + v_takens[n], last_used_at = v_now, updated_at = v_now,
        last_entry_at = v_now, log_number = v_numbers[n], log_hash = v_hashes[n]
    from unnest(v_places) with ordinality as c (place, n)
    where v_wallets[n] is distinct from v_wallets[n + 1]
        and t.organization_id = p_organizations[place] and t.id = v_wallets[n];
    insert into public.ai_token_usage_log (id, organization_id, user_id, token_type, feature_used,
        tokens_deducted, remaining_balance, metadata, created_at, number, units, idempotency_key,
        request_hash, metadata_digest, hash_version, hash)
    select p_ids[place], p_organizations[place], p_users[place], v_types[n], p_features[place],
        v_tokens[n], v_balances[n], p_metadata[place], v_now, v_numbers[n], p_units[place],
        p_keys[place], v_requests[n], v_digests[n], 1, v_hashes[n]
    from unnest(v_places) with ordinality as c (place, n);
end
$$;
-- Charges over HTTP in one commit, as tokenlib.deduct_many: each with the digest of an API key, or of a
-- person whom a JWT has shown. None is made unless the key may spend there and nothing is to be counted
-- for it or the organization: who gets no row asks alone.
create function tokenlib.api_charges(
    p_digests text[], p_ids uuid[], p_organizations uuid[], p_users uuid[], p_features text[],
    p_units bigint[], p_metadata jsonb[], p_keys text[], p_limits boolean[], p_wait boolean
)
returns table (place bigint, locked boolean, caller_id uuid, token_type text, tokens bigint,
    balance bigint, created_at timestamptz)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
-- As there: for lists of known length a plan of its own would look cheaper each time than it is to make.
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    v_places bigint[];
    v_callers uuid[];
    v_ids uuid[];
    v_organizations uuid[];
    v_users uuid[];
    v_features text[];
    v_units bigint[];
    v_metadata jsonb[];
    v_keys text[];
    v_limits boolean[];
    v_now timestamptz := tokenlib.clock();
begin
    -- As there: on Citus everybody asks alone.
    if current_setting('citus.propagate_set_commands', true) = 'local' then
        return;
    end if;
    select array_agg(place), array_agg(caller_id), array_agg(id), array_agg(organization),
        array_agg(member), array_agg(feature), array_agg(units), array_agg(metadata), array_agg(key),
        array_agg(limits)
    into v_places, v_callers, v_ids, v_organizations, v_users, v_features, v_units, v_metadata, v_keys,
        v_limits
    from (
        select a.*, coalesce(k.id, a.member) as caller_id
        from unnest(p_digests, p_ids, p_organizations, p_users, p_features, p_units, p_metadata,
            p_keys, p_limits) with ordinality as a (digest, id, organization, member, feature, units,
            metadata, key, limits, place)
        cross join public.ai_token_parameters p
        left join public.ai_token_api_keys k on k.digest = decode(a.digest, 'hex')
            or (k.old_digest = decode(a.digest, 'hex') and k.old_until > v_now)
        left join public.ai_token_organization_settings s on s.organization_id = a.organization
        left join public.ai_token_api_requests d on d.organization_id = a.organization
            and d.caller_id = k.id and d.idempotency_key = a.key
        where (a.digest is null
                or k.revoked_at is null and coalesce(k.expires_at, 'infinity') > v_now
                and 'spend' = any (k.scopes)
                and coalesce(k.organization_id = a.organization, true)
                and not k.limit_users and k.requests_per_minute is null
                and k.seconds_between_requests is null and k.tokens_per_request is null
                and k.output_units_per_request is null)
            and coalesce(s.requests_per_minute, p.organization_requests_per_minute) is null
            and d.caller_id is null
        order by place
    ) as good;
    if v_places is null then
        return;
    end if;
    perform tokenlib.use_key(k.caller, v_now)
    from (select distinct c.caller from unnest(v_callers, v_places) as c (caller, place)
        where p_digests[c.place] is not null) as k;
    return query select v_places[c.place], c.locked, v_callers[c.place], c.token_type, c.tokens,
            c.balance, c.created_at
        from tokenlib.deduct_many(v_ids, v_organizations, v_users, v_features, v_units, v_metadata,
            v_keys, v_limits, p_wait) as c;
end
$$;
-- Ends a session of the console in every process, until it would have ended by itself. Twice is once.
create function tokenlib.sign_out(p_session text, p_life interval) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_now constant timestamptz := tokenlib.clock();
begin
    delete from public.tokenlib_signed_out where until <= v_now;
    insert into public.tokenlib_signed_out (session, until)
    values (p_session, v_now + p_life) on conflict (session) do nothing;
end
$$;
-- What admins set: costs, allowances, limits, parameters, who is staff. Each is on record, before and
-- after.

-- What one unit of a feature costs from now on; live holds keep the cost they were made at.
create function tokenlib.staff_set_cost(
    p_actor uuid, p_feature text, p_cost bigint, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before bigint;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    if p_cost is null or p_cost < 1 or p_cost > 1000000 then
        raise exception 'must be a whole number from 1 to 1000000, not %', p_cost
            using errcode = '22023', column = 'cost';
    end if;
    select cost into v_before from public.ai_token_features where feature = p_feature for update;
    if not found then
        return 'unknown_feature';
    end if;
    update public.ai_token_features set cost = p_cost where feature = p_feature;
    perform tokenlib.record_change(null, 'set_cost', p_actor, p_reason,
        jsonb_build_object('feature', p_feature, 'cost', v_before),
        jsonb_build_object('feature', p_feature, 'cost', p_cost));
    return 'ok';
end
$$;

-- How many output units one unit of a feature pays from now on; null: a use costs the same however long
-- its answer is.
create function tokenlib.staff_set_unit_size(
    p_actor uuid, p_feature text, p_unit_size bigint, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before bigint;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    if p_unit_size not between 1 and 1000000000 then
        raise exception 'must be a whole number from 1 to 1000000000, not %', p_unit_size
            using errcode = '22023', column = 'unit_size';
    end if;
    select unit_size into v_before from public.ai_token_features where feature = p_feature for update;
    if not found then
        return 'unknown_feature';
    end if;
    update public.ai_token_features set unit_size = p_unit_size where feature = p_feature;
    perform tokenlib.record_change(null, 'set_unit_size', p_actor, p_reason,
        jsonb_build_object('feature', p_feature, 'unit_size', v_before),
        jsonb_build_object('feature', p_feature, 'unit_size', p_unit_size));
    return 'ok';
end
$$;

-- What a plan gives per period, null for unlimited. A wallet has it from its next period on.
create function tokenlib.staff_set_allowance(
    p_actor uuid, p_plan text, p_token_type text, p_allowance bigint, p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before jsonb;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    if p_allowance not between 0 and 1000000000 then
        raise exception 'must be a whole number from 0 to 1000000000, not %', p_allowance
            using errcode = '22023', column = 'allowance';
    end if;
    if not exists (select from public.ai_token_plans where plan = p_plan) then
        return 'unknown_plan';
    elsif p_token_type = 'shared' or not exists (
        select from public.ai_token_types where token_type = p_token_type) then
        return 'unknown_token_type';
    end if;
    select to_jsonb(a) into v_before from public.ai_token_allowances a
    where a.plan = p_plan and a.token_type = p_token_type for update;
    insert into public.ai_token_allowances (plan, token_type, allowance)
    values (p_plan, p_token_type, p_allowance)
    on conflict (plan, token_type) do update set allowance = excluded.allowance;
    perform tokenlib.record_change(null, 'set_allowance', p_actor, p_reason, v_before,
        jsonb_build_object('plan', p_plan, 'token_type', p_token_type, 'allowance', p_allowance));
    return 'ok';
end
$$;

-- Abuse limits of everyone (p_organization null) or of one organization; a null limit is off.
-- p_own false takes an organization's own limits away: those of everyone hold again.
create function tokenlib.staff_set_limits(
    p_actor uuid, p_organization uuid, p_own boolean, p_requests_per_minute integer,
    p_seconds_between_requests numeric, p_tokens_per_request bigint,
    p_output_units_per_request bigint, p_alert_tokens_per_hour bigint, p_failed_attempts integer,
    p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_before jsonb;
    v_after jsonb;
    v_wrong text;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    select name into v_wrong from (values
        ('requests_per_minute', p_requests_per_minute::numeric),
        ('seconds_between_requests', p_seconds_between_requests),
        ('tokens_per_request', p_tokens_per_request),
        ('output_units_per_request', p_output_units_per_request),
        ('alert_tokens_per_hour', p_alert_tokens_per_hour),
        ('failed_attempts', p_failed_attempts)) as l (name, value)
    where value <= 0 or value > 1000000000 limit 1;
    if v_wrong is not null then
        raise exception 'must be more than 0 and at most 1000000000, or empty for no limit'
            using errcode = '22023', column = v_wrong;
    end if;
    if p_organization is not null
        and not exists (select from public.organizations where id = p_organization) then
        return 'unknown_organization';
    end if;
    select to_jsonb(l) - '{organization_id,scope}'::text[] into v_before
    from public.ai_token_limits l
    where l.organization_id is not distinct from p_organization for update;
    if p_own then
        insert into public.ai_token_limits
        values (p_organization, p_requests_per_minute, p_seconds_between_requests,
            p_tokens_per_request, p_output_units_per_request, p_alert_tokens_per_hour,
            p_failed_attempts)
        on conflict (organization_id) do update set
            requests_per_minute = excluded.requests_per_minute,
            seconds_between_requests = excluded.seconds_between_requests,
            tokens_per_request = excluded.tokens_per_request,
            output_units_per_request = excluded.output_units_per_request,
            alert_tokens_per_hour = excluded.alert_tokens_per_hour,
            failed_attempts = excluded.failed_attempts;
        -- Not RETURNING, in which Citus takes no function.
        select to_jsonb(l) - '{organization_id,scope}'::text[] into strict v_after
        from public.ai_token_limits l where l.organization_id is not distinct from p_organization;
    elsif p_organization is null then
        raise exception 'are needed for everyone' using errcode = '22023', column = 'limits';
    else
        delete from public.ai_token_limits where organization_id = p_organization;
    end if;
    perform tokenlib.record_change(p_organization, 'set_limits', p_actor, p_reason, v_before,
        v_after);
    return 'ok';
end
$$;

-- What holds for everyone; null leaves a parameter as it is.
create function tokenlib.staff_set_parameters(
    p_actor uuid, p_hold_life interval, p_top_up_block bigint, p_token_cost_cents numeric,
    p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    p public.ai_token_parameters;
    v_before jsonb;
begin
    perform tokenlib.require_reason(p_reason);
    perform tokenlib.require_staff(p_actor, '{admin}');
    if p_hold_life <= interval '0' or p_hold_life > interval '1 day' then
        raise exception 'must be more than 0 s and at most 1 day'
            using errcode = '22023', column = 'hold_life';
    elsif p_top_up_block not between 1 and 1000000000 then
        raise exception 'must be a whole number from 1 to 1000000000, not %', p_top_up_block
            using errcode = '22023', column = 'top_up_block';
    elsif p_token_cost_cents < 0 or p_token_cost_cents > 1000000 then
        raise exception 'must be from 0 to 1000000 cents, not %', p_token_cost_cents
            using errcode = '22023', column = 'token_cost_cents';
    end if;
    select * into strict p from public.ai_token_parameters for update;
    v_before := jsonb_build_object('hold_life', p.hold_life, 'top_up_block', p.top_up_block,
        'token_cost_cents', p.token_cost_cents);
    update public.ai_token_parameters set hold_life = coalesce(p_hold_life, hold_life),
        top_up_block = coalesce(p_top_up_block, top_up_block),
        token_cost_cents = coalesce(p_token_cost_cents, token_cost_cents)
    returning * into strict p;
    perform tokenlib.record_change(null, 'set_parameters', p_actor, p_reason, v_before,
        jsonb_build_object('hold_life', p.hold_life, 'top_up_block', p.top_up_block,
            'token_cost_cents', p.token_cost_cents));
    return 'ok';
end
$$;

-- Makes a person staff, changes them, or (p_role null) takes their rights away. Somebody who is not
-- staff yet needs a name and an e-mail address. One admin by hand always remains. Whom a claim makes
-- staff keeps the claim's role, and loses it for every token that was signed before.
create function tokenlib.staff_set_staff(
    p_actor uuid, p_user uuid, p_role text, p_grants_per_day bigint, p_email text, p_name text,
    p_reason text
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    s public.tokenlib_staff;
    v_now timestamptz;
    v_there boolean;
    v_before jsonb;
    v_after jsonb;
begin
    perform tokenlib.require_reason(p_reason);
    -- Before the actor's row is held: two admins who change each other take turns.
    perform pg_advisory_xact_lock(hashtextextended('tokenlib staff', 0));
    perform tokenlib.require_staff(p_actor, '{admin}');
    if p_role not in ('admin', 'support') then
        raise exception 'must be admin or support, not %', p_role
            using errcode = '22023', column = 'role';
    elsif p_grants_per_day not between 0 and 1000000000 then
        raise exception 'must be a whole number from 0 to 1000000000, not %', p_grants_per_day
            using errcode = '22023', column = 'grants_per_day';
    elsif p_email is not null and (p_email !~ '^[^@\s]+@[^@\s]+$' or length(p_email) > 320) then
        raise exception 'must be an e-mail address, not %', p_email
            using errcode = '22023', column = 'email';
    elsif p_name is not null and (p_name !~ '\S' or length(p_name) > 200) then
        raise exception 'must have 1 to 200 characters' using errcode = '22023', column = 'name';
    end if;
    v_now := tokenlib.clock(); -- once: inside an update Citus takes no volatile function
    -- Whose claim is over has no address to keep.
    update public.tokenlib_staff set email = user_id::text
    where email = p_email and user_id <> p_user and until <= v_now;
    if p_role is not null and exists (
        select from public.tokenlib_staff where email = p_email and user_id <> p_user) then
        raise exception '% is another staff person''s', p_email
            using errcode = '22023', column = 'email';
    end if;
    select * into s from public.tokenlib_staff where user_id = p_user for update;
    v_there := found and coalesce(s.until, 'infinity') > v_now;
    if not v_there then
        s.issuer := null; s.until := null; s.signed_at := null;
        if p_role is null then
            return 'unknown_staff';
        elsif p_email is null or p_name is null then
            raise exception 'is needed for somebody who is not staff yet' using errcode = '22023',
                column = case when p_email is null then 'email' else 'name' end;
        end if;
    else
        v_before := jsonb_build_object('user_id', p_user, 'email', s.email, 'role', s.role,
            'grants_per_day', s.grants_per_day);
    end if;
    if s.until is not null and p_role <> s.role then
        raise exception 'The role comes from a claim of %, which decides it. It can be ended here.',
            s.issuer using errcode = 'TK403';
    elsif v_there and s.until is null and s.role = 'admin' and p_role is distinct from 'admin'
        and not exists (select from public.tokenlib_staff
            where role = 'admin' and until is null and user_id <> p_user) then
        raise exception 'The last admin stays. Make somebody else admin first.'
            using errcode = 'TK403';
    end if;
    if p_role is null and s.until is not null then
        s.signed_at := greatest(s.signed_at + interval '1 microsecond', v_now);
        update public.tokenlib_staff set until = v_now, signed_at = s.signed_at
        where user_id = p_user;
    elsif p_role is null then
        delete from public.tokenlib_staff where user_id = p_user;
    else
        insert into public.tokenlib_staff (user_id, email, full_name, role, grants_per_day,
            created_at, issuer, until, signed_at)
        values (p_user, coalesce(p_email, s.email), coalesce(btrim(p_name), s.full_name), p_role,
            coalesce(p_grants_per_day, s.grants_per_day, 0), v_now, s.issuer, s.until,
            s.signed_at)
        on conflict (user_id) do update set email = excluded.email,
            full_name = excluded.full_name, role = excluded.role,
            grants_per_day = excluded.grants_per_day, issuer = excluded.issuer,
            until = excluded.until, signed_at = excluded.signed_at
        returning * into strict s;
        v_after := jsonb_build_object('user_id', p_user, 'email', s.email, 'role', s.role,
            'grants_per_day', s.grants_per_day);
    end if;
    perform tokenlib.record_change(null, 'set_staff', p_actor, p_reason, v_before, v_after);
    return 'ok';
end
$$;
-- Makes a person staff by what an issuer claims of them, for as long as p_until says and for an hour at
-- most, or ends that. What the claims are worth stands in tokenlib_staff_claims, which only the owner
-- writes; the caller has verified the token. Answers the role, or why the claims give none.
create function tokenlib.staff_by_claim(
    p_issuer text, p_user uuid, p_claims jsonb, p_email text, p_name text, p_issued timestamptz,
    p_until timestamptz
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    s public.tokenlib_staff;
    v_now timestamptz := tokenlib.clock();
    v_until timestamptz := least(p_until, v_now + interval '1 hour');
    v_role text := (select min(role) from public.tokenlib_staff_claims  -- admin before support
        where issuer = p_issuer and p_claims #> claim @> to_jsonb(value));
    v_there boolean;
    v_before jsonb;
begin
    if p_issued is null or v_until is null or v_until <= v_now then
        return 'over';
    elsif p_issued > v_now + interval '1 minute' then
        return 'early';  -- clocks differ; a token from the future would be newer than all that come
    elsif v_role is null and not exists (select from public.tokenlib_staff
        where user_id = p_user and issuer = p_issuer and until > v_now) then
        return 'none';
    end if;
    perform pg_advisory_xact_lock(hashtextextended('tokenlib staff', 0));
    select * into s from public.tokenlib_staff where user_id = p_user for update;
    v_there := found and coalesce(s.until, 'infinity') > v_now;
    if (v_there and s.until is null) or exists (select from public.tokenlib_staff where until is null
        and lower(email::text collate "C") = lower(p_email::text collate "C")) then
        return 'by_hand';
    elsif p_issued < s.signed_at then
        return 'older';  -- than what is known: a token from before the claim was changed, or ended here
    elsif v_there and s.issuer <> p_issuer then
        return 'other_issuer';
    end if;
    if v_there then
        v_before := jsonb_build_object('user_id', p_user, 'email', s.email, 'role', s.role,
            'grants_per_day', s.grants_per_day, 'issuer', s.issuer);
    end if;
    if v_role is null then
        update public.tokenlib_staff set until = v_now, signed_at = p_issued + interval '1 microsecond'
        where user_id = p_user;
        perform tokenlib.record_change(null, 'set_staff', p_user, 'By the claims of ' || p_issuer,
            v_before, null);
        return 'none';
    end if;
    update public.tokenlib_staff set email = user_id::text
    where lower(email::text collate "C") = lower(p_email::text collate "C") and user_id <> p_user;
    insert into public.tokenlib_staff (user_id, email, full_name, role, created_at, issuer, until,
        signed_at)
    values (p_user, coalesce(p_email, p_user::text), left(p_name, 200), v_role, v_now, p_issuer,
        v_until, p_issued)
    on conflict (user_id) do update set email = excluded.email, full_name = excluded.full_name,
        role = excluded.role, issuer = excluded.issuer, until = excluded.until,
        signed_at = excluded.signed_at;
    if not v_there or s.role <> v_role then
        perform tokenlib.record_change(null, 'set_staff', p_user, 'By the claims of ' || p_issuer,
            v_before, jsonb_build_object('user_id', p_user, 'email', coalesce(p_email, p_user::text),
                'role', v_role, 'grants_per_day', coalesce(s.grants_per_day, 0),
                'issuer', p_issuer));
    end if;
    return v_role;
end
$$;
-- What callers of the HTTP API may ask: each question names who asks, and the function decides.

-- The whole verdict without charging, by the limits of a key and of the organization, too. A member asks for themselves, keys and staff for anybody in it.
create function tokenlib.api_can_use(
    p_caller uuid, p_secret bytea, p_organization uuid, p_user uuid, p_feature text, p_units bigint,
    p_output_units bigint, p_mode text
) returns tokenlib.answer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    a tokenlib.answer;
    l tokenlib.answer;                         -- a limit that is reached
    v_standing text := tokenlib.standing(p_caller, p_secret, p_organization, 'check');
    v_limits boolean := true;
begin
    if v_standing is null then
        a.status := 'not_yours';
        return a;
    elsif v_standing = 'member' and p_user <> p_caller then
        a.status := 'not_yourself';
        return a;
    elsif v_standing = 'member' then
        p_user := p_caller;
    elsif v_standing = 'key' then
        select limit_users into strict v_limits from public.ai_token_api_keys where id = p_caller;
    end if;
    if p_user is null then
        raise exception 'is needed: the member who is asked about'
            using errcode = '22023', column = 'user_id';
    end if;
    a := tokenlib.can_use(p_organization, p_user, p_feature, p_units, p_output_units, v_limits,
        p_mode);
    if a.available is not null then
        l := tokenlib.check_request_limits(p_organization, p_user,
            case when v_standing = 'key' then p_caller end, p_feature, p_units,
            case when p_output_units is not null
                then jsonb_build_object('output_units', p_output_units) end, p_mode, true);
        if l.status = 'rate_limited' then
            a.status := l.status;
            a.limit_name := l.limit_name;
            a.allowed := l.allowed;
            a.retry_after := l.retry_after;
        end if;
    end if;
    return a;
end
$$;

-- Whether the balance would pay, for who may ask there: yes, no, or what is wrong with the question.
create function tokenlib.api_has_enough(
    p_caller uuid, p_secret bytea, p_organization uuid, p_feature text, p_units bigint
) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    return case when tokenlib.standing(p_caller, p_secret, p_organization, 'check') is null then 'not_yours'
        else tokenlib.has_enough(p_organization, p_feature, p_units) end;
end
$$;

-- Balances of one organization or of one of its wallets, up to date, for who may read there.
create function tokenlib.api_balances(
    p_caller uuid, p_secret bytea, p_organization uuid, p_token_type text
) returns setof public.ai_tokens
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    if tokenlib.standing(p_caller, p_secret, p_organization, 'read') is null then
        raise exception '%', p_organization using errcode = 'TK404';
    end if;
    return query select * from tokenlib.balances(p_organization, p_token_type);
end
$$;

-- The keys that the caller manages: staff and keys for every organization all of them, a key of one
-- organization its own, as long as whom it acts as is staff. Never a digest.
create function tokenlib.api_keys(p_caller uuid, p_secret bytea) returns table (
    id uuid, organization_id uuid, name text, start text, scopes text[], owner_id uuid,
    requests_per_minute integer, seconds_between_requests numeric, tokens_per_request bigint,
    output_units_per_request bigint, limit_users boolean, created_at timestamptz, expires_at timestamptz, last_used_at timestamptz,
    old_until timestamptz, revoked_at timestamptz
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    if p_secret is not null then
        perform tokenlib.require_staff((select k.owner_id from public.ai_token_api_keys k
            where k.id = p_caller), '{admin,support}');
    end if;
    return query
    select k.id, k.organization_id, k.name, k.start, k.scopes, k.owner_id, k.requests_per_minute,
        k.seconds_between_requests, k.tokens_per_request, k.output_units_per_request, k.limit_users,
        k.created_at, k.expires_at, k.last_used_at, k.old_until, k.revoked_at
    from public.ai_token_api_keys k
    where tokenlib.standing(p_caller, p_secret, k.organization_id, 'admin') is not null
    order by k.created_at desc, k.id;
end
$$;

-- Figures for a monitoring system, cheap enough to be asked every few seconds; the same whichever
-- process answers.
create function tokenlib.api_metrics(p_caller uuid, p_secret bytea)
returns table (name text, label text, label_value text, value double precision)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_now timestamptz := tokenlib.clock();
    v_since timestamptz := v_now - interval '5 minutes';
begin
    if tokenlib.standing(p_caller, p_secret, null, 'metrics') is null then
        raise exception 'The figures are for staff, and for keys with the scope metrics.'
            using errcode = 'TK403';
    end if;
    return query
    select 'recent_charges', null::text, null::text, count(*)::double precision
    from public.ai_token_usage_log where created_at > v_since
    union all
    select 'recent_tokens', null, null, coalesce(sum(tokens_deducted), 0)::double precision
    from public.ai_token_usage_log where created_at > v_since
    union all
    select 'recent_refusals', 'rule', r.rule, sum(r.count)::double precision
    from public.ai_token_refusals r where r.last_at > v_since group by r.rule
    union all
    select 'holds', 'state', case when r.expires_at > v_now then 'live' else 'expired' end,
        count(*)::double precision
    from public.ai_token_reservations r where r.state = 'held' group by 3
    union all
    select 'wallets_due', null, null, count(*)::double precision
    from public.ai_tokens where due_at <= v_now
    union all
    select 'open_findings', null, null, count(*)::double precision
    from public.ai_token_findings where settled_at is null
    union all
    select 'switched_organizations', 'mode', s.mode, count(*)::double precision
    from public.ai_token_organization_settings s
    where s.mode <> 'enforce' and coalesce(s.mode_until, 'infinity') > v_now group by s.mode
    union all
    select 'switched_for_everyone', null, null, case when p.mode <> 'enforce'
        and coalesce(p.mode_until, 'infinity') > v_now then 1.0 else 0.0 end
    from public.ai_token_parameters p
    union all
    select 'api_keys', null, null, count(*)::double precision
    from public.ai_token_api_keys k
    where k.revoked_at is null and coalesce(k.expires_at, 'infinity') > v_now
    union all
    (select 'verification_problems', null, null, v.problems::double precision
    from public.ai_token_verifications v order by v.at desc limit 1)
    union all
    (select 'verification_age_seconds', null, null, extract(epoch from v_now - v.at)::double precision
    from public.ai_token_verifications v order by v.at desc limit 1);
end
$$;
-- What the wallets of an organization hold together and when each would run out, kept by the closing of
-- usage. A wallet changes with an entry and never without one: who has none since the closing stands as
-- it was kept, and everybody else is computed anew, exactly.

-- Wallets that may differ from what was kept at p_from: by charges that left the week which ended then and
-- now ends at p_to; or (`entered`) by an entry since, or by books that nobody has opened.
create function tokenlib.wallets_moved(p_from timestamptz, p_to timestamptz)
returns table (organization_id uuid, token_type text, entered boolean)
language plpgsql stable rows 500 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
begin
    return query
    select m.organization_id, m.token_type, bool_or(m.entered)
    from (
        select l.organization_id, l.token_type, true as entered from public.ai_token_usage_log l
        where l.created_at >= p_from
        union all
        select e.organization_id, e.token_type, true from public.ai_token_events e
        where e.created_at >= p_from
        union all
        select l.organization_id, l.token_type, false from public.ai_token_usage_log l
        where l.created_at >= p_from - interval '168 hours'
            and l.created_at < p_to - interval '168 hours'
        union all
        select a.organization_id, a.token_type, true from public.ai_tokens a
        where a.due_at = '-infinity') as m
    group by 1, 2;
end
$$;

-- The organizations of these; p_from null: everybody.
create function tokenlib.organizations_moved(p_from timestamptz, p_to timestamptz)
returns table (organization_id uuid)
language plpgsql stable rows 500 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
begin
    if p_from is null then
        return query select distinct a.organization_id from public.ai_tokens a;
    else
        return query select distinct w.organization_id from tokenlib.wallets_moved(p_from, p_to) as w;
    end if;
end
$$;

-- Of some organizations, or of everybody; the thresholds of domain.level, the worst wallet speaks. Rows as
-- in ai_token_wallet_sums, column by column: on Citus that table is on one node, and this on all.
create function tokenlib.sum_wallets(p_organizations uuid[])
returns table (organization_id uuid, balance bigint, total_used bigint, refresh_date timestamptz,
    last_used_at timestamptz, rank smallint, near_80 boolean, near_100 boolean, least_plan text,
    most_plan text)
language plpgsql stable rows 500 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
    return query
    select a.organization_id, sum(a.balance)::bigint, sum(a.total_used)::bigint,
        min(a.refresh_date), max(a.last_used_at),
        min(case when a.allowance is null and a.plan is not null then 3
            when a.total_allocated <= 0 then null
            when a.balance * 2 > a.total_allocated then 3
            when a.balance * 5 >= a.total_allocated then 2
            else 1 end) filter (where a.token_type <> 'shared')::smallint,
        bool_or(a.total_allocated > 0 and a.total_used * 5 >= a.total_allocated * 4
            and a.total_used < a.total_allocated
            and not (a.allowance is null and a.plan is not null)),
        bool_or(a.total_allocated > 0 and a.total_used >= a.total_allocated
            and not (a.allowance is null and a.plan is not null)),
        min(a.plan) filter (where a.token_type <> 'shared'),
        max(a.plan) filter (where a.token_type <> 'shared')
    from public.ai_tokens a
    where p_organizations is null or a.organization_id = any (p_organizations)
    group by a.organization_id;
end
$$;

-- How long a balance lasts, where so much was charged in 7 days; null beyond a year.
create function tokenlib.run_out_in(p_balance bigint, p_tokens numeric) returns interval
language sql immutable set search_path = pg_catalog, pg_temp as $$
    -- Compared before it is computed: a slow pace would overflow the calendar.
    select case when p_tokens > 0 and p_balance::numeric * 604800
        < p_tokens * extract(epoch from interval '365 days')
        then (p_balance * 7 / p_tokens)::float8 * interval '1 day' end
$$;

-- Keeps it as it is at p_to; p_from null, and once a day: of everybody.
create function tokenlib.fold_wallets(p_from timestamptz, p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
declare
    v_ids uuid[];
begin
    if date_bin('24 hours', p_from, '2000-01-01 00:00Z')
        = date_bin('24 hours', p_to, '2000-01-01 00:00Z') then
        v_ids := array(select organization_id from tokenlib.organizations_moved(p_from, p_to));
    end if;
    insert into public.ai_token_wallet_sums as s
    select * from tokenlib.sum_wallets(v_ids)
    on conflict (organization_id) do update set balance = excluded.balance,
        total_used = excluded.total_used, refresh_date = excluded.refresh_date,
        last_used_at = excluded.last_used_at, rank = excluded.rank, near_80 = excluded.near_80,
        near_100 = excluded.near_100, least_plan = excluded.least_plan,
        most_plan = excluded.most_plan
    where s is distinct from excluded;
    update public.ai_token_usage_pace p
    set balance = w.balance, refresh_date = w.refresh_date, run_out_in = w.run_out_in
    from (
        select a.organization_id, a.token_type, a.balance, a.refresh_date,
            case when a.allowance is not null or a.plan is null
                then tokenlib.run_out_in(a.balance, u.tokens) end as run_out_in
        from public.ai_token_usage_pace u
        join public.ai_tokens a
            on a.organization_id = u.organization_id and a.token_type = u.token_type
        where v_ids is null or u.organization_id = any (v_ids)) as w
    where p.organization_id = w.organization_id and p.token_type = w.token_type
        and (p.balance, p.refresh_date, p.run_out_in)
            is distinct from (w.balance, w.refresh_date, w.run_out_in);
end
$$;

-- Refusals of everybody since the beginning, as it stood at `at`. A row counts at its last_at, which
-- lies in its minute; what the switch let through does not.
create function tokenlib.fold_refusals(p_from timestamptz, p_to timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    insert into public.ai_token_refusal_sums (at, refusals)
    select f.at, coalesce((select b.refusals from public.ai_token_refusal_sums b
            where b.at <= p_from order by b.at desc limit 1), 0)
        + sum(f.refusals) over (order by f.at)
    from (
        select date_bin('5 minutes', last_at, '2000-01-01 00:00Z') + interval '5 minutes' as at,
            sum(count)::bigint as refusals
        from public.ai_token_refusals
        where last_at >= p_from and last_at < p_to and data ->> 'mode' is null
        group by 1
    ) as f
$$;
-- Questions about every wallet and every refusal, answered from what the closing keeps and from what
-- happened since. They run as who asks.

create function tokenlib.refused_between(p_since timestamptz, p_until timestamptz) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    v_lo timestamptz;
    v_hi timestamptz;
    v_count bigint := 0;
begin
    select lo, hi into v_lo, v_hi from tokenlib.usage_closed(p_since, p_until, null);
    if v_lo < v_hi then
        v_count := coalesce((select refusals from public.ai_token_refusal_sums
                where at <= v_hi order by at desc limit 1), 0)
            - coalesce((select refusals from public.ai_token_refusal_sums
                where at <= v_lo order by at desc limit 1), 0);
    else
        v_lo := p_until;
        v_hi := p_until;
    end if;
    if p_since < v_lo then
        v_count := v_count + (select coalesce(sum(count), 0) from public.ai_token_refusals
            where last_at >= p_since and last_at < v_lo and data ->> 'mode' is null);
    end if;
    if v_hi < p_until then
        v_count := v_count + (select coalesce(sum(count), 0) from public.ai_token_refusals
            where last_at >= v_hi and last_at < p_until and data ->> 'mode' is null);
    end if;
    return v_count;
end
$$;

-- Up to when wallets are kept as they stood; null: they are not, or so long ago that each is looked at.
create function tokenlib.wallets_closed_to(p_now timestamptz) returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp as $$
    select windows_to from public.ai_token_usage_closed
    where windows_to <= p_now and windows_to > p_now - interval '24 hours'
$$;

-- The wallets that run out first within p_within at the pace of the last 7 days, and how many do. More
-- than the limit where several are as soon and as fast: names decide then. With p_ties, where several are
-- as soon, and not how many.
create function tokenlib.run_outs(p_within interval, p_limit bigint, p_ties boolean)
returns table (organization_id uuid, token_type text, tokens numeric, run_out_at timestamptz,
    total bigint)
language plpgsql stable rows 50 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := tokenlib.clock();
    v_to timestamptz := tokenlib.wallets_closed_to(v_now);
begin
    if p_within > interval '365 days' then
        v_to := null; -- more than is kept
    end if;
    return query
    with touched as materialized (
        select * from tokenlib.wallets_moved(v_to, v_now) where v_to is not null
    ), looked as materialized (
        -- Who was only charged less in a week lasts longer than it did.
        select t.organization_id, t.token_type, coalesce(p.tokens, 0) as tokens
        from touched t
        left join lateral (
            select tokens, run_out_in from public.ai_token_usage_pace
            where organization_id = t.organization_id and token_type = t.token_type offset 0) as p
            on true
        where t.entered or p.run_out_in <= p_within
    ), edges as (
        select organization_id, token_type, tokens_deducted as tokens
        from public.ai_token_usage_log
        where created_at >= coalesce(v_to, v_now - interval '168 hours') and created_at < v_now
        union all
        select organization_id, token_type, -tokens_deducted
        from public.ai_token_usage_log
        where created_at >= v_to - interval '168 hours'
            and created_at < v_now - interval '168 hours'
        union all
        select * from looked
    ), moved as materialized (
        select a.organization_id, a.token_type, e.tokens, r.at as run_out_at
        from (
            select organization_id, token_type, sum(tokens) as tokens from edges
            where v_to is null
                or (organization_id, token_type) in (select organization_id, token_type from looked)
            group by 1, 2
            having sum(tokens) > 0) as e
        join public.ai_tokens a
            on a.organization_id = e.organization_id and a.token_type = e.token_type
        -- Compared before it is computed: a slow pace would overflow the calendar.
        cross join lateral (select case
            when a.balance::numeric * 604800 < e.tokens * extract(epoch from p_within)
            then v_now + (a.balance * 7 / e.tokens)::float8 * interval '1 day' end as at) as r
        where (a.allowance is not null or a.plan is null) and r.at is not null
            and (a.token_type = 'shared' or r.at < a.refresh_date)
    ), kept as not materialized (
        select organization_id, token_type, tokens::numeric, run_out_in
        from public.ai_token_usage_pace p
        where v_to is not null and run_out_in <= p_within
            and balance::numeric * 604800 < tokens * extract(epoch from p_within)
            and (token_type = 'shared' or v_now + run_out_in < refresh_date)
            and (organization_id, token_type) not in (
                select organization_id, token_type from touched)
    ), first as (
        select * from moved
        union all
        (select organization_id, token_type, tokens, v_now + run_out_in from (
            select * from kept
            order by run_out_in, case when not p_ties then tokens end desc
            fetch first (p_limit) rows with ties) as k)
    )
    select f.*, case when not p_ties
        then (select count(*) from moved) + (select count(*) from kept) end
    from first f;
end
$$;

-- A page of all organizations, in an order that their wallets decide, then by name. Only those are
-- named and sorted whose key is up to that of the last on the page; what is kept of an organization that
-- is gone counts for that too, so then it goes on.
create function tokenlib.organizations_by_wallets(
    p_sort text, p_descending boolean, p_limit bigint, p_offset bigint
) returns uuid[]
language plpgsql stable set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
declare
    v_now constant timestamptz := tokenlib.clock();
    v_to constant timestamptz := tokenlib.wallets_closed_to(v_now);
    v_moved constant uuid[] := array(select m.organization_id
        from tokenlib.organizations_moved(v_to, v_now) as m);
    v_sign constant integer := case when p_descending then -1 else 1 end;
    v_more bigint := p_offset + p_limit + cardinality(v_moved);
    v_last numeric;
    v_ids uuid[];
begin
    loop
        select k.key into v_last
        from (select v_sign * case p_sort when 'balance' then s.balance when 'level' then s.rank
                    when 'total_used' then s.total_used
                    when 'refresh_date' then extract(epoch from s.refresh_date)
                    when 'last_used_at' then extract(epoch from s.last_used_at) end as key
            from public.ai_token_wallet_sums s) as k
        order by k.key nulls last offset v_more - 1 limit 1;
        v_ids := array(
            select o.id
            from public.organizations o
            left join (
                select h.organization_id, v_sign * case p_sort when 'balance' then h.balance
                    when 'level' then h.rank when 'total_used' then h.total_used
                    when 'refresh_date' then extract(epoch from h.refresh_date)
                    when 'last_used_at' then extract(epoch from h.last_used_at) end as key
                from (
                    select * from public.ai_token_wallet_sums
                    where organization_id not in (select unnest(v_moved))
                    union all
                    select * from tokenlib.sum_wallets(v_moved)) as h) as k
                on k.organization_id = o.id
            where v_last is null or k.key <= v_last
            order by k.key nulls last, o.name, o.id
            limit p_offset + p_limit);
        exit when v_last is null or cardinality(v_ids) = p_offset + p_limit;
        v_more := 4 * v_more;
    end loop;
    return v_ids[p_offset + 1:];
end
$$;

-- Organizations as a list shows them, in the order of their ids as given.
create function tokenlib.organization_rows(p_ids uuid[])
returns table (place bigint, organization_id uuid, name text, plan text, status text, mode text,
    level text, members bigint, balance bigint, reserved bigint, total_used bigint,
    total_allocated bigint, unlimited boolean, refresh_date timestamptz, refresh_due boolean,
    last_used_at timestamptz)
language plpgsql stable rows 50 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
begin
    return query
    with clock as materialized (select tokenlib.clock() as now)
    select p.place, o.id, o.name, o.plan, coalesce(s.status, 'active'),
        case when s.mode_until is null or s.mode_until > c.now then s.mode end,
        coalesce((array['red', 'yellow', 'green'])[w.rank], 'none'),
        (select count(*) from public.user_profiles u where u.organization_id = o.id),
        coalesce(w.balance, 0), coalesce(w.reserved, 0), coalesce(w.total_used, 0),
        coalesce(w.total_allocated, 0), coalesce(w.unlimited, false), w.refresh_date,
        coalesce(w.refresh_due, false), w.last_used_at
    from unnest(p_ids) with ordinality as p (id, place)
    join public.organizations o on o.id = p.id
    cross join clock c
    left join public.ai_token_organization_settings s on s.organization_id = o.id
    left join lateral (
        select sum(a.balance)::bigint as balance, sum(a.reserved)::bigint as reserved,
            sum(a.total_used)::bigint as total_used,
            sum(a.total_allocated)::bigint as total_allocated,
            bool_or(a.allowance is null and a.plan is not null) as unlimited,
            min(a.refresh_date) as refresh_date, bool_or(a.refresh_date <= c.now) as refresh_due,
            max(a.last_used_at) as last_used_at,
            -- The thresholds of domain.level; the worst wallet speaks.
            min(case when a.allowance is null and a.plan is not null then 3
                when a.total_allocated <= 0 then null
                when a.balance * 2 > a.total_allocated then 3
                when a.balance * 5 >= a.total_allocated then 2
                else 1 end) filter (where a.token_type <> 'shared') as rank
        from public.ai_tokens a
        where a.organization_id = o.id) as w on true
    order by p.place;
end
$$;
-- Who may have gone beyond the limits of requests and tokens, so that only they are looked at closely.

-- The strictest of all limits: seconds between requests, requests a minute, tokens of a request and of an
-- hour; null: nobody has one.
create function tokenlib.least_limits() returns numeric[]
language sql stable set search_path = pg_catalog, pg_temp as $$
    select array[max(seconds_between_requests), min(requests_per_minute), min(tokens_per_request),
        min(alert_tokens_per_hour)]
    from public.ai_token_limits
$$;

-- Whole hours (UTC) from p_from on, up to p_to, in which somebody was hasty enough: what any 60 minutes or
-- 60 seconds have too much of lies in two such hours, so one of them has more than half of it. Of these
-- people, or (null) of everybody.
create function tokenlib.hasty_hours(
    p_from timestamptz, p_to timestamptz, p_limits numeric[], p_organization uuid,
    p_organizations uuid[], p_users uuid[]
) returns table (hour timestamptz, organization_id uuid, user_id uuid)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_from timestamptz := p_from - coalesce(p_limits[1], 0)::float8 * interval '1 second';
begin
    return query
    select date_bin('1 hour', r.at, '2000-01-01 00:00Z'), r.organization_id, r.user_id
    from (
        select *, case when request then at - lag(at) over (
            partition by organization_id, user_id, request order by at) end as gap
        from (
            select organization_id, user_id, created_at as at, reservation_id is null as request,
                tokens_deducted as tokens,
                case when reservation_id is null then tokens_deducted + tokens_waived else 0 end
                    as asked
            from public.ai_token_usage_log
            where p_users is null and created_at >= v_from and created_at < p_to
                and user_id is not null
                and (p_organization is null or organization_id = p_organization)
            union all
            select organization_id, user_id, created_at, true, 0, tokens + waived
            from public.ai_token_reservations
            where p_users is null and created_at >= v_from and created_at < p_to
                and (p_organization is null or organization_id = p_organization)
            union all
            select p.organization_id, p.user_id, q.*
            from unnest(p_organizations, p_users) as p (organization_id, user_id)
            cross join lateral (
                select created_at, reservation_id is null, tokens_deducted,
                    case when reservation_id is null then tokens_deducted + tokens_waived else 0 end
                from public.ai_token_usage_log
                where organization_id = p.organization_id and user_id = p.user_id
                    and created_at >= v_from and created_at < p_to
                union all
                select created_at, true, 0, tokens + waived
                from public.ai_token_reservations
                where organization_id = p.organization_id and user_id = p.user_id
                    and created_at >= v_from and created_at < p_to offset 0) as q
        ) as requests
    ) as r
    where r.at >= p_from
    group by 1, 2, 3
    having extract(epoch from min(r.gap)) < p_limits[1]
        or 2 * count(*) filter (where r.request) > p_limits[2]
        or max(r.asked) > p_limits[3]
        or 2 * sum(r.tokens) > p_limits[4];
end
$$;

-- Keeps them; of nine days at once where a limit has become stricter.
create function tokenlib.fold_hasty(p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    c public.ai_token_usage_closed;
    v_limits numeric[] := tokenlib.least_limits();
    v_first timestamptz := date_bin('1 hour', p_to - interval '216 hours', '2000-01-01 00:00Z');
begin
    select * into c from public.ai_token_usage_closed;
    if c.hasty_to is null or c.hasty_to < v_first or c.hasty_from is null
        or tokenlib.stricter(v_limits, c.hasty_limits) then
        delete from public.ai_token_usage_hasty;
        delete from public.ai_token_usage_bursts;
        c.hasty_from := v_first;
        c.hasty_to := v_first;
        c.hasty_limits := v_limits;
    end if;
    insert into public.ai_token_usage_hasty (hour, organization_id, user_id)
    select * from tokenlib.hasty_hours(date_bin('1 hour', c.hasty_to, '2000-01-01 00:00Z'), p_to,
        c.hasty_limits, null, null, null)
    on conflict do nothing;
    delete from public.ai_token_usage_hasty where hour < v_first;
    perform tokenlib.fold_bursts(v_first, c.hasty_to, p_to);
    update public.ai_token_usage_closed set hasty_from = greatest(c.hasty_from, v_first),
        hasty_to = p_to, hasty_limits = c.hasty_limits;
    -- All of the last 24 hours and 7 days, too.
    delete from public.ai_token_usage_bursts where hours > 6;
    insert into public.ai_token_usage_bursts (organization_id, user_id, hours, start, requests,
        tokens, peak_hour_tokens, peak_hour_until, peak_minute_requests, shortest_gap,
        largest_request, first_at, last_at)
    select f.organization_id, f.user_id, d.hours, p_to - d.hours * interval '1 hour', f.requests,
        f.tokens, f.peak_hour_tokens, f.peak_hour_until, f.peak_minute_requests, f.shortest_gap,
        f.largest_request, f.first_at, f.before_at
    from unnest(array[24, 168]) as d (hours)
    cross join lateral (
        select array_agg(organization_id) as organizations, array_agg(user_id) as users
        from tokenlib.hasty_people(p_to - d.hours * interval '1 hour', p_to, null)) as p
    cross join lateral tokenlib.hasty_figures(p.organizations, p.users,
        p_to - d.hours * interval '1 hour', p_to) as f;
end
$$;

-- What people asked for from p_since on, and (not `counted`) in the hour before: with what the hour and the
-- minute that end at each row had, as the limits of the gate count them. `request_at`: null for the charge
-- of a hold.
create function tokenlib.rolling_requests(
    p_organizations uuid[], p_users uuid[], p_since timestamptz, p_until timestamptz
) returns table (organization_id uuid, user_id uuid, at timestamptz, counted boolean,
    request_at timestamptz, tokens bigint, asked bigint, hour_tokens bigint, minute_requests bigint)
language plpgsql stable rows 1000 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_from timestamptz := p_since - interval '1 hour';
begin
    return query
    select p.organization_id, p.user_id, r.at, r.at >= p_since, r.request_at, r.tokens, r.asked,
        (sum(r.tokens) over (of_user range between interval '3599.999999 s' preceding
            and current row))::bigint,
        count(r.request_at) over (of_user range between interval '59.999999 s' preceding
            and current row)
    from unnest(p_organizations, p_users) as p (organization_id, user_id)
    cross join lateral (
        select created_at as at, case when reservation_id is null then created_at end as request_at,
            tokens_deducted as tokens,
            case when reservation_id is null then tokens_deducted + tokens_waived else 0 end as asked
        from public.ai_token_usage_log
        where organization_id = p.organization_id and user_id = p.user_id
            and created_at >= v_from and created_at < p_until
        union all
        select created_at, created_at, 0, tokens + waived
        from public.ai_token_reservations
        where organization_id = p.organization_id and user_id = p.user_id
            and created_at >= v_from and created_at < p_until offset 0) as r
    window of_user as (partition by p.organization_id, p.user_id order by r.at);
end
$$;

-- What those who were hasty did in each whole block of six hours of nine days: of who is new in all of them,
-- of the others in those that ended since.
create function tokenlib.fold_bursts(p_first timestamptz, p_from timestamptz, p_to timestamptz)
returns void
language plpgsql set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    v_since timestamptz;
    v_until timestamptz := date_bin('6 hours', p_to, '2000-01-01 00:00Z');
    v_organizations uuid[];
    v_users uuid[];
begin
    p_first := date_bin('6 hours', p_first + interval '5 hours', '2000-01-01 00:00Z');
    p_from := greatest(p_first, date_bin('6 hours', p_from, '2000-01-01 00:00Z'));
    if p_from < v_until then
        delete from public.ai_token_usage_bursts b
        where hours = 6 and (start < p_first or not exists (select from public.ai_token_usage_hasty h
            where h.organization_id = b.organization_id and h.user_id = b.user_id));
    end if;
    for v_since, v_organizations, v_users in
        select case when known then p_from else p_first end, array_agg(organization_id),
            array_agg(user_id)
        from (
            select organization_id, user_id, exists (select from public.ai_token_usage_bursts b
                where b.organization_id = h.organization_id and b.user_id = h.user_id
                    and b.hours = 6) as known
            from (select distinct organization_id, user_id from public.ai_token_usage_hasty) as h
        ) as people
        group by 1
    loop
        continue when v_since >= v_until;
        insert into public.ai_token_usage_bursts
        select organization_id, user_id, 6, start, count(request_at), sum(tokens), max(hour_tokens),
            (array_agg(at order by hour_tokens desc, at))[1], max(minute_requests), min(gap),
            max(asked), min(request_at), max(request_at)
        from (
            select *, request_at - max(request_at) over (
                partition by organization_id, user_id, start order by at
                rows between unbounded preceding and 1 preceding) as gap
            from (
                select *, date_bin('6 hours', at, '2000-01-01 00:00Z') as start
                from tokenlib.rolling_requests(v_organizations, v_users, v_since, v_until)
                where counted) as counted) as spaced
        group by 1, 2, 4;
    end loop;
end
$$;

-- Whether limits leave somebody out that others would not.
create function tokenlib.stricter(p_limits numeric[], p_than numeric[]) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select coalesce(p_limits[1], 0) > coalesce(p_than[1], 0)
        or coalesce(p_limits[2], 'infinity') < coalesce(p_than[2], 'infinity')
        or coalesce(p_limits[3], 'infinity') < coalesce(p_than[3], 'infinity')
        or coalesce(p_limits[4], 'infinity') < coalesce(p_than[4], 'infinity')
$$;

-- Who may have gone beyond a limit in a window or in the hour before it.
create function tokenlib.hasty_people(p_since timestamptz, p_until timestamptz, p_organization uuid)
returns table (organization_id uuid, user_id uuid)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    c public.ai_token_usage_closed;
    v_limits numeric[] := tokenlib.least_limits();
    v_since timestamptz := date_bin('1 hour', p_since - interval '1 hour', '2000-01-01 00:00Z');
    v_kept timestamptz;
    v_last timestamptz;
begin
    select * into c from public.ai_token_usage_closed;
    if c.hasty_to is null or tokenlib.stricter(v_limits, c.hasty_limits) then
        c.hasty_from := p_until;
        c.hasty_to := p_until;
    end if;
    v_kept := least(greatest(c.hasty_from, v_since), p_until);
    v_last := greatest(date_bin('1 hour', c.hasty_to, '2000-01-01 00:00Z'), v_kept);
    return query
    select organization_id, user_id from public.ai_token_usage_hasty
    where hour >= v_kept and hour < v_last and hour < p_until
        and (p_organization is null or organization_id = p_organization)
    union
    select organization_id, user_id
    from tokenlib.hasty_hours(v_since, v_kept, v_limits, p_organization, null, null)
    where v_since < v_kept
    union
    select organization_id, user_id
    from tokenlib.hasty_hours(v_last, p_until, v_limits, p_organization, null, null)
    where v_last < p_until;
end
$$;

-- What people did in a window, and their peaks in it: of who was hasty from the whole blocks that are kept,
-- and from the rows of each edge. shortest_gap is between two requests of the window; the last one before
-- it, if that was within an hour, is before_at.
create function tokenlib.hasty_figures(
    p_organizations uuid[], p_users uuid[], p_since timestamptz, p_until timestamptz
) returns table (organization_id uuid, user_id uuid, requests bigint, tokens bigint,
    peak_hour_tokens bigint, peak_hour_until timestamptz, peak_minute_requests bigint,
    shortest_gap interval, largest_request bigint, first_at timestamptz, before_at timestamptz)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_lo timestamptz;
    v_hi timestamptz;
    v_kept uuid[];
    v_kept_users uuid[];
    v_others uuid[];
    v_other_users uuid[];
begin
    select date_bin('6 hours', greatest(p_since, hasty_from)
            + interval '5 hours 59 minutes 59.999999 seconds', '2000-01-01 00:00Z'),
        date_bin('6 hours', least(p_until, hasty_to), '2000-01-01 00:00Z')
    into v_lo, v_hi
    from public.ai_token_usage_closed where hasty_to is not null;
    select array_agg(organization_id) filter (where kept), array_agg(user_id) filter (where kept),
        array_agg(organization_id) filter (where not kept),
        array_agg(user_id) filter (where not kept)
    into v_kept, v_kept_users, v_others, v_other_users
    from (
        select *, v_lo < v_hi and (organization_id, user_id) in (
            select organization_id, user_id from public.ai_token_usage_hasty) is true as kept
        from unnest(p_organizations, p_users) as p (organization_id, user_id)) as people;
    return query
    with parts as (
        select *, request_at as begun_at, request_at as ended_at, null::interval as gap, at as until,
            case when request_at is null then 0 else 1 end as requests
        from (
            select * from tokenlib.rolling_requests(v_others, v_other_users, p_since, p_until)
            union all
            select * from tokenlib.rolling_requests(v_kept, v_kept_users, p_since, v_lo)
            union all
            select * from tokenlib.rolling_requests(v_kept, v_kept_users, v_hi, p_until)) as rolling
        where counted or at < p_since -- not the hour before v_hi
        union all
        select b.organization_id, b.user_id, b.start, true, null, b.tokens, b.largest_request,
            b.peak_hour_tokens, b.peak_minute_requests, b.first_at, b.last_at, b.shortest_gap,
            b.peak_hour_until, b.requests
        from unnest(v_kept, v_kept_users) as k (organization_id, user_id)
        join public.ai_token_usage_bursts b
            on b.organization_id = k.organization_id and b.user_id = k.user_id
        where b.hours = 6 and b.start >= v_lo and b.start < v_hi
    ), spaced as (
        select *, least(gap, begun_at - max(ended_at) filter (where counted) over (
            partition by organization_id, user_id
            order by at rows between unbounded preceding and 1 preceding)) as shortest
        from parts
    )
    select organization_id, user_id, (sum(requests) filter (where counted))::bigint,
        (sum(tokens) filter (where counted))::bigint, max(hour_tokens) filter (where counted),
        (array_agg(until order by hour_tokens desc, until) filter (where counted))[1],
        max(minute_requests) filter (where counted), min(shortest) filter (where counted),
        max(asked) filter (where counted), min(begun_at) filter (where counted),
        max(ended_at) filter (where not counted)
    from spaced
    group by 1, 2
    having bool_or(counted);
end
$$;

-- The same of all who may have gone beyond a limit in the window. Of the last 24 hours and 7 days it is
-- kept how they stood at the last closing: whoever asked for nothing at an edge since stands so still.
create function tokenlib.hasty_peaks(p_since timestamptz, p_until timestamptz, p_organization uuid)
returns table (organization_id uuid, user_id uuid, requests bigint, tokens bigint,
    peak_hour_tokens bigint, peak_hour_until timestamptz, peak_minute_requests bigint,
    shortest_gap float8, largest_request bigint)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    c public.ai_token_usage_closed;
    v_hours integer := extract(epoch from p_until - p_since) / 3600;
    v_limits numeric[] := tokenlib.least_limits();
    v_organizations uuid[];
    v_users uuid[];
begin
    select * into c from public.ai_token_usage_closed;
    if c.hasty_to is null or tokenlib.stricter(v_limits, c.hasty_limits)
        or not (v_hours in (24, 168) and p_since = p_until - v_hours * interval '1 hour'
            and c.hasty_to between p_until - interval '1 hour' and p_until) then
        v_hours := null;
        select array_agg(organization_id), array_agg(user_id) into v_organizations, v_users
        from tokenlib.hasty_people(p_since, p_until, p_organization);
    else
        with edges as materialized (
            select organization_id, user_id, bool_or(at >= c.hasty_to) as entered
            from (
                select organization_id, user_id, created_at as at
                from public.ai_token_usage_log
                where created_at >= c.hasty_to - v_hours * interval '1 hour' and created_at < p_since
                    and user_id is not null
                union all
                select organization_id, user_id, created_at from public.ai_token_usage_log
                where created_at >= c.hasty_to and created_at < p_until and user_id is not null
                union all
                select organization_id, user_id, created_at from public.ai_token_reservations
                where created_at >= c.hasty_to - v_hours * interval '1 hour' and created_at < p_since
                union all
                select organization_id, user_id, created_at from public.ai_token_reservations
                where created_at >= c.hasty_to and created_at < p_until) as requests
            where p_organization is null or organization_id = p_organization
            group by 1, 2
        ), entered as (
            select array_agg(organization_id) as organizations, array_agg(user_id) as users
            from edges where entered
        ), moved as (
            select e.organization_id, e.user_id from edges e
            join public.ai_token_usage_bursts b on b.organization_id = e.organization_id
                and b.user_id = e.user_id and b.hours = v_hours
            union
            select h.organization_id, h.user_id
            from entered e
            cross join lateral tokenlib.hasty_hours(
                date_bin('1 hour', c.hasty_to, '2000-01-01 00:00Z'), p_until, v_limits, null,
                coalesce(e.organizations, '{}'), coalesce(e.users, '{}')) as h
        )
        select array_agg(organization_id), array_agg(user_id) into v_organizations, v_users
        from moved;
    end if;
    return query
    select f.organization_id, f.user_id, f.requests, f.tokens, f.peak_hour_tokens,
        f.peak_hour_until, f.peak_minute_requests,
        extract(epoch from least(f.shortest_gap, case when f.before_at >= p_since - interval '1 hour'
            then f.first_at - f.before_at end))::float8, f.largest_request
    from (
        select organization_id, user_id, requests, tokens, peak_hour_tokens, peak_hour_until,
            peak_minute_requests, shortest_gap, largest_request, first_at, before_at
        from tokenlib.hasty_figures(v_organizations, v_users, p_since, p_until)
        union all
        select organization_id, user_id, requests, tokens, peak_hour_tokens, peak_hour_until,
            peak_minute_requests, shortest_gap, largest_request, first_at, last_at
        from public.ai_token_usage_bursts
        where hours = v_hours and (p_organization is null or organization_id = p_organization)
            and (organization_id, user_id) not in (
                select * from unnest(v_organizations, v_users))) as f;
end
$$;
-- What was used in a window by organization, person, wallet and plan, exact to the row.

-- Organizations: those that are kept by their sums, the others row by row. Without p_features all
-- features and wallets of one in one, with empty names.
create function tokenlib.usage_organizations(
    p_organizations uuid[], p_since timestamptz, p_until timestamptz, p_bucket text, p_zone text,
    p_features boolean
) returns table (organization_id uuid, start timestamptz, feature text, token_type text, uses bigint,
    tokens bigint, waived bigint, refunded bigint)
language plpgsql stable rows 200 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_kept uuid[];
    v_others uuid[];
    v_closed timestamptz;
    v_origin constant timestamptz := date_bin('1 hour', p_since, '2000-01-01 00:00Z');
begin
    perform now() at time zone p_zone; -- refuses a wrong name without rows
    select array_agg(k.scope), array_agg(id) filter (where k.scope is null), min(k.closed_to)
    into v_kept, v_others, v_closed
    from unnest(p_organizations) as id
    left join public.ai_token_usage_kept k on k.closed_to > p_since
        and k.scope = case when p_features then id else tokenlib.whole_scope(id) end;
    v_kept := array_remove(v_kept, null);
    if v_kept <> '{}' then
        return query
        select k.organization_id, p.start, p.feature, p.token_type, p.uses, p.tokens, p.waived,
            p.refunded
        from tokenlib.usage_parts(case when p_features then 'organization' else 'whole' end, v_kept,
            v_closed, p_since, p_until, p_bucket, p_zone) as p
        join public.ai_token_usage_kept k on k.scope = p.scope;
    end if;
    if v_others is not null then
        return query
        select l.organization_id, case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', l.created_at, v_origin)
                else date_trunc(p_bucket, l.created_at, p_zone) end,
            case when p_features then l.feature_used else '' end,
            case when p_features then l.token_type else '' end,
            count(*), sum(l.tokens_deducted)::bigint, sum(l.tokens_waived)::bigint, 0::bigint
        from public.ai_token_usage_log l
        where l.organization_id = any (v_others)
            and l.created_at >= p_since and l.created_at < p_until
        group by 1, 2, 3, 4
        union all
        select e.organization_id, case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', e.created_at, v_origin)
                else date_trunc(p_bucket, e.created_at, p_zone) end,
            case when p_features then coalesce(e.data ->> 'feature', '') else '' end,
            case when p_features then e.token_type else '' end, 0::bigint, 0::bigint, 0::bigint,
            sum(e.balance_change)::bigint
        from public.ai_token_events e
        where e.kind = 'refund' and e.organization_id = any (v_others)
            and e.created_at >= p_since and e.created_at < p_until
        group by 1, 2, 3, 4;
    end if;
end
$$;

-- Persons, each in an organization, without features and wallets; `user_id` null is nobody known.
create function tokenlib.usage_persons(
    p_organizations uuid[], p_users uuid[], p_since timestamptz, p_until timestamptz, p_bucket text,
    p_zone text
) returns table (organization_id uuid, user_id uuid, start timestamptz, uses bigint, tokens bigint,
    waived bigint, refunded bigint)
language plpgsql stable rows 200 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_scopes uuid[];
    v_closed timestamptz;
    v_origin constant timestamptz := date_bin('1 hour', p_since, '2000-01-01 00:00Z');
begin
    perform now() at time zone p_zone; -- refuses a wrong name without rows
    select array_agg(k.scope), min(k.closed_to) into v_scopes, v_closed
    from unnest(p_organizations, p_users) as a (organization_id, user_id)
    join public.ai_token_usage_kept k
        on k.scope = md5(a.organization_id::text || a.user_id)::uuid and k.closed_to > p_since;
    if v_scopes is not null then
        return query
        select k.organization_id, k.user_id, p.start, p.uses, p.tokens, p.waived, p.refunded
        from tokenlib.usage_parts('user', v_scopes, v_closed, p_since, p_until, p_bucket, p_zone) as p
        join public.ai_token_usage_kept k on k.scope = p.scope;
    end if;
    return query
    select a.organization_id, a.user_id, case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', e.created_at, v_origin)
                else date_trunc(p_bucket, e.created_at, p_zone) end,
        sum(e.uses)::bigint, sum(e.tokens)::bigint, sum(e.waived)::bigint, sum(e.refunded)::bigint
    from unnest(p_organizations, p_users) as a (organization_id, user_id)
    cross join lateral (
        select created_at, 1 as uses, tokens_deducted as tokens, tokens_waived as waived,
            0 as refunded
        from public.ai_token_usage_log
        where organization_id = a.organization_id and user_id = a.user_id
            and created_at >= p_since and created_at < p_until
        union all
        select created_at, 1, tokens_deducted, tokens_waived, 0
        from public.ai_token_usage_log
        where a.user_id is null and organization_id = a.organization_id and user_id is null
            and created_at >= p_since and created_at < p_until
        union all
        select created_at, 0, 0, 0, balance_change
        from public.ai_token_events
        where organization_id = a.organization_id and kind = 'refund'
            and data ->> 'user_id' is not distinct from a.user_id::text
            and created_at >= p_since and created_at < p_until
    ) as e
    where v_scopes is null or a.user_id is null
        or md5(a.organization_id::text || a.user_id)::uuid <> all (v_scopes)
    group by 1, 2, 3;
end
$$;

-- The charges of one wallet after its entry p_after, which was written at p_since, and up to p_until, itself
-- included: by feature, of many charges from the sums. Entries of a wallet are in the order of time.
create function tokenlib.usage_wallet(
    p_organization uuid, p_type text, p_after bigint, p_since timestamptz, p_until timestamptz
) returns table (feature text, uses bigint, tokens bigint, waived bigint)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_lo timestamptz := date_bin('15 minutes', p_since, '2000-01-01 00:00Z') + interval '15 minutes';
    v_closed timestamptz := (select closed_to from public.ai_token_usage_kept
        where scope = p_organization);
begin
    if v_closed is null or v_lo >= least(v_closed, p_until) then
        return query
        select feature_used, count(*), sum(tokens_deducted)::bigint, sum(tokens_waived)::bigint
        from public.ai_token_usage_log
        where organization_id = p_organization and token_type = p_type and number > p_after
            and created_at <= p_until
        group by 1;
        return;
    end if;
    return query
    select feature, sum(uses)::bigint, sum(tokens)::bigint, sum(waived)::bigint
    from (
        select feature, token_type, uses, tokens, waived
        from tokenlib.usage_parts('organization', array[p_organization], v_closed, v_lo,
            p_until + interval '1 microsecond', null, 'UTC')
        union all
        select feature_used, token_type, 1, tokens_deducted, tokens_waived
        from public.ai_token_usage_log
        where created_at >= p_since and created_at < v_lo
            and organization_id = p_organization and number > p_after
    ) as each
    where token_type = p_type and uses > 0
    group by 1;
end
$$;

-- One person in one organization or in each where they were charged: those of the last 90 days are known;
-- for a longer time the log is read.
create function tokenlib.usage_person(
    p_since timestamptz, p_until timestamptz, p_bucket text, p_zone text, p_organization uuid,
    p_user uuid
) returns table (start timestamptz, uses bigint, tokens bigint, waived bigint, refunded bigint)
language plpgsql stable rows 200 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    v_to timestamptz := (select windows_to from public.ai_token_usage_closed);
    v_ids uuid[];
begin
    if p_organization is not null then
        v_ids := array[p_organization];
    elsif p_since >= v_to - interval '2160 hours' then
        v_ids := array(
            select organization_id from public.ai_token_usage_windows
            where user_id = p_user and days = 90
                and user_id <> '00000000-0000-0000-0000-000000000000'
            union
            select organization_id from public.ai_token_usage_log
            where created_at >= v_to and created_at < p_until and user_id = p_user
            union
            select organization_id from public.ai_token_events
            where kind = 'refund' and created_at >= p_since and created_at < p_until
                and data ->> 'user_id' = p_user::text);
    else
        v_ids := array(
            select organization_id from public.ai_token_usage_log
            where created_at >= p_since and created_at < p_until and user_id = p_user
            union
            select organization_id from public.ai_token_events
            where kind = 'refund' and created_at >= p_since and created_at < p_until
                and data ->> 'user_id' = p_user::text);
    end if;
    return query
    select p.start, p.uses, p.tokens, p.waived, p.refunded
    from tokenlib.usage_persons(v_ids, array_fill(p_user, array[cardinality(v_ids)]), p_since,
        p_until, p_bucket, p_zone) as p;
end
$$;

-- By the plan that each organization has now: the sums by the plans that they count to, less and more
-- what was used by who changed since.
create function tokenlib.usage_plans(
    p_since timestamptz, p_until timestamptz, p_bucket text, p_zone text, p_plan text
) returns table (plan text, start timestamptz, feature text, token_type text, uses bigint,
    tokens bigint, waived bigint, refunded bigint)
language plpgsql stable rows 200 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_scopes uuid[];
    v_closed timestamptz;
    v_origin constant timestamptz := date_bin('1 hour', p_since, '2000-01-01 00:00Z');
begin
    perform now() at time zone p_zone; -- refuses a wrong name without rows
    select array_agg(scope) filter (where p_plan is null or plan = p_plan), min(closed_to)
    into v_scopes, v_closed
    from public.ai_token_usage_kept where plan is not null;
    if v_closed is null or v_closed <= p_since then
        return query
        select coalesce(o.plan, ''), case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', l.created_at, v_origin)
                else date_trunc(p_bucket, l.created_at, p_zone) end, l.feature_used, l.token_type,
            count(*), sum(l.tokens_deducted)::bigint, sum(l.tokens_waived)::bigint, 0::bigint
        from public.ai_token_usage_log l
        left join public.organizations o on o.id = l.organization_id
        where l.created_at >= p_since and l.created_at < p_until
            and (p_plan is null or coalesce(o.plan, '') = p_plan)
        group by 1, 2, 3, 4
        union all
        select coalesce(o.plan, ''), case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', e.created_at, v_origin)
                else date_trunc(p_bucket, e.created_at, p_zone) end, coalesce(e.data ->> 'feature', ''),
            e.token_type, 0::bigint, 0::bigint, 0::bigint, sum(e.balance_change)::bigint
        from public.ai_token_events e
        left join public.organizations o on o.id = e.organization_id
        where e.kind = 'refund' and e.created_at >= p_since and e.created_at < p_until
            and (p_plan is null or coalesce(o.plan, '') = p_plan)
        group by 1, 2, 3, 4;
        return;
    end if;
    return query
    with moved as materialized (
        select * from tokenlib.plans_changed(true) as m
        where p_plan is null or p_plan in (m.counted, m.plan)
    ), figures as (
        select scope, start, feature, token_type, uses, tokens, waived, refunded
        from tokenlib.usage_parts('plan', v_scopes, v_closed, p_since, p_until, p_bucket, p_zone)
        union all
        select md5(s.plan)::uuid, e.start, e.feature, e.token_type, s.sign * e.uses,
            s.sign * e.tokens, s.sign * e.waived, s.sign * e.refunded
        from moved m
        cross join lateral (
            select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', created_at, v_origin)
                else date_trunc(p_bucket, created_at, p_zone) end as start,
                feature_used as feature, token_type, count(*) as uses,
                sum(tokens_deducted) as tokens, sum(tokens_waived) as waived, 0 as refunded
            from public.ai_token_usage_log
            where organization_id = m.organization_id
                and created_at >= p_since and created_at < least(p_until, v_closed)
            group by 1, 2, 3
            union all
            select case when p_bucket is null then p_since
                when p_bucket = '24 hours' then date_bin('24 hours', created_at, v_origin)
                else date_trunc(p_bucket, created_at, p_zone) end,
                coalesce(data ->> 'feature', ''), token_type, 0, 0, 0, sum(balance_change)
            from public.ai_token_events
            where organization_id = m.organization_id and kind = 'refund'
                and created_at >= p_since and created_at < least(p_until, v_closed)
            group by 1, 2, 3
        ) as e
        cross join lateral (values (m.counted, -1), (m.plan, 1)) as s (plan, sign)
    ), named as (
        select plan from public.ai_token_usage_kept where plan is not null
        union select plan from public.ai_token_plans
        union select ''
        union select plan from moved
        union select coalesce(o.plan, '') from public.organizations o
        where o.id in (
            select organization_id from public.ai_token_usage_log
            where created_at >= v_closed and created_at < p_until
            union
            select organization_id from public.ai_token_events
            where kind = 'refund' and created_at >= v_closed and created_at < p_until)
    )
    select n.plan, f.start, f.feature, f.token_type, sum(f.uses)::bigint, sum(f.tokens)::bigint,
        sum(f.waived)::bigint, sum(f.refunded)::bigint
    from figures f
    join named n on md5(n.plan)::uuid = f.scope
    where p_plan is null or n.plan = p_plan
    group by 1, 2, 3, 4
    having sum(f.uses) <> 0 or sum(f.refunded) <> 0;
end
$$;
-- Who used most in a window, whose use differs most between two, and how many used anything.

-- How many organizations were charged: from the counts that are kept for 1, 7, 30 and 90 days and
-- corrected for who lies at the edges, or from when each was last seen. Of the last 16 days it is known
-- when each began and ended a day: as a window of whole days ends in another day than it begins, that
-- tells who was charged in it. Else the log is asked.
create function tokenlib.active_between(p_since timestamptz, p_until timestamptz) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
    v_days integer := case when p_until - p_since in (interval '24 hours', interval '168 hours',
        interval '720 hours', interval '2160 hours', interval '1 day', interval '7 days',
        interval '30 days', interval '90 days')
        then round(extract(epoch from p_until - p_since) / 86400) end;
    v_closed timestamptz;
    v_to timestamptz;
    v_lo timestamptz;
    v_hi timestamptz;
    v_day timestamptz;
    v_count bigint;
begin
    select closed_to, windows_to into v_closed, v_to from public.ai_token_usage_closed;
    v_hi := case when v_closed is not null
        then least(v_closed, date_bin('5 minutes', p_until, '2000-01-01 00:00Z')) end;
    v_lo := v_hi - v_days * interval '24 hours';
    v_day := date_bin('24 hours', v_lo, '2000-01-01 00:00Z');
    if p_until >= v_closed and p_since < v_closed and coalesce(v_days, 1) = 1 then
        return (select count(*) from public.ai_token_usage_seen where last_at >= p_since)
            + (select count(distinct l.organization_id) from public.ai_token_usage_log l
                where l.created_at >= v_closed and l.created_at < p_until
                    and not exists (select from public.ai_token_usage_seen n
                        where n.organization_id = l.organization_id and n.last_at >= p_since));
    -- Far from the closed end the edges are long.
    elsif v_lo >= p_since - interval '1 hour' and v_hi > p_since then
        select active into v_count from public.ai_token_usage_active
        where days = v_days and at <= v_hi order by at desc limit 1;
        v_count := coalesce(v_count, 0);
        if p_until = v_hi and p_since = v_lo then
            return v_count; -- nothing at the edges
        elsif v_to >= v_hi and v_day >= v_to - interval '384 hours' then
            return v_count
                + (select count(*) from (
                    select distinct organization_id from public.ai_token_usage_log
                    where created_at >= v_hi and created_at < p_until) as entered
                    where not exists (select from public.ai_token_usage_days d
                        where d.organization_id = entered.organization_id
                            and d.day >= v_day and d.day < v_hi
                            and d.last_at >= v_lo and d.first_at < v_hi))
                - (select count(*) from (
                    select organization_id from public.ai_token_usage_log
                    where created_at >= v_lo and created_at < p_since
                    except
                    select organization_id from public.ai_token_usage_log
                    where created_at >= v_hi and created_at < p_until) as gone
                    where not exists (select from public.ai_token_usage_days d
                        where d.organization_id = gone.organization_id
                            and d.day >= v_day and d.day < v_hi
                            and d.last_at >= p_since and d.first_at < v_hi));
        elsif v_days > 1 then
            -- Each looked up by itself: joined, the planner may read the whole window for them.
            return v_count
                + (select count(*) from (
                    select distinct organization_id from public.ai_token_usage_log
                    where created_at >= v_hi and created_at < p_until) as entered
                    where (select true from public.ai_token_usage_log l
                        where l.organization_id = entered.organization_id
                            and l.created_at >= v_lo and l.created_at < v_hi limit 1) is null)
                - (select count(*) from (
                    select distinct organization_id from public.ai_token_usage_log
                    where created_at >= v_lo and created_at < p_since) as gone
                    where (select true from public.ai_token_usage_log l
                        where l.organization_id = gone.organization_id
                            and l.created_at >= p_since and l.created_at < p_until limit 1) is null);
        end if;
    end if;
    return (select count(*) from (select from public.ai_token_usage_log
        where created_at >= p_since and created_at < p_until group by organization_id) as each);
end
$$;

-- What some organizations used in a window that begins at most 16 days before windows_to, from their
-- days and the raw rows at the edges: those to the nearest midnight, which are added or taken off.
create function tokenlib.organizations_between(
    p_since timestamptz, p_until timestamptz, p_organizations uuid[]
) returns table (organization_id uuid, tokens bigint)
language plpgsql stable rows 1000 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_to timestamptz := (select windows_to from public.ai_token_usage_closed);
    v_lo timestamptz;
    v_hi timestamptz;
begin
    -- The last day ends at v_to.
    v_lo := least(v_to, date_bin('24 hours', p_since + interval '12 hours', '2000-01-01 00:00Z'));
    v_hi := case when p_until >= v_to then v_to else least(v_to,
        date_bin('24 hours', p_until + interval '12 hours', '2000-01-01 00:00Z')) end;
    return query
    select o.id, coalesce(d.tokens, 0)::bigint + coalesce(e.tokens, 0)::bigint
    from unnest(p_organizations) as o (id)
    left join lateral (
        select sum(tokens) as tokens from public.ai_token_usage_days
        where organization_id = o.id and day >= v_lo and day < v_hi) as d on true
    left join (
        select organization_id, sum(tokens) as tokens
        from (
            select organization_id, case when p_since < v_lo then tokens_deducted
                else -tokens_deducted end as tokens
            from public.ai_token_usage_log
            where created_at >= least(p_since, v_lo) and created_at < greatest(p_since, v_lo)
            union all
            select organization_id, case when v_hi < p_until then tokens_deducted
                else -tokens_deducted end
            from public.ai_token_usage_log
            where created_at >= least(p_until, v_hi) and created_at < greatest(p_until, v_hi)
        ) as edges
        group by 1
    ) as e on e.organization_id = o.id;
end
$$;

-- The organizations whose use differs most between two windows of the last 30 days. Nobody's differs by
-- more than all it used in these: so who used less than the last of the first ones needs no look.
create function tokenlib.movers(
    p_since timestamptz, p_until timestamptz, p_before timestamptz, p_before_until timestamptz,
    p_limit bigint
) returns table (organization_id uuid, tokens bigint, before bigint)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_to timestamptz := (select windows_to from public.ai_token_usage_closed);
    v_ids uuid[];
    v_least bigint;
begin
    if v_to is null or least(p_since, p_before) < v_to - interval '384 hours' then
        return query
        select u.organization_id, u.tokens, u.before
        from (
            select organization_id,
                coalesce(sum(tokens_deducted) filter (where created_at >= p_since
                    and created_at < p_until), 0)::bigint as tokens,
                coalesce(sum(tokens_deducted) filter (where created_at >= p_before
                    and created_at < p_before_until), 0)::bigint as before
            from public.ai_token_usage_log
            where created_at >= least(p_since, p_before)
                and created_at < greatest(p_until, p_before_until)
            group by organization_id) as u
        where u.tokens <> u.before
        order by abs(u.tokens - u.before) desc, u.organization_id
        limit p_limit;
        return;
    end if;
    v_ids := array(
        select organization_id from public.ai_token_usage_windows
        where user_id = '00000000-0000-0000-0000-000000000000' and days = 30
        order by tokens desc limit p_limit + 50);
    select min(change) into v_least from (
        select abs(n.tokens - b.tokens) as change
        from tokenlib.organizations_between(p_since, p_until, v_ids) as n
        join tokenlib.organizations_between(p_before, p_before_until, v_ids) as b
            on b.organization_id = n.organization_id
        order by 1 desc limit p_limit) as first;
    v_ids := array(
        select organization_id from public.ai_token_usage_windows
        where user_id = '00000000-0000-0000-0000-000000000000' and days = 30
            and tokens >= coalesce(v_least, 0)
        union
        select organization_id from public.ai_token_usage_log
        where created_at >= v_to and created_at < greatest(p_until, p_before_until));
    return query
    select n.organization_id, n.tokens, b.tokens
    from tokenlib.organizations_between(p_since, p_until, v_ids) as n
    join tokenlib.organizations_between(p_before, p_before_until, v_ids) as b
        on b.organization_id = n.organization_id
    where n.tokens <> b.tokens
    order by abs(n.tokens - b.tokens) desc, n.organization_id
    limit p_limit;
end
$$;

-- The organizations or users with the most tokens, in the order of tokens, uses and ids; `whole` is
-- the tokens of everybody in the window. The first as they stood at the last closing are looked at, a
-- hundred more than are asked for, and of those who entered or left the window since who may come before them.
create function tokenlib.top_usage(
    p_since timestamptz, p_until timestamptz, p_by_user boolean, p_limit bigint,
    p_organization uuid
) returns table (organization_id uuid, user_id uuid, uses bigint, tokens bigint, whole numeric)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    c_all constant uuid := '00000000-0000-0000-0000-000000000000';
    c_nobody constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    v_days integer := round(extract(epoch from p_until - p_since) / 86400);
    v_from timestamptz;
    v_to timestamptz;
    v_whole numeric;
    v_first bigint := p_limit + 100;
    v_organizations uuid[];
    v_users uuid[];
    v_uses bigint[];
    v_tokens bigint[];
    v_all boolean;
begin
    select windows_to into v_to from public.ai_token_usage_closed;
    v_from := v_to - v_days * interval '24 hours';
    -- A window of another length, or one that is not about now, is read from the log.
    if v_to is null or v_days not in (1, 7, 30, 90)
        or p_until - p_since <> v_days * interval '24 hours'
        or p_until < v_to or p_since > v_to or p_since < v_from then
        return query
        select organization_id, case when p_by_user then user_id end, count(*),
            sum(tokens_deducted)::bigint, sum(sum(tokens_deducted)) over ()
        from public.ai_token_usage_log
        where created_at >= p_since and created_at < p_until
            and (p_organization is null or organization_id = p_organization)
        group by 1, 2
        order by 4 desc, 3 desc, 1, 2
        limit p_limit;
        return;
    end if;
    select sum(u.tokens) into v_whole
    from tokenlib.usage_between(p_since, p_until, p_organization) as u;
    loop
        with moved as materialized (
            select m.organization_id, m.user_id, sum(m.sign) as uses, sum(m.sign * m.tokens) as tokens
            from (
                select organization_id, case when p_by_user then coalesce(user_id, c_nobody)
                    else c_all end as user_id, tokens_deducted as tokens, 1 as sign
                from public.ai_token_usage_log
                where created_at >= v_to and created_at < p_until
                    and (p_organization is null or organization_id = p_organization)
                union all
                select organization_id, case when p_by_user then coalesce(user_id, c_nobody)
                    else c_all end, tokens_deducted, -1
                from public.ai_token_usage_log
                where created_at >= v_from and created_at < p_since
                    and (p_organization is null or organization_id = p_organization)
            ) as m
            group by 1, 2
        ), first as materialized (
            (select w.organization_id, w.user_id, w.tokens, w.uses
            from public.ai_token_usage_windows w
            where not p_by_user and w.user_id = '00000000-0000-0000-0000-000000000000'
                and w.days = v_days
                and (p_organization is null or w.organization_id = p_organization)
            order by w.tokens desc, w.uses desc, w.organization_id
            limit v_first)
            union all
            (select w.organization_id, w.user_id, w.tokens, w.uses
            from public.ai_token_usage_windows w
            where p_by_user and w.user_id <> '00000000-0000-0000-0000-000000000000'
                and w.days = v_days
                and (p_organization is null or w.organization_id = p_organization)
            order by w.tokens desc, w.uses desc, w.organization_id, w.user_id
            limit v_first)
        ), known as materialized (
            select f.organization_id, f.user_id, f.uses + coalesce(m.uses, 0) as uses,
                f.tokens + coalesce(m.tokens, 0) as tokens
            from first f
            left join moved m on m.organization_id = f.organization_id and m.user_id = f.user_id
        ), of_first as (
            -- Nobody else had more than the last of them.
            select * from first order by tokens, uses, organization_id desc, user_id desc limit 1
        ), of_known as (
            -- Nobody with less is asked for.
            select * from known where uses > 0
            order by tokens desc, uses desc, organization_id, user_id offset p_limit - 1 limit 1
        ), figures as (
            select organization_id, user_id, uses, tokens from known
            union all
            select m.organization_id, m.user_id, m.uses + coalesce(w.uses, 0),
                m.tokens + coalesce(w.tokens, 0)
            from moved m
            left join lateral (
                select k.uses, k.tokens from public.ai_token_usage_windows k
                where k.organization_id = m.organization_id and k.user_id = m.user_id
                    and k.days = v_days offset 0) as w on true
            where (m.organization_id, m.user_id) not in (
                    select organization_id, user_id from first)
                and coalesce(m.tokens + (select tokens from of_first)
                    >= (select tokens from of_known), true)
        ), ranked as (
            select * from figures where uses > 0
            order by tokens desc, uses desc, organization_id, user_id limit p_limit
        )
        select array_agg(r.organization_id order by tokens desc, uses desc, organization_id, user_id),
            array_agg(r.user_id order by tokens desc, uses desc, organization_id, user_id),
            array_agg(r.uses order by tokens desc, uses desc, organization_id, user_id),
            array_agg(r.tokens order by tokens desc, uses desc, organization_id, user_id),
            (select count(*) from first) < v_first or exists (
                select from of_first l, of_known k
                where (k.tokens, k.uses) > (l.tokens, l.uses)
                    or ((k.tokens, k.uses) = (l.tokens, l.uses)
                        and (k.organization_id, k.user_id) <= (l.organization_id, l.user_id)))
        into v_organizations, v_users, v_uses, v_tokens, v_all
        from ranked r;
        exit when v_all;
        v_first := 4 * v_first;
    end loop;
    return query
    select f.organization_id, case when f.user_id not in (c_all, c_nobody) then f.user_id end,
        f.uses, f.tokens, v_whole
    from unnest(v_organizations, v_users, v_uses, v_tokens)
        as f (organization_id, user_id, uses, tokens);
end
$$;
-- What another cost of a feature would have done since a midnight (UTC) 30 days ago. What a wallet was
-- charged more is carried along its entries within a period: after `units` for `tokens` a cost passes
-- what is left, a balance, if cost * units - tokens > balance. So the lowest whole cost at which each
-- wallet would have run out is kept, and answers for every cost.

-- Of each wallet with an entry from p_from to p_to and each feature of it, or one: as it stands at p_to.
-- It goes on from what is kept at p_from; where that is the beginning, from nothing. Rows as in
-- ai_token_usage_costs.
create function tokenlib.cost_states(p_from timestamptz, p_to timestamptz, p_feature text)
returns table (organization_id uuid, token_type text, feature text, uses bigint, units bigint,
    tokens bigint, period_units bigint, period_tokens bigint, lowest bigint, runs_out_from bigint)
language plpgsql stable rows 1000 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_kept boolean := coalesce((select windows_to = p_from from public.ai_token_usage_closed), false);
begin
    return query
    with entries as (
        select organization_id, token_type, coalesce(number, 0) as position, 0 as event,
            created_at, id, 0 as turn, feature_used as feature,
            -- What cost nothing stays free.
            greatest(tokens_deducted, 0) as tokens,
            case when tokens_deducted > 0 then units else 0 end as units,
            greatest(remaining_balance, 0) as balance
        from public.ai_token_usage_log
        where created_at >= p_from and created_at < p_to
            and (v_kept or p_feature is null or (organization_id, token_type) in (
                select organization_id, token_type from public.ai_token_usage_log
                where created_at >= p_from and created_at < p_to and feature_used = p_feature))
        union all
        -- A refresh begins a period; with any event a wallet may be without a limit from now on.
        select organization_id, token_type, after_log, 1, created_at, id,
            case when kind = 'refresh' then 1 else 0 end, null, null, null, null
        from public.ai_token_events
        where v_kept and created_at >= p_from and created_at < p_to
        union all
        select organization_id, token_type, after_log, 1, created_at, id, 1, null, null, null, null
        from public.ai_token_events
        where not v_kept and kind = 'refresh' and created_at >= p_from and created_at < p_to
            and (organization_id, token_type) in (
                select organization_id, token_type from public.ai_token_usage_log
                where created_at >= p_from and created_at < p_to
                    and (p_feature is null or feature_used = p_feature))
    ), ordered as materialized (
        -- From one entry to the next a wallet is nearer to its end, if its balance fell by what was
        -- charged: so only the entries before it did not are looked at.
        select organization_id, token_type, feature, units, tokens, balance,
            row_number() over of_wallet as place, sum(turn) over of_wallet as period,
            sum(turn) over (partition by organization_id, token_type) as last_period,
            event = 0 and coalesce(lead(balance + tokens) over of_wallet > balance, true)
                as last_of_fall
        from entries
        window of_wallet as (partition by organization_id, token_type
            order by position, event, created_at, id)
    ), kept as materialized (
        select c.*, w.last_period
        from (select distinct organization_id, token_type, last_period from ordered where v_kept) as w
        join public.ai_token_usage_costs c
            on c.organization_id = w.organization_id and c.token_type = w.token_type
        where v_kept and (p_feature is null or c.feature = p_feature)
    ), pairs as (
        select organization_id, token_type, feature, last_period
        from ordered
        where feature is not null and (p_feature is null or feature = p_feature)
        group by 1, 2, 3, 4
        union
        select organization_id, token_type, feature, last_period from kept
    ), marks as (
        select organization_id, token_type, feature, place, period, last_period, 1 as uses, units,
            tokens, units as carried_units, tokens as carried_tokens, null::bigint as balance,
            null::bigint as lowest
        from ordered
        where feature is not null and (p_feature is null or feature = p_feature)
        union all
        select o.organization_id, o.token_type, p.feature, o.place, o.period, o.last_period, 0, 0,
            0, 0, 0, o.balance, null
        from ordered o
        join pairs p on p.organization_id = o.organization_id and p.token_type = o.token_type
        where o.last_of_fall
        union all
        select organization_id, token_type, feature, 0, 0, last_period, uses, units, tokens,
            period_units, period_tokens, null, lowest
        from kept
    ), summed as (
        select *, sum(carried_units) over of_period as so_many, sum(carried_tokens) over of_period as so_much
        from marks
        window of_period as (partition by organization_id, token_type, feature, period
            order by place) -- with its peers: a charge and the look at it
    ), figures as (
        select organization_id, token_type, feature, sum(uses)::bigint as uses,
            sum(units)::bigint as units, sum(tokens)::bigint as tokens,
            coalesce(sum(carried_units) filter (where period = last_period), 0)::bigint
                as period_units,
            coalesce(sum(carried_tokens) filter (where period = last_period), 0)::bigint
                as period_tokens,
            least(min(lowest), min(div(balance + so_much, nullif(so_many, 0)) + 1)::bigint) as lowest
        from summed
        group by 1, 2, 3
    )
    select f.*, case when a.allowance is not null or a.plan is null then f.lowest end
    from figures f
    left join public.ai_tokens a
        on a.organization_id = f.organization_id and a.token_type = f.token_type;
end
$$;

-- Keeps it as it is at p_to; p_from null, and once a day: anew, since another day is the first.
create function tokenlib.fold_costs(p_from timestamptz, p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
begin
    if date_bin('24 hours', p_from, '2000-01-01 00:00Z')
        = date_bin('24 hours', p_to, '2000-01-01 00:00Z') then
        with states as materialized (
            select * from tokenlib.cost_states(p_from, p_to, null)
        ), kept as (
            insert into public.ai_token_usage_costs as c
            select * from states
            on conflict (organization_id, token_type, feature) do update set uses = excluded.uses,
                units = excluded.units, tokens = excluded.tokens,
                period_units = excluded.period_units, period_tokens = excluded.period_tokens,
                lowest = excluded.lowest, runs_out_from = excluded.runs_out_from
            where c is distinct from excluded
        ), moved as materialized (
            -- In each organization: what was kept of it, and what stands instead.
            select c.organization_id, c.feature, c.units, c.tokens, c.runs_out_from, true as before,
                (c.organization_id, c.token_type, c.feature) not in (
                    select organization_id, token_type, feature from states) as after
            from (select distinct organization_id, feature from states) as o
            cross join lateral (
                select * from public.ai_token_usage_costs
                where organization_id = o.organization_id and feature = o.feature offset 0) as c
            union all
            select organization_id, feature, units, tokens, runs_out_from, false, true from states
        ), changes as (
            select -1 as sign, feature, coalesce(min(runs_out_from), 0) as runs_out_from,
                sum(units) as units, sum(tokens) as tokens
            from moved where before group by organization_id, feature
            union all
            select 1, feature, coalesce(min(runs_out_from), 0), sum(units), sum(tokens)
            from moved where after group by organization_id, feature
        )
        insert into public.ai_token_usage_cost_sums as s
            (feature, runs_out_from, organizations, units, tokens)
        select feature, runs_out_from, sum(sign), sum(sign * units), sum(sign * tokens)
        from changes
        group by 1, 2
        on conflict (feature, runs_out_from) do update
            set organizations = s.organizations + excluded.organizations,
                units = s.units + excluded.units, tokens = s.tokens + excluded.tokens;
        delete from public.ai_token_usage_cost_sums where organizations = 0;
    else
        delete from public.ai_token_usage_costs;
        delete from public.ai_token_usage_cost_sums;
        insert into public.ai_token_usage_costs
        select * from tokenlib.cost_states(
            date_bin('24 hours', p_to, '2000-01-01 00:00Z') - interval '720 hours', p_to, null);
        insert into public.ai_token_usage_cost_sums
        select feature, runs_out_from, count(*), sum(units), sum(tokens)
        from (
            select feature, coalesce(min(runs_out_from), 0) as runs_out_from, sum(units) as units,
                sum(tokens) as tokens
            from public.ai_token_usage_costs
            group by organization_id, feature) as each
        group by 1, 2;
    end if;
end
$$;

-- The first organizations of those who used a feature, in the order of the wallet that would run out
-- at the lowest cost; and all of them together. Who has an entry since the closing is computed anew.
create function tokenlib.cost_effects(p_feature text, p_cost bigint, p_limit bigint)
returns table (since timestamptz, place bigint, organization_id uuid, uses bigint, units bigint,
    tokens bigint, runs_out_from bigint, used_by bigint, run_outs bigint, all_units bigint,
    all_tokens bigint)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_now constant timestamptz := tokenlib.clock();
    v_to constant timestamptz := tokenlib.wallets_closed_to(v_now);
    v_since constant timestamptz := date_bin('24 hours', coalesce(v_to, v_now),
        '2000-01-01 00:00Z') - interval '720 hours';
begin
    return query
    with moved as materialized (
        select * from tokenlib.cost_states(coalesce(v_to, v_since), v_now, p_feature)
    ), first as (
        (select organization_id, token_type, units, runs_out_from
        from public.ai_token_usage_costs c
        where v_to is not null and feature = p_feature
            and (organization_id, token_type) not in (select organization_id, token_type from moved)
        order by runs_out_from, units desc, organization_id, token_type
        limit p_limit * (select count(*) from public.ai_token_types)) -- each of an organization
        union all
        select organization_id, token_type, units, runs_out_from from moved
    ), page as (
        select organization_id, min(rank) as place
        from (select organization_id, row_number() over (
            order by runs_out_from, units desc, organization_id, token_type) as rank from first) as r
        group by 1
        order by 2
        limit p_limit
    ), wallets as materialized (
        -- Of the page and of who moved: what was kept, and what stands instead.
        select c.organization_id, c.uses, c.units, c.tokens, c.runs_out_from, true as before,
            (c.organization_id, c.token_type) not in (
                select organization_id, token_type from moved) as after
        from (select organization_id from page union select organization_id from moved) as o
        cross join lateral (
            select * from public.ai_token_usage_costs
            where v_to is not null and organization_id = o.organization_id
                and feature = p_feature offset 0) as c
        union all
        select organization_id, uses, units, tokens, runs_out_from, false, true from moved
    ), effects as materialized (
        select organization_id, sum(uses)::bigint as uses, sum(units)::bigint as units,
            sum(tokens)::bigint as tokens, min(runs_out_from) as runs_out_from
        from wallets where after group by 1
    ), altogether as (
        select coalesce(sum(organizations), 0)::bigint as used_by,
            coalesce(sum(organizations) filter (where runs_out_from <= p_cost), 0)::bigint as run_outs,
            sum(units)::bigint as units, sum(tokens)::bigint as tokens
        from (
            select nullif(runs_out_from, 0) as runs_out_from, organizations, units, tokens
            from public.ai_token_usage_cost_sums where v_to is not null and feature = p_feature
            union all
            select min(runs_out_from), -1, -sum(units), -sum(tokens)
            from wallets where before group by organization_id
            union all
            select runs_out_from, 1, units, tokens from effects) as each
    )
    select c.since, p.place, p.organization_id, e.uses, e.units, e.tokens, e.runs_out_from,
        t.used_by, t.run_outs, t.units, t.tokens
    from (values (v_since)) as c (since)
    left join altogether t on t.used_by > 0
    left join page p on true
    left join effects e on e.organization_id = p.organization_id;
end
$$;
-- Who was refused most, and how often each rule refused: kept for the windows that end at the last
-- closing, with what lies between their ends and those of a question read from the refusals. A row counts
-- at its last_at; what the switch let through is no refusal.

-- What windows of so many days that ended at p_from have more (or fewer: below 0) if they go from p_since,
-- or as many days, to p_to: by person and (the highest UUID) by organization. p_from null: all they have.
create function tokenlib.refused_edges(
    p_days integer[], p_from timestamptz, p_since timestamptz, p_to timestamptz
) returns table (days integer, organization_id uuid, user_id uuid, insufficient_tokens bigint,
    feature_not_in_plan bigint, rate_limited bigint, last_at timestamptz, plan_last_at timestamptz)
language plpgsql stable rows 100 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
    return query
    select e.days, e.organization_id, coalesce(e.user_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'),
        coalesce(sum(e.count) filter (where e.rule = 'insufficient_tokens'), 0)::bigint,
        coalesce(sum(e.count) filter (where e.rule = 'feature_not_in_plan'), 0)::bigint,
        coalesce(sum(e.count) filter (where e.rule = 'rate_limited'), 0)::bigint,
        max(e.last_at), max(e.last_at) filter (where e.rule <> 'rate_limited')
    from (
        select s.days, r.organization_id, r.user_id, r.rule, s.sign * r.count as count, r.last_at
        from tokenlib.window_edges(p_days, p_from, p_since, p_to) as s
        cross join lateral (
            select * from public.ai_token_refusals
            where last_at >= s.since and last_at < s.until offset 0) as r
        where r.rule in ('insufficient_tokens', 'feature_not_in_plan', 'rate_limited')
            and r.data ->> 'mode' is null
    ) as e
    group by grouping sets ((e.days, e.organization_id, e.user_id), (e.days, e.organization_id));
end
$$;

-- What to read for that: what enters such a window counts once more, what leaves it once less.
create function tokenlib.window_edges(
    p_days integer[], p_from timestamptz, p_since timestamptz, p_to timestamptz
) returns table (days integer, sign integer, since timestamptz, until timestamptz)
language sql immutable rows 4 set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
    select w.days, s.sign, s.since, s.until
    from (
        select d as days, p_from - d * interval '24 hours' as began,
            coalesce(p_since, p_to - d * interval '24 hours') as since
        from unnest(p_days) as d) as w
    cross join lateral (values (1, greatest(p_from, w.since), p_to),
        (1, w.since, w.began), (-1, w.began, least(p_from, w.since))) as s (sign, since, until)
    where s.since < s.until
$$;

-- The same by rule. An organization or a person entered a window if it was not refused by that rule in the
-- window before, and left it if it was not since: when it was refused last tells both.
create function tokenlib.refused_moves(p_days integer[], p_from timestamptz, p_to timestamptz)
returns table (days integer, rule text, refusals bigint, let_through bigint, organizations bigint,
    users bigint)
language plpgsql stable rows 20 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
begin
    return query
    with edges as materialized (
        select s.days, s.sign, r.*
        from tokenlib.window_edges(p_days, p_from, null, p_to) as s
        cross join lateral (
            select f.rule, f.organization_id, f.user_id, f.count, f.data ->> 'mode' is null as refused
            from public.ai_token_refusals f
            where f.last_at >= s.since and f.last_at < s.until offset 0) as r
    ), sums as (
        select e.days, e.rule, sum(e.sign * e.count) filter (where e.refused) as refusals,
            sum(e.sign * e.count) filter (where not e.refused) as let_through
        from edges e
        group by 1, 2
    ), who as (
        select e.days, e.rule, i.person, i.id, max(e.sign) as sign
        from edges e
        cross join lateral (values (false, e.organization_id),
            (true, nullif(e.user_id, '00000000-0000-0000-0000-000000000000'))) as i (person, id)
        where i.id is not null
        group by 1, 2, 3, 4
    ), changed as (
        select w.days, w.rule, coalesce(sum(w.sign) filter (where not w.person), 0) as organizations,
            coalesce(sum(w.sign) filter (where w.person), 0) as users
        from who w
        where (
            -- Each looked up by itself: joined, the planner may read all that were ever seen.
            select n.last_at from public.ai_token_refusal_seen n
            where n.rule = w.rule and n.person = w.person and n.id = w.id)
            >= case w.sign when 1 then p_from else p_to end - w.days * interval '24 hours'
            is not true
        group by 1, 2
    )
    select s.days, s.rule, coalesce(s.refusals, 0)::bigint, coalesce(s.let_through, 0)::bigint,
        coalesce(c.organizations, 0)::bigint, coalesce(c.users, 0)::bigint
    from sums s
    left join changed c on c.days = s.days and c.rule = s.rule;
end
$$;

-- Moves the ends of the windows to p_to; p_from null: makes them anew.
create function tokenlib.fold_refused(p_from timestamptz, p_to timestamptz) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    delete from public.ai_token_refusal_windows where p_from is null;
    delete from public.ai_token_refusal_rules where p_from is null;
    delete from public.ai_token_refusal_seen where p_from is null;

    insert into public.ai_token_refusal_windows as w
        (days, organization_id, user_id, insufficient_tokens, feature_not_in_plan, rate_limited,
            last_at, plan_last_at)
    select * from tokenlib.refused_edges(array[1, 7, 30, 90], p_from, null, p_to)
    on conflict (days, organization_id, user_id) do update
        set insufficient_tokens = w.insufficient_tokens + excluded.insufficient_tokens,
            feature_not_in_plan = w.feature_not_in_plan + excluded.feature_not_in_plan,
            rate_limited = w.rate_limited + excluded.rate_limited,
            last_at = greatest(w.last_at, excluded.last_at),
            plan_last_at = greatest(w.plan_last_at, excluded.plan_last_at);
    -- By the two indexes.
    delete from public.ai_token_refusal_windows where days in (1, 7, 30, 90)
        and insufficient_tokens + feature_not_in_plan + rate_limited = 0
        and user_id = 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    delete from public.ai_token_refusal_windows where days in (1, 7, 30, 90)
        and insufficient_tokens + feature_not_in_plan + rate_limited = 0
        and user_id <> 'ffffffff-ffff-ffff-ffff-ffffffffffff';

    insert into public.ai_token_refusal_rules as t
        (days, rule, refusals, let_through, organizations, users)
    select * from tokenlib.refused_moves(array[1, 7, 30, 90], p_from, p_to)
    on conflict (days, rule) do update set refusals = t.refusals + excluded.refusals,
        let_through = t.let_through + excluded.let_through,
        organizations = t.organizations + excluded.organizations, users = t.users + excluded.users;
    delete from public.ai_token_refusal_rules where organizations = 0;
    -- Who was refused before the longest window began is as if never: it goes at a midnight.
    insert into public.ai_token_refusal_seen as n (rule, person, id, last_at)
    select r.rule, i.person, i.id, max(r.last_at)
    from public.ai_token_refusals r
    cross join lateral (values (false, r.organization_id),
        (true, nullif(r.user_id, '00000000-0000-0000-0000-000000000000'))) as i (person, id)
    where r.last_at >= coalesce(p_from, p_to - interval '2160 hours') and r.last_at < p_to
        and i.id is not null
    group by 1, 2, 3
    on conflict (rule, person, id) do update set last_at = excluded.last_at;
    delete from public.ai_token_refusal_seen
    where last_at < p_to - interval '2160 hours'
        and date_bin('24 hours', p_from, '2000-01-01 00:00Z')
            < date_bin('24 hours', p_to, '2000-01-01 00:00Z');
$$;

-- How often each rule refused everybody, and how many: from the windows, if it is one of them.
create function tokenlib.refused_by_rule(p_since timestamptz, p_until timestamptz)
returns table (rule text, refusals bigint, let_through bigint, organizations bigint, users bigint)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    v_to timestamptz := (select windows_to from public.ai_token_usage_closed);
    v_days integer := round(extract(epoch from p_until - p_since) / 86400);
begin
    if v_to <= p_until and v_to > p_since and v_days in (1, 7, 30, 90)
        and p_since = p_until - v_days * interval '24 hours' then
        return query
        select m.rule, sum(m.refusals)::bigint, sum(m.let_through)::bigint,
            sum(m.organizations)::bigint, sum(m.users)::bigint
        from (
            select k.rule, k.refusals, k.let_through, k.organizations, k.users
            from public.ai_token_refusal_rules k where k.days = v_days
            union all
            select e.rule, e.refusals, e.let_through, e.organizations, e.users
            from tokenlib.refused_moves(array[v_days], v_to, p_until) as e
        ) as m
        group by m.rule
        having sum(m.organizations) > 0;
    else
        return query
        select r.rule, coalesce(sum(r.count) filter (where r.data ->> 'mode' is null), 0)::bigint,
            coalesce(sum(r.count) filter (where r.data ->> 'mode' is not null), 0)::bigint,
            count(distinct r.organization_id),
            count(distinct nullif(r.user_id, '00000000-0000-0000-0000-000000000000'))
        from public.ai_token_refusals r
        where r.last_at >= p_since and r.last_at < p_until
        group by r.rule;
    end if;
end
$$;

-- Who hit a limit most often: organizations, or users; with p_by_plan only what another plan would have
-- helped. Of the windows that which begins next to p_since, corrected by what lies between; and the log
-- alone where that is as long.
create function tokenlib.refused_most(
    p_since timestamptz, p_until timestamptz, p_by_user boolean, p_by_plan boolean, p_limit bigint
) returns table (organization_id uuid, user_id uuid, insufficient_tokens bigint,
    feature_not_in_plan bigint, rate_limited bigint, last_at timestamptz)
language plpgsql stable rows 10 set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
    c_all constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    v_to timestamptz := (select windows_to from public.ai_token_usage_closed where windows_to <= p_until);
    v_days integer := (select d from unnest(array[1, 7, 30, 90]) as d
        order by abs(extract(epoch from v_to - d * interval '24 hours' - p_since)) limit 1);
begin
    if v_to is null or p_since > v_to or abs(extract(epoch from
            v_to - v_days * interval '24 hours' - p_since)) > extract(epoch from v_to - p_since) then
        v_to := null; -- all of the window is what lies at its edges
        v_days := 0;
    end if;
    return query
    with moved as materialized (
        select * from tokenlib.refused_edges(array[v_days], v_to, p_since, p_until)
        where (user_id = c_all) = (not p_by_user)
    ), kept as (
        select w.* from public.ai_token_refusal_windows w
        where w.days = v_days and (w.user_id = c_all) = (not p_by_user)
            and (w.organization_id, w.user_id) not in (select organization_id, user_id from moved)
            and (not p_by_plan or w.insufficient_tokens + w.feature_not_in_plan > 0)
        order by case when p_by_plan then w.insufficient_tokens + w.feature_not_in_plan
                else w.insufficient_tokens + w.feature_not_in_plan + w.rate_limited end desc,
            case when p_by_plan then w.plan_last_at else w.last_at end desc,
            w.organization_id, w.user_id
        limit p_limit
    ), figures as (
        select organization_id, user_id, insufficient_tokens, feature_not_in_plan, rate_limited,
            last_at, plan_last_at from kept
        union all
        select m.organization_id, m.user_id,
            m.insufficient_tokens + coalesce(w.insufficient_tokens, 0),
            m.feature_not_in_plan + coalesce(w.feature_not_in_plan, 0),
            m.rate_limited + coalesce(w.rate_limited, 0), greatest(m.last_at, w.last_at),
            greatest(m.plan_last_at, w.plan_last_at)
        from moved m
        left join public.ai_token_refusal_windows w on w.days = v_days
            and w.organization_id = m.organization_id and w.user_id = m.user_id
    ), hit as (
        select organization_id, nullif(user_id, c_all) as user_id, insufficient_tokens,
            feature_not_in_plan, case when p_by_plan then 0 else rate_limited end as rate_limited,
            case when p_by_plan then plan_last_at else last_at end as last_at
        from figures
    )
    select * from hit
    where insufficient_tokens + feature_not_in_plan + rate_limited > 0
    order by insufficient_tokens + feature_not_in_plan + rate_limited desc, last_at desc,
        organization_id, user_id
    limit p_limit;
end
$$;
