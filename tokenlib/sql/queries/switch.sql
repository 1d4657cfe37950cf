-- The emergency switch.

-- name: modes
-- Every mode in force other than enforce, everyone's first, and the change that set it.
select m.organization_id, m.mode, m.mode_until as until, c.actor, c.reason, c.created_at as since
from (
    select null::uuid as organization_id, mode, mode_until from public.ai_token_parameters
    union all
    select organization_id, mode, mode_until from public.ai_token_organization_settings
) as m
left join lateral (
    select actor, reason, created_at from public.ai_token_changes
    where action = 'set_mode' and organization_id is not distinct from m.organization_id
    order by created_at desc limit 1
) as c on true
where m.mode <> 'enforce' and (m.mode_until is null or m.mode_until > tokenlib.clock())
order by m.organization_id nulls first
