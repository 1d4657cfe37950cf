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
