-- What stands in the database: nothing of ours, the old system, or something else. Reads only.

-- name: prepare
-- A row that a policy hides would be a row that is lost: better an error. In UTC a day has 24 hours.
select set_config('row_security', 'off', true), set_config('timezone', 'UTC', true),
    set_config('statement_timeout', '0', true)

-- name: own_policies
-- Ours bind the owner and let it see everything.
select set_config('row_security', 'on', true)

-- name: read_only
select set_config('transaction_read_only', 'on', true)

-- name: lock
-- All that changes, in one go: what is told about it then stays true until the end.
lock table public.ai_tokens, public.ai_token_usage_log, public.organizations, public.user_profiles
    in access exclusive mode

-- name: collisions
-- Names that tokenlib needs and somebody else has.
select format('%%s is there already, and tokenlib needs the name', name) as difference
from unnest(%(names)s::text[]) as name
where to_regclass('public.' || name) is not null
order by name

-- name: differences
-- Why these tables are not the old system's, or cannot be taken in: one line each, in words.
with wanted (table_name, column_name, types) as (
    values
        ('ai_tokens', 'id', '{uuid}'::text[]),
        ('ai_tokens', 'organization_id', '{uuid}'),
        ('ai_tokens', 'token_type', '{text,character varying}'),
        ('ai_tokens', 'balance', '{integer,bigint,smallint}'),
        ('ai_tokens', 'total_allocated', '{integer,bigint,smallint}'),
        ('ai_tokens', 'total_used', '{integer,bigint,smallint}'),
        ('ai_tokens', 'refresh_date', '{timestamp with time zone}'),
        ('ai_tokens', 'last_used_at', '{timestamp with time zone}'),
        ('ai_tokens', 'created_at', '{timestamp with time zone}'),
        ('ai_tokens', 'updated_at', '{timestamp with time zone}'),
        ('ai_token_usage_log', 'id', '{uuid}'),
        ('ai_token_usage_log', 'organization_id', '{uuid}'),
        ('ai_token_usage_log', 'user_id', '{uuid}'),
        ('ai_token_usage_log', 'token_type', '{text,character varying}'),
        ('ai_token_usage_log', 'feature_used', '{text,character varying}'),
        ('ai_token_usage_log', 'tokens_deducted', '{integer,bigint,smallint}'),
        ('ai_token_usage_log', 'remaining_balance', '{integer,bigint,smallint}'),
        ('ai_token_usage_log', 'metadata', '{jsonb}'),
        ('ai_token_usage_log', 'created_at', '{timestamp with time zone}'),
        ('organizations', 'id', '{uuid}'),
        ('organizations', 'name', '{text,character varying}'),
        ('organizations', 'plan', '{text,character varying}'),
        ('user_profiles', 'id', '{uuid}'),
        ('user_profiles', 'organization_id', '{uuid}'),
        ('user_profiles', 'full_name', '{text,character varying}'),
        ('user_profiles', 'email', '{text,character varying}'),
        ('user_profiles', 'role', '{text,character varying}'),
        ('quests', 'id', '{uuid}'),
        ('quests', 'organization_id', '{uuid}'),
        ('quests', 'title', '{text,character varying}'),
        ('quests', 'description', '{text,character varying}'),
        ('quests', 'quarter', '{text,character varying}'),
        ('quests', 'target_amount', '{bigint,integer,numeric}'),
        ('quests', 'progress', '{integer,bigint,smallint}'),
        ('quests', 'status', '{text,character varying}'),
        ('quests', 'metadata', '{jsonb}'),
        ('quests', 'created_by', '{uuid}'),
        ('quests', 'created_at', '{timestamp with time zone}')
), ours (table_name, column_name) as (
    values ('ai_tokens', 'reserved'), ('ai_tokens', 'period_start'), ('ai_tokens', 'plan'),
        ('ai_tokens', 'allowance'), ('ai_tokens', 'pending'), ('ai_tokens', 'due_at'),
        ('ai_tokens', 'log_number'), ('ai_tokens', 'log_hash'), ('ai_tokens', 'event_number'),
        ('ai_tokens', 'event_hash'), ('ai_tokens', 'last_entry_at'),
        ('ai_token_usage_log', 'number'), ('ai_token_usage_log', 'units'),
        ('ai_token_usage_log', 'tokens_waived'), ('ai_token_usage_log', 'reservation_id'),
        ('ai_token_usage_log', 'held'), ('ai_token_usage_log', 'returned'),
        ('ai_token_usage_log', 'idempotency_key'), ('ai_token_usage_log', 'request_hash'),
        ('ai_token_usage_log', 'metadata_digest'), ('ai_token_usage_log', 'hash_version'),
        ('ai_token_usage_log', 'hash')
), relations as (
    select c.oid, c.relname as table_name, c.relkind, c.relowner, c.relforcerowsecurity,
        c.relname in ('ai_tokens', 'ai_token_usage_log') as books
    from pg_catalog.pg_class c
    where c.relnamespace = 'public'::regnamespace
        and c.relname in (select table_name from wanted)
), columns as (
    select r.table_name, a.attname as column_name, r.books, a.attnotnull, a.attgenerated <> ''
        or a.attidentity <> '' as made, a.atthasdef, format_type(a.atttypid, null) as type, r.oid,
        a.attnum
    from relations r
    join pg_catalog.pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
), found as (
    select 1 as position, format('%%s is missing', name) as difference
    from unnest(array['ai_tokens', 'ai_token_usage_log', 'organizations', 'user_profiles']) as name
    where name not in (select table_name from relations)
    union all
    select 2, format('%%s is no plain table', table_name) from relations r
    where relkind <> 'r' or exists (
        select from pg_catalog.pg_inherits i where r.oid in (i.inhrelid, i.inhparent))
    union all
    select 3, format('%%s belongs to %%s, and %%s has not that role''s rights', table_name,
        relowner::regrole, current_user)
    from relations where not pg_has_role(relowner, 'usage')
    union all
    select 4, format('%%s.%%s is missing', w.table_name, w.column_name)
    from wanted w
    join relations r on r.table_name = w.table_name
    left join columns c on c.table_name = w.table_name and c.column_name = w.column_name
    where c.column_name is null
    union all
    select 5, format('%%s.%%s is %%s, not %%s', w.table_name, w.column_name, c.type,
        array_to_string(w.types, ' or '))
    from wanted w
    join columns c on c.table_name = w.table_name and c.column_name = w.column_name
    where c.type <> all (w.types)
    union all
    select 6, format('%%s.%%s is there already, and tokenlib needs the name', o.table_name,
        o.column_name)
    from ours o
    join columns c on c.table_name = o.table_name and c.column_name = o.column_name
    union all
    -- A column of the product's own stays, but no charge knows what to write there.
    select 7, format('%%s.%%s is not null or generated, and tokenlib does not know what to write '
        'there', c.table_name, c.column_name)
    from columns c
    left join wanted w on w.table_name = c.table_name and w.column_name = c.column_name
    where c.books and w.column_name is null and (c.made
        or c.attnotnull and (c.table_name = 'ai_token_usage_log' or not c.atthasdef))
    union all
    select 8, format('%%s.%%s is generated', c.table_name, c.column_name)
    from columns c
    join wanted w on w.table_name = c.table_name and w.column_name = c.column_name
    where c.books and c.made
    union all
    -- A column that grows from integer to bigint takes its views with it.
    select distinct 9, format('the view %%s shows %%s.%%s: drop it and make it again afterwards',
        v.ev_class::regclass, c.table_name, c.column_name)
    from columns c
    join wanted w on w.table_name = c.table_name and w.column_name = c.column_name
    join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_class'::regclass
        and d.refobjid = c.oid and d.refobjsubid = c.attnum
        and d.classid = 'pg_catalog.pg_rewrite'::regclass
    join pg_catalog.pg_rewrite v on v.oid = d.objid and v.ev_class <> c.oid
    where c.books and (c.type in ('integer', 'smallint', 'character varying'))
    union all
    select 10, format('%%s refers to %%s by %%s: drop that key', k.conrelid::regclass, r.table_name,
        k.conname)
    from relations r
    join pg_catalog.pg_constraint k on k.confrelid = r.oid and k.contype = 'f'
    where r.books and k.conrelid not in (select oid from relations where books)
    union all
    select 11, format('%%s forces row-level security on its owner, and would hide its rows',
        table_name)
    from relations r
    where relforcerowsecurity and not exists (select from pg_catalog.pg_roles
        where rolname = current_user and (rolsuper or rolbypassrls))
)
select difference from found order by position, difference

