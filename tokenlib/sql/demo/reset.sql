-- Brings the scenarios' organizations back. For the owner; each step keeps the books closed.

-- name: lock_wallets
select from public.ai_tokens where organization_id = any(%(ids)s)
order by organization_id, token_type = 'shared', token_type
for no key update

-- name: release_holds
select tokenlib.release(organization_id, id, %(actor)s, 'demo reset')
from public.ai_token_reservations
where organization_id = any(%(ids)s) and state = 'held'
order by organization_id, created_at, id

-- name: restore_plan
update public.organizations set plan = %(plan)s
where id = %(organization_id)s and plan <> %(plan)s

-- name: restore_contract
with gone as (
    delete from public.ai_token_organization_allowances
    where organization_id = %(organization_id)s and not %(unlimited)s
)
insert into public.ai_token_organization_allowances (organization_id, token_type, allowance)
select %(organization_id)s, token_type, null from public.ai_token_types
where %(unlimited)s and token_type <> 'shared'
on conflict (organization_id, token_type) do update set allowance = null

-- name: restore_status
select tokenlib.set_status(%(organization_id)s, %(status)s, %(actor)s, 'demo reset')
where %(status)s <> coalesce((select status from public.ai_token_organization_settings
    where organization_id = %(organization_id)s), 'active')

-- name: resume_members
select tokenlib.pause_user(organization_id, user_id, false, %(actor)s, 'demo reset')
from public.ai_token_user_settings
where organization_id = any(%(ids)s) and paused_at is not null

-- name: clear_switch
select tokenlib.set_mode(organization_id, 'enforce', tokenlib.clock(), %(actor)s, 'demo reset')
from public.ai_token_organization_settings
where organization_id = any(%(ids)s) and mode is not null
    and (mode_until is null or mode_until > tokenlib.clock())

-- name: clear_switch_for_everyone
select tokenlib.set_mode(null, 'enforce', null, %(actor)s, 'demo reset')
from public.ai_token_parameters
where mode <> 'enforce' and (mode_until is null or mode_until > tokenlib.clock())

-- name: clear_limits
delete from public.ai_token_limits where organization_id = any(%(ids)s)

-- name: clear_quests
delete from public.quests where organization_id = any(%(ids)s)

-- name: expire_grants
update public.ai_token_grants set expires_at = tokenlib.clock()
where organization_id = any(%(ids)s) and kind <> 'allowance'
    and closed_at is null and arrived_at is not null

-- name: drop_scheduled_grants
-- They have not arrived, so no balance knows of them.
update public.ai_token_grants set remaining = 0, closed_at = tokenlib.clock()
where organization_id = any(%(ids)s) and closed_at is null and arrived_at is null

-- name: end_periods
update public.ai_tokens set refresh_date = tokenlib.clock(), due_at = tokenlib.clock()
where organization_id = any(%(ids)s)

-- name: refresh
select tokenlib.open_wallet(organization_id, token_type) from public.ai_tokens
where organization_id = any(%(ids)s)
order by organization_id, token_type = 'shared', token_type

-- name: restore_ends
-- They are over now. Until when they were given stays as their entries say it.
update public.ai_token_grants g set expires_at = (e.data ->> 'expires_at')::timestamptz
from public.ai_token_events e
where g.organization_id = any(%(ids)s) and g.closed_at is not null
    and e.organization_id = g.organization_id and e.subject_id = g.id
    and e.kind in ('grant', 'grant_scheduled') and e.data ? 'kind'
