-- What the situations of today need beside the verbs. For the owner.

-- name: edit_plan
-- As a billing system would, past tokenlib.
update public.organizations set plan = %(plan)s where id = %(organization_id)s

-- name: usage_to_refund
select l.id from public.ai_token_usage_log l
join public.ai_tokens w using (organization_id, token_type)
where l.organization_id = %(organization_id)s and l.token_type = 'strategy_analysis'
    and (l.created_at >= w.period_start) = %(current)s
order by l.created_at desc
limit 1

-- name: open_findings
select id, organization_id, kind from public.ai_token_findings where settled_at is null
order by organization_id, token_type, kind