-- name: bad_rows
-- Rows that no wallet or entry could be. Only asked of tables that have every column.
with found as (
    select 1 as position, format('ai_tokens has %%s rows without organization_id or token_type',
        count(*)) as difference
    from public.ai_tokens where organization_id is null or token_type is null
    having count(*) > 0
    union all
    select 2, format('ai_tokens has two wallets %%s of organization %%s', token_type,
        organization_id)
    from public.ai_tokens group by organization_id, token_type having count(*) > 1
    union all
    select 3, format('ai_tokens has the token type %%s, which the catalog does not know', token_type)
    from public.ai_tokens
    where token_type not in (
        'lead_generation', 'goal_generation', 'strategy_analysis', 'forecast', 'general')
    group by token_type
    union all
    select 4, format('ai_token_usage_log has %%s rows without %%s', count(*), field)
    from public.ai_token_usage_log l
    cross join lateral (
        select 'organization_id' where l.organization_id is null
        union all select 'token_type' where l.token_type is null
        union all select 'feature_used' where l.feature_used is null
        union all select 'tokens_deducted' where l.tokens_deducted is null
        union all select 'remaining_balance' where l.remaining_balance is null
        union all select 'created_at' where l.created_at is null) as e (field)
    group by field
    union all
    select 5, format('%%s has %%s ids more than once', name, count(*))
    from (
        select 'ai_tokens' as name from public.ai_tokens
        group by organization_id, id having count(*) > 1
        union all
        select 'ai_token_usage_log' from public.ai_token_usage_log
        group by organization_id, id having count(*) > 1) as repeated
    group by name
)
select difference from found order by position, difference limit 50

