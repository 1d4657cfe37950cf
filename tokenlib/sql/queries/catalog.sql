-- The catalog as it stands now, and who is asked about.

-- name: features
select feature, title, token_type, cost, unit_size from public.ai_token_features
order by token_type, feature

-- name: token_types
select token_type, title from public.ai_token_types order by position

-- name: plans
select plan, title, monthly_price_cents from public.ai_token_plans order by position

-- name: allowances
select plan, token_type, allowance from public.ai_token_allowances

-- name: organization
select id from public.organizations where id = %(organization_id)s
