-- Is the database as tokenlib needs it?

-- name: there
-- By the catalog, since a stranger may not even name what is in our schema.
select count(*) = 2 as ours
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where (n.nspname, c.relname) in (('public', 'ai_tokens'), ('tokenlib', 'alembic_version'))

-- name: login
-- Who we are, and what we should not be allowed to.
select session_user as login, r.rolsuper as superuser, r.rolbypassrls as bypasses_policies,
    pg_has_role(session_user, c.relowner, 'member') as owner,
    coalesce(pg_has_role(session_user, s.oid, 'member'), false) as service_role,
    not pg_has_role(session_user, 'tokenlib_service', 'member') as stranger
from pg_catalog.pg_roles r
join pg_catalog.pg_class c on c.oid = 'public.ai_tokens'::regclass
left join pg_catalog.pg_roles s on s.rolname = 'service_role'
where r.rolname = session_user

-- name: modes
-- Everyone's mode as it is now, first, and each mode that is an organization's own, until when.
select null::uuid as organization_id,
    case when mode_until is null or mode_until > tokenlib.clock() then mode else 'enforce' end as mode,
    case when mode_until > tokenlib.clock() then mode_until end as until
from public.ai_token_parameters
union all
(select organization_id, mode, mode_until from public.ai_token_organization_settings
where mode is not null and (mode_until is null or mode_until > tokenlib.clock())
order by organization_id)

-- name: borrow
-- Somebody who may be charged for a try that is rolled back.
select o.id as organization_id, u.id as user_id
from public.organizations o
join public.ai_token_allowances a on a.plan = o.plan and a.token_type = %(token_type)s
join public.user_profiles u on u.organization_id = o.id
left join public.ai_token_organization_settings s on s.organization_id = o.id
left join public.ai_token_user_settings p on p.organization_id = o.id and p.user_id = u.id
where a.allowance is distinct from 0 and coalesce(s.status, 'active') = 'active'
    and p.paused_at is null
order by o.id, u.id
limit 1

-- name: clock
select clock_timestamp() as now

-- name: tables
-- The tables of a fresh database, for the snapshot.
select coalesce(array_agg(n.nspname || '.' || c.relname order by c.relname), '{}') as names
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and n.nspname in ('public', 'tokenlib')

-- name: no_path
-- So that every name below is written with its schema.
select set_config('search_path', '', true)

-- name: schema
-- The schema in the catalog's words: kind, name and definition of each thing. The owner is called
-- owner, whatever its name. Of the host's tables only what is ours there. Not in it: what a product
-- may have besides, the order of columns, defaults, which the server words by its settings, and that
-- the backup's login reads.
with tables as (
    select c.oid, n.nspname || '.' || c.relname as name, c.relowner, c.relacl, c.relrowsecurity,
        c.relforcerowsecurity,
        c.relname in ('organizations', 'user_profiles', 'quests') as host
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind = 'r' and n.nspname || '.' || c.relname = any(%(tables)s)
), functions as (
    select p.*, p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')' as name
    from pg_catalog.pg_proc p
    where p.pronamespace = 'tokenlib'::regnamespace
), grants as (
    select 'table ' || t.name as thing, t.relowner as owner, a.grantee, a.privilege_type
    from tables t, aclexplode(coalesce(t.relacl, acldefault('r', t.relowner))) as a
    union all
    select 'column ' || t.name || '.' || c.attname, t.relowner, a.grantee, a.privilege_type
    from tables t
    join pg_catalog.pg_attribute c on c.attrelid = t.oid, aclexplode(c.attacl) as a
    union all
    select 'function ' || f.name, f.proowner, a.grantee, a.privilege_type
    from functions f, aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) as a
    union all
    select 'schema tokenlib', n.nspowner, a.grantee, a.privilege_type
    from pg_catalog.pg_namespace n,
        aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) as a
    where n.nspname = 'tokenlib'
)
select 'table' as kind, name,
    case when host then 'of the host' else concat_ws(', ', case when relrowsecurity
        then 'row-level security' end, case when relforcerowsecurity then 'forced' end) end
        as definition
from tables
union all
select 'column', t.name || '.' || a.attname,
    format_type(a.atttypid, a.atttypmod) || case when a.attnotnull then ' not null' else '' end
from tables t
join pg_catalog.pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
where not t.host
union all
select 'constraint', t.name || '.' || k.conname, pg_get_constraintdef(k.oid)
from tables t
join pg_catalog.pg_constraint k on k.conrelid = t.oid and k.contype in ('p', 'u', 'c', 'f')
where not t.host
union all
select 'index', t.name || '.' || x.relname, pg_get_indexdef(i.indexrelid)
    || case when i.indisvalid and i.indisready then '' else ' (invalid)' end
from tables t
join pg_catalog.pg_index i on i.indrelid = t.oid
join pg_catalog.pg_class x on x.oid = i.indexrelid
where not t.host
union all
select 'trigger', t.name || '.' || g.tgname,
    case g.tgenabled when 'A' then 'always' when 'O' then 'origin' when 'R' then 'replica'
        else 'disabled' end || ': ' || pg_get_triggerdef(g.oid)
from tables t
join pg_catalog.pg_trigger g on g.tgrelid = t.oid and not g.tgisinternal
where not t.host
union all
select 'policy', t.name || '.' || p.polname, concat_ws(' ',
    case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update'
        when 'd' then 'delete' else 'all' end,
    case when p.polpermissive then '' else 'restrictive' end,
    'to ' || (select string_agg(case role when 0 then 'public' when t.relowner then 'owner'
        else role::regrole::text end, ', ' order by role::regrole::text)
        from unnest(p.polroles) as role),
    'using ' || pg_get_expr(p.polqual, p.polrelid),
    'check ' || pg_get_expr(p.polwithcheck, p.polrelid))
from tables t
join pg_catalog.pg_policy p on p.polrelid = t.oid
where not t.host or p.polname in ('service_reads', 'staff_reads')
union all
select 'function', name, concat_ws(', ',
    case when prosecdef then 'definer' else 'invoker' end,
    case when proowner <> (select relowner from tables where name = 'public.ai_tokens')
        then 'of ' || proowner::regrole end,
    array_to_string(proconfig, ' '))
from functions
union all
select 'function body', proname, encode(sha256(convert_to(prosrc, 'UTF8')), 'hex')
from functions
union all
select 'privilege', thing || ' to ' || case grantee when 0 then 'public'
    else grantee::regrole::text end, string_agg(privilege_type, ', ' order by privilege_type)
from grants
where grantee <> owner
    and not (grantee <> 0 and grantee::regrole::text = 'tokenlib_backup'
        and privilege_type in ('SELECT', 'USAGE'))
    and (thing not in ('table public.organizations',
        'table public.user_profiles', 'table public.quests')
    or grantee::regrole::text in ('tokenlib_service', 'tokenlib_reader'))
group by thing, grantee
order by kind, name