-- name: removals
-- What of the old tables has to go: how it is called, and the statement that does it. Policies let
-- members raise balances, keys to users delete log rows with them, triggers change rows unseen.
with books as (
    select oid, relname, relowner, relacl from pg_catalog.pg_class
    where oid in ('public.ai_tokens'::regclass, 'public.ai_token_usage_log'::regclass)
), ours as (
    select unnest('{id,organization_id,user_id,token_type,balance,total_allocated,total_used,
        refresh_date,last_used_at,created_at,updated_at,feature_used,tokens_deducted,
        remaining_balance,metadata}'::text[]) as column_name
), found as (
    select 1 as position, format('change the owner of %%s from %%s to %%s', relname,
            relowner::regrole, current_user) as step,
        format('alter table public.%%I owner to current_user', relname) as statement
    from books where relowner <> current_user::regrole
    union all
    select 2, format('drop the policy %%s of %%s', polname, relname),
        format('drop policy %%I on public.%%I', polname, relname)
    from pg_catalog.pg_policy join books on books.oid = polrelid
    union all
    select 3, format('drop the trigger %%s of %%s', tgname, relname),
        format('drop trigger %%I on public.%%I', tgname, relname)
    from pg_catalog.pg_trigger join books on books.oid = tgrelid where not tgisinternal
    union all
    select 3, format('drop the rule %%s of %%s', rulename, relname),
        format('drop rule %%I on public.%%I', rulename, relname)
    from pg_catalog.pg_rewrite join books on books.oid = ev_class
    union all
    select case contype when 'f' then 4 else 5 end, format('drop the constraint %%s of %%s: %%s',
            conname, relname, pg_get_constraintdef(k.oid)),
        format('alter table public.%%I drop constraint %%I', relname, conname)
    from pg_catalog.pg_constraint k join books on books.oid = k.conrelid where contype <> 'n'
    union all
    -- An index on a column of the product's own stays.
    select 6, format('drop the index %%s of %%s', i.indexrelid::regclass, relname),
        format('drop index %%s', i.indexrelid::regclass)
    from pg_catalog.pg_index i join books on books.oid = i.indrelid
    where not exists (select from pg_catalog.pg_constraint where conindid = i.indexrelid)
        and not exists (
            select from unnest(i.indkey) as key (number)
            left join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = key.number
            where coalesce(a.attname, '') not in (select column_name from ours))
    union all
    select distinct 7, format('revoke all rights on %%s from %%s', relname, role),
        format('revoke all on public.%%I from %%s cascade', relname, role)
    from (
        select b.relname, a.grantee from books b, aclexplode(b.relacl) as a
        where a.grantee <> b.relowner
        union
        select b.relname, a.grantee from books b
        join pg_catalog.pg_attribute c on c.attrelid = b.oid, aclexplode(c.attacl) as a
        where a.grantee <> b.relowner) as granted
    cross join lateral (select case grantee when 0 then 'public' else grantee::regrole::text end)
        as named (role)
)
select step, statement from found order by position, step

