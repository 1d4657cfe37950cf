-- What tokenlib asks about the database itself.

-- name: schema_version
select version_num from tokenlib.alembic_version

-- name: settings_off
-- Without these an acknowledged charge can be lost; as they are for the login that asks.
select name from unnest(array['fsync', 'full_page_writes', 'synchronous_commit']) as name
where current_setting(name) = 'off'

-- name: become
select set_config('role', %(role)s, true),
    set_config('request.jwt.claims',
        coalesce(jsonb_build_object(%(claim)s::text, %(user_id)s::text)::text, ''), true),
    -- Lists of 100,000 are sorted and grouped in memory; a server that gives more keeps that.
    set_config('work_mem', greatest(pg_size_bytes(current_setting('work_mem')) / 1024, 16384)
        || 'kB', true),
    -- Citus hands on what SET LOCAL says, and not this.
    coalesce(current_setting('citus.propagate_set_commands', true) = 'local', false) as spread

-- name: spread
-- Whether the tables lie on the nodes of a Citus, as `tokenlib migrate --citus` leaves them.
select coalesce(current_setting('citus.propagate_set_commands', true) = 'local', false) as spread

-- name: whoami
select user_id, staff_role, organization_id, full_name, email from tokenlib.whoami()

-- name: sign_out
select tokenlib.sign_out(%(session)s, %(life)s) as done

-- name: staff_claims
-- Which claims of which issuers are looked at: the first step of their paths. None of an issuer that
-- nobody maps any more, while what it gave lasts.
select issuer, coalesce(array_agg(distinct claim[1]) filter (where claim[1] is not null), '{}') as names
from (
    select issuer, claim from public.tokenlib_staff_claims
    union all
    select issuer, '{}' from public.tokenlib_staff where until > tokenlib.clock()
) as counting
group by issuer

-- name: staff_elsewhere
-- Whether somebody is staff by what another issuer claims of them.
select true as found from public.tokenlib_staff
where user_id = %(user_id)s and until > tokenlib.clock() and issuer is distinct from %(issuer)s

-- name: staff_by_claim
select tokenlib.staff_by_claim(%(issuer)s, %(user_id)s, %(claims)s, %(email)s, %(name)s,
    to_timestamp(%(issued)s), to_timestamp(%(until)s)) as status

-- name: signed_out
select 1 as found from public.tokenlib_signed_out where session = %(session)s

-- name: by_email
-- Whom an e-mail address means. Only A to Z are folded: to more, a letter that looks like another
-- would be the other.
select user_id, true as staff from public.tokenlib_staff
where lower(email::text collate "C") = lower(%(email)s::text collate "C")
    and coalesce(until, 'infinity') > tokenlib.clock()
union all
(select id, false from public.user_profiles
where lower(email::text collate "C") = lower(%(email)s::text collate "C") limit 2)

-- name: old_tables
select to_regclass('public.ai_tokens') is not null
    or to_regclass('public.ai_token_usage_log') is not null as there
