-- For products that have no tables of their own for these.

create function tokenlib.create_organization(p_name text, p_plan text) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_id uuid;
begin
    if coalesce(btrim(p_name), '') = '' or length(p_name) > 200 then
        raise exception 'must have 1 to 200 characters' using errcode = '22023', column = 'name';
    end if;
    if not exists (select from public.ai_token_plans where plan = p_plan) then
        return null;
    end if;
    insert into public.organizations (name, plan) values (btrim(p_name), p_plan)
    returning id into v_id;
    perform tokenlib.initialize(v_id, p_plan, false);
    return v_id;
end
$$;

-- An e-mail address stands once in an organization, in any case. The table may be the product's own,
-- which says nothing of that: so whoever adds an address takes turns.
create function tokenlib.add_member(
    p_organization uuid, p_name text, p_email text, out status text, out id uuid
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    if coalesce(btrim(p_name), '') = '' or length(p_name) > 200 then
        raise exception 'must have 1 to 200 characters' using errcode = '22023', column = 'name';
    end if;
    if p_email is null or p_email !~ '^[^@\s]+@[^@\s]+$' or length(p_email) > 320 then
        raise exception 'must be an e-mail address, not %', to_json(p_email)
            using errcode = '22023', column = 'email';
    end if;
    if not exists (select from public.organizations o where o.id = p_organization) then
        status := 'unknown_organization';
        return;
    end if;
    perform tokenlib.lock_key(p_organization, 'email ' || lower(p_email));
    select u.id into id from public.user_profiles u
    where u.organization_id = p_organization and lower(u.email) = lower(p_email)
    order by u.id limit 1;
    if found then
        status := 'already_a_member';
        return;
    end if;
    insert into public.user_profiles as u (organization_id, full_name, email)
    values (p_organization, btrim(p_name), p_email) returning u.id into id;
    status := 'ok';
end
$$;

-- Quests of the demo feature. Members write nothing directly; the acting user is checked here.
create function tokenlib.save_quest(
    p_organization uuid, p_user uuid, p_title text, p_description text, p_quarter text,
    p_target bigint, p_metadata jsonb
) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_id uuid;
begin
    if not exists (select from public.user_profiles
        where id = p_user and organization_id = p_organization) then
        return null;
    end if;
    insert into public.quests (organization_id, title, description, quarter, target_amount, metadata,
        created_by, created_at)
    values (p_organization, p_title, p_description, p_quarter, p_target, p_metadata, p_user,
        tokenlib.clock())
    returning id into v_id;
    return v_id;
end
$$;

create function tokenlib.advance_quest(
    p_organization uuid, p_user uuid, p_quest uuid, p_progress integer, p_metadata jsonb
) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from public.user_profiles
        where id = p_user and organization_id = p_organization) then
        return false;
    end if;
    update public.quests set progress = p_progress, metadata = p_metadata,
        status = case when p_progress = 100 then 'completed' else 'active' end
    where organization_id = p_organization and id = p_quest;
    return found;
end
$$;

-- Keeps the history of what the health view measured.
create function tokenlib.record_latency(p_operation text, p_milliseconds double precision)
returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into public.ai_token_latencies (measured_at, operation, milliseconds)
    values (clock_timestamp(), p_operation, p_milliseconds);
end
$$;
