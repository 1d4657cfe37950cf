-- Who may see and do what. Run as the owner, after the tables and functions.

-- Who is asking? Claims are set inside a transaction; outside they read as ''. Types by their full
-- names: a temporary type of the caller would come first, and its checks would run as the owner.
create function tokenlib.uid() returns uuid
language sql stable set search_path = pg_catalog, pg_temp as $$
    select (nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb
        ->> 'sub')::pg_catalog.uuid
$$;

-- A person's, or the one that an API key was made for, while the key is good. A key has a claim of its
-- own: no sub is taken for one, whatever the issuer puts there.
create function tokenlib.my_organizations() returns uuid[]
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select coalesce(array_agg(organization_id), '{}') from (
        select organization_id from public.user_profiles where id = tokenlib.uid()
        union all
        select organization_id from public.ai_token_api_keys
        where id = (nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb
                ->> 'tokenlib_api_key')::pg_catalog.uuid
            and organization_id is not null and revoked_at is null
            and coalesce(expires_at, 'infinity') > tokenlib.clock() and 'read' = any (scopes)
    ) as mine
$$;

create function tokenlib.is_staff() returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select exists (select from public.tokenlib_staff
        where user_id = tokenlib.uid() and coalesce(until, 'infinity') > tokenlib.clock())
$$;

