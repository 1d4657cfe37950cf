-- What staff do: one function call each; the function decides whether the actor may.

-- name: grant
select * from tokenlib.staff_grant(%(actor)s, %(organization_id)s, %(token_type)s, %(amount)s,
    %(kind)s, %(source)s, %(effective_at)s, %(expires_at)s, %(reason)s, %(key)s)

-- name: release
select * from tokenlib.staff_release(%(actor)s, %(organization_id)s, %(reservation_id)s, %(reason)s)

-- name: refund
select * from tokenlib.staff_refund(%(actor)s, %(organization_id)s, %(usage_id)s, %(reason)s,
    %(key)s)

-- name: change_plan
select * from tokenlib.staff_change_plan(%(actor)s, %(organization_id)s, %(plan)s, %(reason)s)

-- name: set_status
select tokenlib.staff_set_status(%(actor)s, %(organization_id)s, %(new_status)s, %(reason)s)
    as status

-- name: pause_user
select tokenlib.staff_pause_user(%(actor)s, %(organization_id)s, %(user_id)s, %(paused)s, %(reason)s)
    as status

-- name: settle_finding
select tokenlib.staff_settle_finding(%(actor)s, %(organization_id)s, %(id)s, %(reason)s) as status

-- name: set_mode
select tokenlib.staff_set_mode(%(actor)s, %(organization_id)s, %(mode)s, %(until)s, %(reason)s)
    as status

-- name: set_cost
select tokenlib.staff_set_cost(%(actor)s, %(feature)s, %(cost)s, %(reason)s) as status

-- name: set_unit_size
select tokenlib.staff_set_unit_size(%(actor)s, %(feature)s, %(unit_size)s, %(reason)s) as status

-- name: set_allowance
select tokenlib.staff_set_allowance(%(actor)s, %(plan)s, %(token_type)s, %(allowance)s, %(reason)s)
    as status

-- name: set_limits
select tokenlib.staff_set_limits(%(actor)s, %(organization_id)s, %(own)s, %(requests_per_minute)s,
    %(seconds_between_requests)s::numeric, %(tokens_per_request)s, %(output_units_per_request)s,
    %(alert_tokens_per_hour)s, %(failed_attempts)s, %(reason)s) as status

-- name: set_parameters
select tokenlib.staff_set_parameters(%(actor)s, %(hold_life)s, %(top_up_block)s,
    %(token_cost_cents)s::numeric, %(reason)s) as status

-- name: set_staff
select tokenlib.staff_set_staff(%(actor)s, %(user_id)s, %(role)s, %(grants_per_day)s, %(email)s,
    %(name)s, %(reason)s) as status
