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
