-- Why requests were refused. A row holds one minute of one user, feature and rule; it counts at its
-- last_at. The zero UUID stands for "no user known". data ->> 'mode' is set where the switch let it
-- through.

-- name: by_rule
select rule, coalesce(sum(count) filter (where data ->> 'mode' is null), 0)::bigint as count,
    coalesce(sum(count) filter (where data ->> 'mode' is not null), 0)::bigint as let_through,
    count(distinct organization_id) as organizations,
    count(distinct nullif(user_id, '00000000-0000-0000-0000-000000000000')) as users
from public.ai_token_refusals
where last_at >= %(since)s::timestamptz and last_at < %(until)s::timestamptz
    and (%(organization_id)s::uuid is null or organization_id = %(organization_id)s::uuid)
group by rule
order by count desc, let_through desc, rule

-- name: latest
select r.organization_id, coalesce(o.name, r.organization_id::text) as organization,
    nullif(r.user_id, '00000000-0000-0000-0000-000000000000') as user_id,
    coalesce(u.full_name, u.email,
        nullif(r.user_id, '00000000-0000-0000-0000-000000000000')::text, 'unknown') as user,
    r.feature, r.rule, r.token_type, r.needed, r.available, r.count, r.first_at, r.last_at, r.data
from public.ai_token_refusals r
left join public.organizations o on o.id = r.organization_id
left join public.user_profiles u on u.id = r.user_id
where r.last_at >= %(since)s::timestamptz and r.last_at < %(until)s::timestamptz
    and (%(organization_id)s::uuid is null or r.organization_id = %(organization_id)s::uuid)
    and (%(user_id)s::uuid is null or r.user_id = %(user_id)s::uuid)
order by r.last_at desc, r.organization_id, r.user_id, r.feature, r.rule
limit %(limit)s::bigint

-- name: frequent
with counted as (
    select organization_id, case when %(by_user)s::boolean then user_id end as user_id,
        sum(count)::bigint as refusals,
        coalesce(sum(count) filter (where rule = 'insufficient_tokens'), 0)::bigint
            as insufficient_tokens,
        coalesce(sum(count) filter (where rule = 'feature_not_in_plan'), 0)::bigint
            as feature_not_in_plan,
        coalesce(sum(count) filter (where rule = 'rate_limited'), 0)::bigint as rate_limited,
        max(last_at) as last_at
    from public.ai_token_refusals
    where last_at >= %(since)s::timestamptz and last_at < %(until)s::timestamptz
        and rule in ('insufficient_tokens', 'feature_not_in_plan', 'rate_limited')
        and (rule <> 'rate_limited' or not %(by_plan)s::boolean)
        and data ->> 'mode' is null
    group by 1, 2
), top as (
    select * from counted order by refusals desc, last_at desc, organization_id, user_id
    limit %(limit)s::bigint
)
select t.organization_id, coalesce(o.name, t.organization_id::text) as organization, o.plan,
    t.user_id, case when t.user_id is not null then coalesce(u.full_name, u.email,
        t.user_id::text) end as user, t.refusals, t.insufficient_tokens, t.feature_not_in_plan,
    t.rate_limited, t.last_at
from top t
left join public.organizations o on o.id = t.organization_id
left join public.user_profiles u on u.id = t.user_id
order by t.refusals desc, t.last_at desc, t.organization_id, t.user_id

-- The same for staff and the service, of everybody, from the rollups.

-- name: by_rule_closed
select rule, refusals as count, let_through, organizations, users
from tokenlib.refused_by_rule(%(since)s, %(until)s)
order by count desc, let_through desc, rule

-- name: frequent_closed
select t.organization_id, coalesce(o.name, t.organization_id::text) as organization, o.plan,
    t.user_id, case when t.user_id is not null then coalesce(u.full_name, u.email,
        t.user_id::text) end as user,
    t.insufficient_tokens + t.feature_not_in_plan + t.rate_limited as refusals,
    t.insufficient_tokens, t.feature_not_in_plan, t.rate_limited, t.last_at
from tokenlib.refused_most(%(since)s, %(until)s, %(by_user)s, %(by_plan)s, %(limit)s) as t
left join public.organizations o on o.id = t.organization_id
left join public.user_profiles u on u.id = t.user_id
order by refusals desc, t.last_at desc, t.organization_id, t.user_id
