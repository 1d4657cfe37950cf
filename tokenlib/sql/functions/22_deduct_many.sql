-- Many charges in one commit, for callers of one process who ask at the same moment. Only plain ones
-- are charged here: those to which every rule says yes, by what is seen at a glance. Whatever is not
-- plain gets no row, and its caller asks tokenlib.deduct alone, which decides and puts on record.

-- p_requests: in the order of their arrival, which is `place`: 1, 2, 3 … The answer has a row per
-- charge that was made, and one that says `locked` where somebody else has the wallet or the person in
-- hand. p_wait: all are of one organization, and wait for it.
create function tokenlib.deduct_many(p_requests jsonb, p_wait boolean)
returns table (place bigint, locked boolean, id uuid, token_type text, tokens bigint,
    balance bigint, created_at timestamptz)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
-- Lists of any length have one plan, by the indexes, and none is worth compiling.
set enable_seqscan = off set plan_cache_mode = force_generic_plan set jit = off as $$
#variable_conflict use_column
declare
    -- What is asked, by wallet and place. Wallets and people have numbers.
    v_place bigint[];
    v_organization uuid[];
    v_type text[];
    v_wallet integer[];
    v_user uuid[];
    v_person integer[];
    v_limits boolean[];
    v_feature text[];
    v_units bigint[];
    v_cost bigint[];
    v_metadata jsonb[];
    v_key text[];
    v_id uuid[];
    v_free boolean[];                          -- whether nobody else has the person in hand
    v_mine boolean[];                          -- … nor the key
    v_plan text[];
    v_requests bigint[];
    v_tokens bigint[];
    v_output jsonb[];
    v_wallets public.ai_tokens[];
    v_charged public.ai_tokens[];
    v_rows public.ai_token_usage_log[];
    v_number integer := 0;                     -- of the wallet in hand
    v_changed boolean := false;
    v_now timestamptz;
    r record;
    w public.ai_tokens;
    l public.ai_token_usage_log;
