-- Plans, grants, refreshes, states: one function call each.

-- name: create_organization
select tokenlib.create_organization(%(name)s, %(plan)s) as id

-- name: add_member
select * from tokenlib.add_member(%(organization_id)s, %(name)s, %(email)s)

-- name: initialize
select * from tokenlib.initialize(%(organization_id)s, %(plan)s, %(dry_run)s)

-- name: organizations_to_initialize
select o.id from public.organizations o
left join (select organization_id, count(*) as wallets from public.ai_tokens
    where token_type <> 'shared' group by organization_id) as a on a.organization_id = o.id
where coalesce(a.wallets, 0)
    < (select count(*) from public.ai_token_types where token_type <> 'shared')
order by o.id

-- name: change_plan
select * from tokenlib.change_plan(%(organization_id)s, %(plan)s, %(actor)s, %(reason)s)

-- name: grant
select * from tokenlib.grant_tokens(%(organization_id)s, %(token_type)s, %(amount)s, %(kind)s,
    %(source)s, %(effective_at)s, %(expires_at)s, %(actor)s, %(reason)s, %(key)s)

-- name: refresh
select tokenlib.refresh(%(organization_id)s, %(limit)s) as refreshed

-- name: set_status
select tokenlib.set_status(%(organization_id)s, %(status)s, %(actor)s, %(reason)s) as status

-- name: pause_user
select tokenlib.pause_user(%(organization_id)s, %(user_id)s, %(paused)s, %(actor)s, %(reason)s)
    as status

-- name: set_mode
select tokenlib.set_mode(%(organization_id)s, %(mode)s, %(until)s, %(actor)s, %(reason)s) as status

-- name: settle_finding
select tokenlib.settle_finding(%(organization_id)s, %(finding_id)s, %(actor)s, %(reason)s) as status

-- name: erase_metadata
select * from tokenlib.erase_metadata(%(organization_id)s, %(user_id)s, %(actor)s, %(reason)s)

-- name: save_quest
select tokenlib.save_quest(%(organization_id)s, %(user_id)s, %(title)s, %(description)s,
    %(quarter)s, %(target)s, %(metadata)s) as id

-- name: advance_quest
select tokenlib.advance_quest(%(organization_id)s, %(user_id)s, %(quest_id)s, %(progress)s,
    %(metadata)s) as found

-- name: record_latency
select tokenlib.record_latency(%(operation)s, %(milliseconds)s) as recorded
