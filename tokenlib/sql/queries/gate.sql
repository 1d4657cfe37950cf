-- The write path: one function call each.

-- name: deduct
select * from tokenlib.deduct(%(organization_id)s, %(user_id)s, %(feature)s, %(units)s,
    %(metadata)s, %(key)s, %(limits)s, %(mode)s)

-- name: deduct_many
select * from tokenlib.deduct_many(%(ids)s::uuid[], %(organizations)s::uuid[], %(users)s::uuid[],
    %(features)s::text[], %(units)s::bigint[], %(metadata)s::jsonb[], %(keys)s::text[],
    %(limits)s::boolean[], %(wait)s)

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
    %(output_units)s, %(limits)s, %(mode)s)

-- name: pays
-- The plain case of has_enough: a wallet that is up to date and pays, read without calling a function.
select true as pays
from public.ai_token_features f
join public.ai_tokens t on t.organization_id = %(organization_id)s and t.token_type = f.token_type
join public.organizations o on o.id = t.organization_id
where f.feature = %(feature)s and t.balance >= f.cost * %(units)s and t.allowance > 0
    and t.event_number > 0 and t.due_at > tokenlib.clock() and t.plan = o.plan

-- name: has_enough
select tokenlib.has_enough(%(organization_id)s, %(feature)s, %(units)s) as status

-- name: balances
select * from tokenlib.balances(%(organization_id)s, %(token_type)s)

-- name: failed_attempt
select tokenlib.record_failed_attempt(%(user_id)s, null, %(problem)s) as recorded
