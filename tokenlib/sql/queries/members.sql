-- What a signed-in member asks; run as `authenticated` with its claims.

-- name: belongs
-- What the row policies themselves ask: false for strangers and for unknown organizations alike.
select %(organization_id)s::uuid = any (tokenlib.my_organizations()) as belongs
