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
