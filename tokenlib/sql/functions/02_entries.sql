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
