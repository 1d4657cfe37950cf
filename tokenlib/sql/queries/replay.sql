-- What a replay finds of an earlier run under its name.

-- name: alone
-- Two replays of one run do not create its organizations twice.
select pg_advisory_xact_lock(hashtextextended('tokenlib replay ' || %(run)s, 0))

-- name: organizations
select id, name from public.organizations where starts_with(name, %(prefix)s)

-- name: members
select id, email from public.user_profiles where organization_id = %(organization_id)s
order by email, id limit %(limit)s
