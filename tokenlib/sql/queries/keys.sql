-- What admins do with API keys: one function call each; twice is the same as once.

-- name: create
select tokenlib.staff_create_key(%(actor)s, %(id)s, %(organization_id)s, %(name)s, %(start)s,
    %(digest)s, %(scopes)s, %(expires_at)s, %(requests_per_minute)s,
    %(seconds_between_requests)s::numeric, %(tokens_per_request)s, %(output_units_per_request)s,
    %(limit_users)s, %(reason)s) as status

-- name: rotate
select tokenlib.staff_rotate_key(%(actor)s, %(id)s, %(start)s, %(digest)s, %(overlap)s, %(reason)s)
    as status

-- name: revoke
select tokenlib.staff_revoke_key(%(actor)s, %(id)s, %(reason)s) as status

-- name: set_request_limit
select tokenlib.staff_set_request_limit(%(actor)s, %(organization_id)s, %(requests_per_minute)s,
    %(reason)s) as status
