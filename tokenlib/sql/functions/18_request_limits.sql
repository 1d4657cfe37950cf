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
