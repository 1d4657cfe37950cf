-- The emergency switch.

-- name: modes
-- Every mode in force other than enforce, everyone's first, and the change that set it. While
-- everyone's is not enforce, also each organization that is kept out of it by an own enforce.
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
where m.mode is not null and (m.mode_until is null or m.mode_until > tokenlib.clock())
    and (m.mode <> 'enforce' or m.organization_id is not null and exists (
        select from public.ai_token_parameters
        where mode <> 'enforce' and (mode_until is null or mode_until > tokenlib.clock())))
order by m.organization_id nulls first
