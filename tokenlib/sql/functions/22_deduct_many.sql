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
