-- Charges over HTTP in one commit, as tokenlib.deduct_many: each with the digest of an API key, or of a
-- person whom a JWT has shown. None is made unless the key may spend there and nothing is to be counted
-- for it or the organization: who gets no row asks alone.
create function tokenlib.api_charges(p_requests jsonb, p_wait boolean)
returns table (place bigint, locked boolean, caller_id uuid, id uuid, token_type text, tokens bigint,
    balance bigint, created_at timestamptz)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    v_places bigint[];
    v_callers uuid[];
    v_plain jsonb;
    v_now timestamptz := tokenlib.clock();
begin
    -- As there: on Citus everybody asks alone.
    if current_setting('citus.propagate_set_commands', true) = 'local' then
        return;
    end if;
    select array_agg(place order by place), array_agg(caller_id order by place),
        jsonb_agg(request order by place)
    into v_places, v_callers, v_plain
    from (
        select a.place, a.request,
            coalesce(k.id, (a.request ->> 'member')::uuid) as caller_id
        from jsonb_array_elements(p_requests) with ordinality as a (request, place)
        cross join public.ai_token_parameters p
        left join public.ai_token_api_keys k on k.digest = decode(a.request ->> 'digest', 'hex')
            or (k.old_digest = decode(a.request ->> 'digest', 'hex') and k.old_until > v_now)
        left join public.ai_token_organization_settings s
            on s.organization_id = (a.request ->> 'organization')::uuid
        left join public.ai_token_api_requests d
            on d.organization_id = (a.request ->> 'organization')::uuid and d.caller_id = k.id
            and d.idempotency_key = a.request ->> 'key'
        where (a.request ->> 'digest' is null
                or k.revoked_at is null and coalesce(k.expires_at, 'infinity') > v_now
                and 'spend' = any (k.scopes)
                and coalesce(k.organization_id = (a.request ->> 'organization')::uuid, true)
                and not k.limit_users and k.requests_per_minute is null
                and k.seconds_between_requests is null and k.tokens_per_request is null
                and k.output_units_per_request is null)
            and coalesce(s.requests_per_minute, p.organization_requests_per_minute) is null
            and d.caller_id is null
    ) as good;
    if v_plain is null then
        return;
    end if;
    perform tokenlib.use_key(caller, v_now) from (select distinct unnest(v_callers)) as k (caller);
    return query select v_places[c.place], c.locked, v_callers[c.place], c.id, c.token_type, c.tokens,
            c.balance, c.created_at
        from tokenlib.deduct_many(v_plain, p_wait) as c;
end
$$;