-- name: counts
select (select count(*) from public.ai_tokens) as wallets,
    (select count(*) from public.ai_token_usage_log) as log_rows

-- name: findings
-- What is wrong with the old figures, wallet by wallet; their usable balance is kept all the same.
-- The first four are what opening the books finds too.
with period as (
    select interval '30 days' as length -- the default of ai_token_parameters
), wallets as (
    select w.organization_id, w.token_type, o.id is not null as known, o.plan,
        coalesce(w.balance, 0) as balance, coalesce(w.total_allocated, 0) as total_allocated,
        coalesce(w.total_used, 0) as total_used, w.refresh_date,
        array_remove(array[
            case when w.balance is null then 'balance' end,
            case when w.total_allocated is null then 'total_allocated' end,
            case when w.total_used is null then 'total_used' end,
            case when w.refresh_date is null then 'refresh_date' end], null) as missing
    from public.ai_tokens w
    left join public.organizations o on o.id = w.organization_id
), logged as (
    select l.organization_id, l.token_type, count(*) as rows,
        coalesce(sum(l.tokens_deducted) filter (where l.created_at >= w.refresh_date - p.length), 0)
            as tokens,
        count(*) filter (where l.user_id is null or u.id is null) as orphans
    from public.ai_token_usage_log l
    cross join period p
    left join wallets w on w.organization_id = l.organization_id and w.token_type = l.token_type
    left join public.user_profiles u
        on u.id = l.user_id and u.organization_id = l.organization_id
    group by l.organization_id, l.token_type
), found as (
    select organization_id, token_type, 1 as position, 'emergency_balance' as kind,
        'balance 9999, the old emergency value' as detail
    from wallets where balance = 9999
    union all
    select organization_id, token_type, 2, 'balance_above_allocated',
        format('balance %%s above total_allocated %%s', balance, total_allocated)
    from wallets where balance > total_allocated
    union all
    select w.organization_id, w.token_type, 3, 'used_differs_from_log',
        format('total_used %%s, the log of the period says %%s', w.total_used,
            coalesce(l.tokens, 0))
    from wallets w
    left join logged l on l.organization_id = w.organization_id and l.token_type = w.token_type
    where w.total_used <> coalesce(l.tokens, 0)
    union all
    select l.organization_id, l.token_type, 4, 'log_of_deleted_users',
        format('%%s log rows of users that no longer exist', l.orphans)
    from logged l
    join wallets w on w.organization_id = l.organization_id and w.token_type = l.token_type
    where l.orphans > 0
    union all
    select organization_id, token_type, 5, 'negative_figure',
        format('balance %%s, total_used %%s: below zero counts as 0', balance, total_used)
    from wallets where balance < 0 or total_used < 0
    union all
    select organization_id, token_type, 6, 'missing_figure',
        format('%%s is empty: counts as 0, a missing refresh_date as 30 days from the adoption',
            array_to_string(missing, ', '))
    from wallets where cardinality(missing) > 0
    union all
    select organization_id, token_type, 7, 'organization_unknown',
        'the organization no longer exists'
    from wallets where not known
    union all
    select organization_id, token_type, 8, 'plan_unknown',
        format('the plan %%s is not in the catalog, so it allows nothing', coalesce(plan, 'null'))
    from wallets where known and (plan is null or plan not in ('starter', 'pro', 'enterprise'))
    union all
    select l.organization_id, l.token_type, 9, 'log_without_wallet',
        format('%%s log rows, and no wallet', l.rows)
    from logged l
    where not exists (select from wallets w
        where w.organization_id = l.organization_id and w.token_type = l.token_type)
)
select organization_id, token_type, kind, detail from found
order by organization_id, token_type, position

-- name: record_finding
-- Those that opening the books does not find by itself.
insert into public.ai_token_findings (organization_id, token_type, kind, detail, found_at)
values (%(organization_id)s, %(token_type)s, %(kind)s, %(detail)s, tokenlib.clock())
