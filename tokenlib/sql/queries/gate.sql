-- The write path: one function call each.

-- name: deduct
select * from tokenlib.deduct(%(organization_id)s, %(user_id)s, %(feature)s, %(units)s,
    %(metadata)s, %(key)s, %(limits)s, %(mode)s)

-- name: deduct_many
select * from tokenlib.deduct_many(%(requests)s::jsonb, %(wait)s)

-- name: reserve
select * from tokenlib.reserve(%(organization_id)s, %(user_id)s, %(feature)s, %(units)s,
    %(metadata)s, %(key)s, %(hold_for)s, %(limits)s, %(mode)s, %(id)s)

-- name: deduct_reservation
select * from tokenlib.deduct_reservation(%(organization_id)s, %(reservation_id)s, %(units)s,
    %(metadata)s)

-- name: release
select * from tokenlib.release(%(organization_id)s, %(reservation_id)s, %(actor)s, %(reason)s)

-- name: refund
select * from tokenlib.refund(%(organization_id)s, %(usage_id)s, %(actor)s, %(reason)s, %(key)s)

-- name: can_use
select * from tokenlib.can_use(%(organization_id)s, %(user_id)s, %(feature)s, %(units)s,
    %(limits)s, %(mode)s)

-- name: has_enough
select tokenlib.has_enough(%(organization_id)s, %(feature)s, %(units)s) as status

-- name: balances
select * from tokenlib.balances(%(organization_id)s, %(token_type)s)

-- name: failed_attempt
select tokenlib.record_failed_attempt(%(user_id)s, null, %(problem)s) as recorded
