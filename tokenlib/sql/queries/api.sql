-- The door of the HTTP API: who calls comes first, and the function decides what they may.

-- name: write
select (w.a).*, w.window_name, w.window_allowed, w.window_left, w.window_ends_after
from tokenlib.api_write(%(caller)s, %(secret)s, %(verb)s, %(organization_id)s, %(user_id)s, %(key)s, %(hash)s,
    %(args)s, %(mode)s) as w

-- name: write_for_everyone
-- Apart: asked for the function alone, Citus looks for the node of an organization that is null, and
-- crashes.
with written as materialized (
    select * from tokenlib.api_write(%(caller)s, %(secret)s, %(verb)s, %(organization_id)s, %(user_id)s,
        %(key)s, %(hash)s, %(args)s, %(mode)s)
)
select (a).*, window_name, window_allowed, window_left, window_ends_after from written

-- name: can_use
select * from tokenlib.api_can_use(%(caller)s, %(secret)s, %(organization_id)s, %(user_id)s, %(feature)s,
    %(units)s, %(output_units)s, %(mode)s)

-- name: has_enough
select tokenlib.api_has_enough(%(caller)s, %(secret)s, %(organization_id)s, %(feature)s, %(units)s) as status

-- name: balances
select * from tokenlib.api_balances(%(caller)s, %(secret)s, %(organization_id)s, %(token_type)s)

-- name: keys
select * from tokenlib.api_keys(%(caller)s, %(secret)s)

-- name: authenticate
select * from tokenlib.authenticate_key(%(digest)s)

-- name: metrics
select * from tokenlib.api_metrics(%(caller)s, %(secret)s)

-- name: charges
select * from tokenlib.api_charges(%(digests)s::text[], %(ids)s::uuid[], %(organizations)s::uuid[],
    %(users)s::uuid[], %(features)s::text[], %(units)s::bigint[], %(metadata)s::jsonb[],
    %(keys)s::text[], %(limits)s::boolean[], %(wait)s)