-- The signed-in person: staff role, else the organization. Empty for strangers.
create function tokenlib.whoami()
returns table (user_id uuid, staff_role text, organization_id uuid, full_name text, email text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select tokenlib.uid(), s.role, p.organization_id, coalesce(s.full_name, p.full_name),
        coalesce(s.email, p.email)
    from (select tokenlib.uid() as id) as me
    left join public.tokenlib_staff s on s.user_id = me.id
        and coalesce(s.until, 'infinity') > tokenlib.clock()
    left join public.user_profiles p on p.id = me.id
    where s.user_id is not null or p.id is not null
$$;

do $$
declare
    v_table text;
    v_owner text := current_user;
    v_books text[] := array['ai_tokens', 'ai_token_usage_log', 'ai_token_events',
        'ai_token_grants', 'ai_token_reservations', 'ai_token_refusals', 'ai_token_findings',
        'ai_token_organization_settings', 'ai_token_organization_allowances',
        'ai_token_user_settings', 'quests'];
    v_catalog text[] := array['ai_token_types', 'ai_token_plans', 'ai_token_allowances',
        'ai_token_features', 'ai_token_packs'];
    v_internal text[] := array['ai_token_parameters', 'ai_token_limits', 'ai_token_changes',
        'ai_token_latencies', 'ai_token_verifications', 'tokenlib_staff', 'tokenlib_staff_claims',
        'tokenlib_signed_out',
        'ai_token_api_keys',
        'ai_token_api_requests', 'ai_token_usage_closed', 'ai_token_usage_sums', 'ai_token_usage_kept',
        'ai_token_usage_windows', 'ai_token_usage_active', 'ai_token_usage_seen',
        'ai_token_usage_pace', 'ai_token_usage_days', 'ai_token_usage_hasty', 'ai_token_usage_bursts', 'ai_token_usage_costs', 'ai_token_wallet_sums', 'ai_token_refusal_sums',
        'ai_token_usage_cost_sums', 'ai_token_refusal_windows', 'ai_token_refusal_rules', 'ai_token_refusal_seen',
        'ai_token_archived_keys'];
    v_host text[] := array['organizations', 'user_profiles'];
    -- Default privileges may have given everything to these; TRUNCATE would pass the policies by.
    v_others text := (select string_agg(quote_ident(rolname), ', ') from pg_catalog.pg_roles
        where rolname in ('anon', 'authenticated', 'service_role', 'tokenlib_reader',
            'tokenlib_service'));
begin
    execute 'revoke all on tokenlib.alembic_version from public, ' || v_others;
    foreach v_table in array v_books || v_catalog || v_internal loop
        execute format('revoke all on public.%I from public, %s', v_table, v_others);
        execute format('alter table public.%I enable row level security', v_table);
        execute format('alter table public.%I force row level security', v_table);
        -- Forced policies bind the owner too: without this its own functions find no rows.
        execute format('create policy owner_all on public.%I to %I using (true) with check (true)',
            v_table, v_owner);
    end loop;
    foreach v_table in array v_books || v_catalog || v_internal || v_host loop
        execute format('grant select on public.%I to tokenlib_service, tokenlib_reader', v_table);
        execute format('create policy service_reads on public.%I for select to tokenlib_service '
            'using (true)', v_table);
        execute format('create policy staff_reads on public.%I for select to tokenlib_reader '
            'using ((select tokenlib.is_staff()))', v_table);
    end loop;
    foreach v_table in array v_books loop
        execute format('grant select on public.%I to authenticated', v_table);
        -- The array form is evaluated once and uses the index on organization_id.
        execute format('create policy member_reads_own on public.%I for select to authenticated '
            'using (organization_id = any ((select tokenlib.my_organizations())::uuid[]))', v_table);
    end loop;
    foreach v_table in array v_catalog loop
        execute format('grant select on public.%I to authenticated', v_table);
        execute format('create policy member_reads on public.%I for select to authenticated '
            'using (true)', v_table);
    end loop;
    -- Host tables of another owner keep their own policies for members; one without row-level
    -- security would show every member everything, so it stays closed.
    foreach v_table in array v_host loop
        if (select relrowsecurity from pg_catalog.pg_class
            where oid = format('public.%I', v_table)::regclass) then
            execute format('grant select on public.%I to authenticated', v_table);
        end if;
    end loop;
    if not exists (select from pg_catalog.pg_policies
        where schemaname = 'public' and tablename = 'organizations' and roles @> '{authenticated}')
    then
        create policy member_reads_own on public.organizations for select to authenticated
            using (id = any ((select tokenlib.my_organizations())::uuid[]));
    end if;
    if not exists (select from pg_catalog.pg_policies
        where schemaname = 'public' and tablename = 'user_profiles' and roles @> '{authenticated}')
    then
        create policy member_reads_own on public.user_profiles for select to authenticated
            using (organization_id = any ((select tokenlib.my_organizations())::uuid[]));
    end if;
end
$$;

-- Execution: nobody by default, also where default privileges say otherwise.
do $$
declare
    v_function record;
    v_role text;
begin
    for v_function in
        select p.oid::regprocedure as signature, p.proname as name
        from pg_catalog.pg_proc p
        where p.pronamespace = 'tokenlib'::regnamespace
    loop
        execute format('revoke all on function %s from public', v_function.signature);
        for v_role in
            select rolname from pg_catalog.pg_roles
            where rolname in ('anon', 'authenticated', 'service_role', 'tokenlib_reader',
                'tokenlib_service')
        loop
            execute format('revoke all on function %s from %I', v_function.signature, v_role);
        end loop;
        if v_function.name in ('deduct', 'deduct_many', 'reserve', 'deduct_reservation', 'release', 'refund',
            'balances', 'has_enough', 'can_use', 'grant_tokens', 'initialize', 'change_plan',
            'record_failed_attempt', 'refresh', 'set_status', 'pause_user', 'set_mode', 'settle_finding',
            'create_organization', 'add_member', 'save_quest', 'advance_quest', 'record_latency',
            'record_verification', 'close_usage', 'forget_usage', 'staff_grant', 'staff_release', 'staff_refund',
            'staff_change_plan', 'staff_set_status', 'staff_pause_user', 'staff_settle_finding',
            'staff_set_mode', 'staff_set_cost', 'staff_set_unit_size', 'staff_set_allowance', 'staff_set_limits',
            'staff_set_parameters', 'staff_set_staff', 'staff_create_key', 'staff_rotate_key',
            'staff_revoke_key', 'staff_set_request_limit', 'erase_metadata', 'authenticate_key',
            'sign_out', 'staff_by_claim', 'api_write', 'api_charges', 'api_can_use', 'api_has_enough', 'api_balances', 'api_keys',
            'api_metrics',
            'clock', 'usage_hash', 'charge_hash', 'event_hash', 'legacy_hash', 'digest',
            'microseconds') then
            execute format('grant execute on function %s to tokenlib_service', v_function.signature);
        end if;
        if v_function.name in ('usage_between', 'usage_bars', 'active_between', 'top_usage', 'organizations_between', 'movers',
            'refused_between', 'wallets_closed_to', 'organizations_moved', 'wallets_moved', 'sum_wallets', 'run_outs',
            'organizations_by_wallets',
            'usage_closed', 'usage_archived_to', 'usage_edge', 'usage_raw', 'bars',
            'usage_parts', 'whole_scope', 'scoped_organizations', 'usage_organizations', 'usage_persons', 'usage_person', 'usage_plans',
            'usage_wallet', 'plans_changed', 'least_limits', 'stricter', 'hasty_hours',
            'hasty_people', 'hasty_figures', 'hasty_peaks', 'rolling_requests', 'cost_states', 'cost_effects',
            'window_edges', 'refused_edges', 'refused_moves', 'refused_by_rule', 'refused_most') then
            execute format('grant execute on function %s to tokenlib_service, tokenlib_reader',
                v_function.signature);
        end if;
        if v_function.name in ('clock', 'usage_hash', 'charge_hash', 'event_hash', 'legacy_hash',
            'digest', 'microseconds', 'is_staff') then
            execute format('grant execute on function %s to tokenlib_reader', v_function.signature);
        end if;
        if v_function.name in ('my_organizations', 'clock') then
            execute format('grant execute on function %s to authenticated', v_function.signature);
        end if;
        if v_function.name in ('uid', 'whoami', 'organization_rows') then
            execute format('grant execute on function %s to authenticated, tokenlib_reader, '
                'tokenlib_service', v_function.signature);
        end if;
    end loop;
end
$$;

grant usage on schema tokenlib to tokenlib_service, tokenlib_reader, authenticated;
grant usage on schema public to tokenlib_service, tokenlib_reader, authenticated;
revoke create on schema tokenlib from public;
grant select on tokenlib.alembic_version to tokenlib_service, tokenlib_reader;
