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
