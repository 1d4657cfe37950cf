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
