-- Where the chains of entries end, and whether what was kept elsewhere is still so.

-- name: heads
-- Where every chain ends now: kept elsewhere, this finds a history that was rewritten as a whole.
select organization_id, token_type, log_number, encode(log_hash, 'hex') as log_hash, event_number,
    encode(event_hash, 'hex') as event_hash
from public.ai_tokens
where organization_id = any(%(ids)s) and event_number > 0
order by organization_id, token_type

-- name: against_anchor
with anchored as (
    select * from unnest(%(organization_id)s::uuid[], %(token_type)s::text[],
        %(log_number)s::bigint[], %(log_hash)s::text[], %(event_number)s::bigint[],
        %(event_hash)s::text[])
        as a (organization_id, token_type, log_number, log_hash, event_number, event_hash)
), heads as (
    select organization_id, token_type, 'log' as chain, log_number as number, log_hash as hash
    from anchored where log_number > 0
    union all
    select organization_id, token_type, 'event', event_number, event_hash
    from anchored where event_number > 0
), found as (
    select h.*, coalesce(case h.chain when 'log' then w.log_number else w.event_number end, 0) as last,
        case h.chain when 'log' then coalesce(l.hash, decode(a.data ->> 'hash', 'hex')) else e.hash
            end as now, a.id is not null and (a.data ->> 'through')::bigint > h.number as archived
    from heads h
    left join public.ai_tokens w on w.organization_id = h.organization_id
        and w.token_type = h.token_type
    left join public.ai_token_usage_log l on h.chain = 'log'
        and l.organization_id = h.organization_id and l.token_type = h.token_type
        and l.number = h.number
    left join public.ai_token_events e on h.chain = 'event'
        and e.organization_id = h.organization_id and e.token_type = h.token_type
        and e.number = h.number
    left join public.ai_token_events a on h.chain = 'log' and a.kind = 'archived'
        and a.organization_id = h.organization_id and a.token_type = h.token_type
        and h.number between (a.data ->> 'first')::bigint and (a.data ->> 'through')::bigint
)
select organization_id, token_type, 'anchor_tail_cut' as kind, chain || ' ' || number as entry,
    format('the anchor knows it, and the wallet ends at %%s', last) as detail
from found where last < number
union all
select organization_id, token_type, 'anchor_archived', chain || ' ' || number,
    'it was archived since: hold the files against it, and write a new anchor'
from found where last >= number and archived
union all
select organization_id, token_type, 'anchor_history_differs', chain || ' ' || number,
    'it or an entry before it is not what was anchored'
from found where last >= number and not archived and encode(now, 'hex') is distinct from hash
