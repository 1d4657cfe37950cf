-- Spreads a migrated database over the nodes of Citus 13: what belongs to an organization by
-- organization_id, the rest to every node. Printed by `tokenlib migrate --citus`. Run it on the
-- coordinator, as a superuser, after `tokenlib migrate` and again after each later one: what is done
-- already is left alone.
set client_min_messages = warning;
begin;
do $$
begin
    -- Tables with keys to reference tables are spread one connection at a time.
    set local citus.multi_shard_modify_mode = 'sequential';
    -- Of functions and tables that name each other one has to come first, on every node.
    set local citus.propagate_set_commands = 'local';
    set local check_function_bodies = off;
end
$$;

-- Nodes ask each other as the role that asks them, so every role logs in. It has no password: let
-- pg_hba.conf take it from the other nodes alone.
alter role tokenlib_reader login;
alter role authenticated login;
-- The policies of a shard ask functions that read tables, of which every node has its own copy.
alter role tokenlib_reader set citus.allow_nested_distributed_execution = on;
alter role authenticated set citus.allow_nested_distributed_execution = on;
-- What a transaction says of who is asking reaches the shards.
alter role tokenlib_service set citus.propagate_set_commands = 'local';

-- From here on as the owner of the tables.
select set_config('role', tableowner, true) from pg_catalog.pg_tables
where schemaname = 'public' and tablename = 'ai_tokens';

-- Citus takes no triggers on what it spreads. The log and the events stay append-only by privileges,
-- of which the owner has none either: the log's metadata can be erased, and nothing else changed. The
-- sums close by their constraint, without the hint.
do $$
declare
    v_trigger record;
begin
    for v_trigger in
        select tgname, tgrelid::regclass as of_table from pg_catalog.pg_trigger
        where not tgisinternal and tgrelid in ('public.ai_tokens'::regclass,
            'public.ai_token_usage_log'::regclass, 'public.ai_token_events'::regclass,
            'public.ai_token_archived_keys'::regclass)
            and tgfoid in (select oid from pg_catalog.pg_proc
                where pronamespace = 'tokenlib'::regnamespace)
    loop
        execute format('drop trigger %I on %s', v_trigger.tgname, v_trigger.of_table);
    end loop;
end
$$;
revoke update, delete, truncate on public.ai_token_usage_log, public.ai_token_events,
    public.ai_token_archived_keys from current_user;
grant update (metadata, metadata_digest) on public.ai_token_usage_log to current_user;

-- Nor subqueries in policies. A stable function is asked once for a search by its result; each node
-- has to know it before it gets a table with the policy.
select pg_catalog.create_distributed_function(p.oid::regprocedure) from pg_catalog.pg_proc p
where p.pronamespace = 'tokenlib'::regnamespace
    and p.proname in ('clock', 'uid', 'is_staff', 'my_organizations');
do $$
declare
    v_policy record;
begin
    for v_policy in
        select polname, polrelid::regclass as of_table, polname = 'staff_reads' as of_staff,
            polrelid = 'public.organizations'::regclass as of_organizations
        from pg_catalog.pg_policy
        where polname in ('staff_reads', 'member_reads_own')
            and pg_get_expr(polqual, polrelid) ~ 'SELECT tokenlib\.'
    loop
        execute format('alter policy %I on %s using (%s)', v_policy.polname, v_policy.of_table,
            case when v_policy.of_staff then 'tokenlib.is_staff()'
                else case when v_policy.of_organizations then 'id' else 'organization_id' end
                    || ' = any (tokenlib.my_organizations())' end);
    end loop;
end
$$;