begin
    -- On Citus a charge belongs on the node of its organization: everybody asks alone.
    if current_setting('citus.propagate_set_commands', true) = 'local' then
        return;
    end if;
    -- Locks in the gate's own order: people, keys, wallets.
    if p_wait then
        perform pg_advisory_xact_lock(person) from (
            select distinct hashtextextended('user ' || member::text,
                hashtextextended(organization::text, 0)) as person
            from jsonb_to_recordset(p_requests) as a (organization uuid, member uuid, limits boolean)
            where limits
            order by person offset 0) as people;
    end if;
    select array_agg(place), array_agg(organization), array_agg(token_type), array_agg(wallet),
        array_agg(member), array_agg(person), array_agg(limits), array_agg(feature), array_agg(units),
        array_agg(cost), array_agg(metadata), array_agg(key), array_agg(id),
        array_agg(not limits or pg_try_advisory_xact_lock(hashtextextended('user ' || member::text,
            hashtextextended(organization::text, 0)))),
        array_agg(key is null or pg_try_advisory_xact_lock(hashtextextended('key ' || key,
            hashtextextended(organization::text, 0))))
    into v_place, v_organization, v_type, v_wallet, v_user, v_person, v_limits, v_feature, v_units,
        v_cost, v_metadata, v_key, v_id, v_free, v_mine
    from (
        select a.*, f.token_type, f.cost * a.units as cost,
            dense_rank() over (order by a.organization, f.token_type) as wallet,
            dense_rank() over (order by a.organization, a.member) as person,
            row_number() over (partition by a.organization, a.key order by a.place) as uses
        from rows from (jsonb_to_recordset(p_requests) as (organization uuid, member uuid,
            feature text, units bigint, metadata jsonb, key text, limits boolean, id uuid))
            with ordinality as a (organization, member, feature, units, metadata, key, limits, id,
            place)
        join public.ai_token_features f on f.feature = a.feature
        where a.units between 1 and 1000000
            and (a.metadata is null or octet_length(a.metadata::text) <= 16384)
            and coalesce((a.metadata -> 'output_units')::text ~ '^[0-9]{1,10}$', true)
            and (a.key is null or length(a.key) between 1 and 255)
        order by wallet, place
    ) as asked
    where uses = 1 or key is null;
    if p_wait then
        for r in
            select t as wallet, number from (select distinct organization, token_type, number
                from unnest(v_organization, v_type, v_wallet)
                    as a (organization, token_type, number)) as a
            join public.ai_tokens t
                on t.organization_id = a.organization and t.token_type = a.token_type
            order by number for no key update of t
        loop
            v_wallets[r.number] := r.wallet;
        end loop;
    else
        for r in
            select t as wallet, number from (select distinct organization, token_type, number
                from unnest(v_organization, v_type, v_wallet)
                    as a (organization, token_type, number)) as a
            join public.ai_tokens t
                on t.organization_id = a.organization and t.token_type = a.token_type
            order by number for no key update of t skip locked
        loop
            v_wallets[r.number] := r.wallet;
        end loop;
    end if;

    -- What the gate reads after its locks, read after these. Of each person: the plan, null where they are
    -- none of the organization's or something is out of the ordinary; how many requests the limits
    -- leave them, null for all that are here; of how many tokens and output units each. Entries are numbered: who makes
    -- fewer than are allowed, whoever makes them, stays within it. Else no more than 500 are counted.
    v_now := tokenlib.clock();
    select array_agg(plan order by person), array_agg(requests order by person),
        array_agg(tokens order by person), array_agg(output order by person)
    into v_plan, v_requests, v_tokens, v_output
    from (
        select person, o.plan, l.tokens_per_request as tokens,
            to_jsonb(l.output_units_per_request) as output,
            case
                when l.scope is null then null
                when l.failed_attempts is not null and (
                    select count(*) from public.ai_token_refusals
                    where organization_id = organization and user_id = member
                        and rule = 'failed_attempt' and last_at > v_now - interval '10 minutes') > 0
                    then 0
                when l.seconds_between_requests > 0 then
                    case when (select count(*) from public.ai_token_usage_log
                            where organization_id = organization and user_id = member
                                and created_at > v_now - interval '1 minute') = 0
                        and (select count(*) from public.ai_token_reservations
                            where organization_id = organization and user_id = member
                                and created_at > v_now - interval '1 minute') = 0
                        and coalesce(l.requests_per_minute > 0, true) then 1 else 0 end
                when l.requests_per_minute is null or l.requests_per_minute - times >= (
                    select sum(log_number + event_number) from public.ai_tokens
                    where organization_id = organization) then null
                when (select count(*) from (select from public.ai_token_usage_log
                        where organization_id = organization and user_id = member
                            and created_at > v_now - interval '1 minute' limit 500) as charges)
                    + (select count(*) from (select from public.ai_token_reservations
                        where organization_id = organization and user_id = member
                            and created_at > v_now - interval '1 minute' limit 500) as holds)
                    > least(499, l.requests_per_minute - times) then 0
            end as requests
        from (
            select organization, member, person, bool_or(limits) as limits, count(*)::integer as times
            from unnest(v_organization, v_user, v_person, v_limits)
                as a (organization, member, person, limits)
            group by organization, member, person offset 0) as people
        left join lateral (select * from public.ai_token_limits
            where limits and scope in (organization, '00000000-0000-0000-0000-000000000000')
            order by scope desc limit 1) as l on true
        left join lateral (select o.plan from public.user_profiles m
            join public.organizations o on o.id = m.organization_id
            cross join public.ai_token_parameters p
            where m.id = member and m.organization_id = organization and p.mode = 'enforce'
                and (select count(*) from public.ai_token_organization_settings
                    where organization_id = organization
                        and (mode is not null or status <> 'active')) = 0
                and (select count(*) from public.ai_token_user_settings
                    where organization_id = organization and user_id = member
                        and paused_at is not null) = 0
            limit 1) as o on true) as people;
    for r in
        select a.*,
            key is null
                or (select count(*) from public.ai_token_reservations
                    where organization_id = a.organization and idempotency_key = key
                        and state = 'held') = 0
                and (select count(*) from public.ai_token_usage_log
                    where organization_id = a.organization and idempotency_key = key) = 0
                and (select count(*) from public.ai_token_events
                    where organization_id = a.organization and idempotency_key = key) = 0
                and (select count(*) from public.ai_token_archived_keys
                    where organization_id = a.organization and idempotency_key = key) = 0 as new
        from unnest(v_place, v_organization, v_wallet, v_user, v_person, v_limits, v_feature,
            v_units, v_cost, v_metadata, v_key, v_id, v_free, v_mine) as a (place, organization,
            wallet, member, person, limits, feature, units, cost, metadata, key, id, free, mine)
        order by wallet, place
    loop
        if v_number <> r.wallet then
            if v_changed then
                v_charged := v_charged || w;
            end if;
            v_number := r.wallet;
            v_changed := false;
            w := v_wallets[v_number];
        end if;
        if w.id is null or not r.free then
            place := r.place;
            locked := true;
            return next;
        -- The earlier ones of this commit count.
        elsif r.mine and r.new and w.plan = v_plan[r.person] and w.balance >= r.cost and w.allowance > 0
            and w.event_number > 0 and w.due_at > v_now and w.last_entry_at <= v_now
            and (not r.limits or coalesce(v_requests[r.person] > 0, true)
                and coalesce(v_tokens[r.person] >= r.cost, true)
                and coalesce(v_output[r.person] >= r.metadata -> 'output_units', true)) then
            v_requests[r.person] := v_requests[r.person] - 1;
            v_changed := true;
            w.balance := w.balance - r.cost;
            w.total_used := w.total_used + r.cost;
            w.pending := w.pending + r.cost;
            w.log_number := w.log_number + 1;
            w.last_entry_at := v_now;

            l.id := coalesce(r.id, gen_random_uuid());
            l.organization_id := r.organization;
            l.user_id := r.member;
            l.token_type := w.token_type;
            l.feature_used := r.feature;
            l.tokens_deducted := r.cost;
            l.remaining_balance := w.balance;
            l.metadata := r.metadata;
            l.created_at := v_now;
            l.number := w.log_number;
            l.units := r.units;
            l.tokens_waived := 0;
            l.held := 0;
            l.returned := 0;
            l.idempotency_key := r.key;
            l.request_hash := case when r.key is not null
                then tokenlib.request_hash(r.member, r.feature, r.units, r.metadata) end;
            l.metadata_digest := tokenlib.digest(r.metadata);
            l.hash_version := 1;
            l.hash := tokenlib.usage_hash(w.log_hash, l);
            w.log_hash := l.hash;
            v_rows := v_rows || l;
            place := r.place;
            locked := false;
            id := l.id;
            token_type := l.token_type;
            tokens := r.cost;
            balance := w.balance;
            created_at := v_now;
            return next;
        end if;
    end loop;
    if v_changed then
        v_charged := v_charged || w;
    end if;
    with wallets as (
        update public.ai_tokens t set balance = c.balance, total_used = c.total_used,
            total_allocated = c.balance + c.reserved + c.total_used, pending = c.pending,
            last_used_at = v_now, updated_at = v_now, last_entry_at = v_now,
            log_number = c.log_number, log_hash = c.log_hash
        from unnest(v_charged) as c
        where t.organization_id = c.organization_id and t.id = c.id
    )
    insert into public.ai_token_usage_log select * from unnest(v_rows);
end
$$;
