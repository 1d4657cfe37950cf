-- The roles, idempotent. Printed by `tokenlib migrate --roles`; run by someone with CREATEROLE.
-- Logins and passwords of a managed server are the operator's: none is set here.
set client_min_messages = warning;
do $$
declare
    v_role record;
begin
    for v_role in
        select * from (values
            -- Owns every table and function; runs migrations. No superuser, no BYPASSRLS.
            ('tokenlib_owner', 'login'),
            -- The gate: executes the functions, reads for them. NOINHERIT: it reads as a member or
            -- as staff only after an explicit SET LOCAL ROLE.
            ('tokenlib_service', 'login noinherit'),
            -- What staff read through; its policies ask tokenlib_staff who is asking.
            ('tokenlib_reader', 'nologin'),
            -- The two names that a Supabase product already has.
            ('authenticated', 'nologin'),
            ('anon', 'nologin')
        ) as r (name, options)
    loop
        if not exists (select from pg_catalog.pg_roles where rolname = v_role.name) then
            execute format('create role %I %s', v_role.name, v_role.options);
        end if;
    end loop;
end
$$;

grant tokenlib_reader, authenticated to tokenlib_service;
-- Behind a pooler that takes no startup options these are what the driver needs.
alter role tokenlib_service set timezone = 'UTC';
alter role tokenlib_service set datestyle = 'ISO';
-- "Cannot tell" must mean no, and soon: no statement of the gate waits without a bound.
alter role tokenlib_service set lock_timeout = '5s';
alter role tokenlib_service set statement_timeout = '30s';
alter role tokenlib_service set idle_in_transaction_session_timeout = '10s';