do $$
declare
    -- Small, and asked by every charge: a copy on every node.
    v_reference text[] := array['organizations', 'user_profiles', 'ai_token_types',
        'ai_token_plans', 'ai_token_allowances', 'ai_token_features', 'ai_token_packs',
        'ai_token_parameters', 'ai_token_limits', 'tokenlib_staff', 'tokenlib_staff_claims',
        'ai_token_api_keys'];
    -- Of one organization: with all of its rows on one node.
    v_distributed text[] := array['ai_tokens', 'ai_token_usage_log', 'ai_token_events',
        'ai_token_grants', 'ai_token_reservations', 'ai_token_refusals', 'ai_token_findings',
        'ai_token_organization_settings', 'ai_token_organization_allowances',
        'ai_token_user_settings', 'ai_token_api_requests', 'ai_token_archived_keys', 'quests'];
    -- Written by people and by the views of everybody: on the coordinator, with their triggers.
    v_local text[] := array['ai_token_changes', 'ai_token_latencies', 'ai_token_verifications',
        'ai_token_usage_closed', 'ai_token_usage_sums', 'ai_token_usage_kept',
        'ai_token_usage_windows', 'ai_token_usage_active', 'ai_token_usage_seen',
        'ai_token_usage_pace', 'ai_token_usage_days', 'ai_token_usage_hasty', 'ai_token_usage_bursts', 'ai_token_usage_costs', 'ai_token_wallet_sums', 'ai_token_refusal_sums',
        'ai_token_usage_cost_sums', 'ai_token_refusal_windows', 'ai_token_refusal_rules', 'ai_token_refusal_seen',
        'tokenlib_signed_out'];
    v_table text;
    v_forced boolean;
    v_keys text[];
    v_key record;
begin
    -- A table with a key to one that is spread would be spread with it, as another kind, and made anew
    -- when its turn comes: and whatever depends on it, such as a function that takes its row, is gone.
    for v_key in
        select conname, conrelid::regclass as of_table, pg_get_constraintdef(oid) as definition
        from pg_catalog.pg_constraint
        where contype = 'f' and conrelid in (
                select format('public.%I', name)::regclass
                from unnest(v_reference || v_distributed) as name
                except select logicalrelid from pg_catalog.pg_dist_partition)
    loop
        execute format('alter table %s drop constraint %I', v_key.of_table, v_key.conname);
        v_keys := v_keys || format('alter table %s add constraint %I %s', v_key.of_table,
            v_key.conname, v_key.definition);
    end loop;
    foreach v_table in array v_reference || v_distributed || v_local loop
        v_table := 'public.' || v_table;
        continue when exists (select from pg_catalog.pg_dist_partition
            where logicalrelid = v_table::regclass);
        -- COPY, by which the rows move, does not go into a table with forced policies.
        select relforcerowsecurity into v_forced from pg_catalog.pg_class
        where oid = v_table::regclass;
        if v_forced then
            execute 'alter table ' || v_table || ' no force row level security';
        end if;
        if substr(v_table, 8) = any (v_reference) then
            perform pg_catalog.create_reference_table(v_table::regclass);
        elsif substr(v_table, 8) = any (v_distributed) then
            perform pg_catalog.create_distributed_table(v_table::regclass, 'organization_id',
                colocate_with => case v_table when 'public.ai_tokens' then 'none'
                    else 'public.ai_tokens' end);
        else
            perform pg_catalog.citus_add_local_table_to_metadata(v_table::regclass);
        end if;
        if v_forced then
            execute 'alter table ' || v_table || ' force row level security';
        end if;
    end loop;
    foreach v_table in array coalesce(v_keys, '{}') loop
        execute v_table;
    end loop;
end
$$;

-- Functions: on every node. Those of one organization run on the node that has its rows, so that the
-- locks on keys, which a node has for itself, hold for all who charge it. Where the organization may be
-- null, for everyone, they run on the coordinator: Citus 13 crashes when it is asked where null lies.
do $$
declare
    v_everyone text[] := array['refresh', 'set_mode', 'staff_set_mode', 'staff_set_limits',
        'staff_set_request_limit', 'staff_create_key'];
    v_function record;
begin
    for v_function in
        select p.oid::regprocedure as signature, p.prosecdef and p.proname <> all (v_everyone)
            and 'p_organization' = any (p.proargnames) as of_organization
        from pg_catalog.pg_proc p
        where p.pronamespace = 'tokenlib'::regnamespace and p.prokind = 'f'
            and p.prorettype <> 'trigger'::regtype
        order by p.oid
    loop
        if v_function.of_organization then
            perform pg_catalog.create_distributed_function(v_function.signature, 'p_organization',
                colocate_with => 'public.ai_tokens');
        else
            perform pg_catalog.create_distributed_function(v_function.signature);
        end if;
    end loop;
end
$$;
commit;
