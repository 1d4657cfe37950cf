-- Use over time, and the raw rows behind it. `key` is what a bar stands for: a feature, a plan, an
-- organization's or a user's id; null for everything outside the top.

-- name: series
with charges as (
    select date_trunc(%(bucket)s::text, l.created_at, %(timezone)s::text) as start,
        case %(by)s::text when 'feature' then l.feature_used when 'plan' then coalesce(o.plan, '')
            when 'organization' then l.organization_id::text
            when 'user' then coalesce(l.user_id::text, '') else 'all' end as key,
        case when %(by)s::text = 'user' then l.organization_id end as of,
        count(*) as uses, sum(l.tokens_deducted)::bigint as tokens, 0::bigint as refunded
    from public.ai_token_usage_log l
    left join public.organizations o on o.id = l.organization_id
    where l.created_at >= %(since)s::timestamptz and l.created_at < %(until)s::timestamptz
        and (%(organization_id)s::uuid is null or l.organization_id = %(organization_id)s::uuid)
        and (%(user_id)s::uuid is null or l.user_id = %(user_id)s::uuid)
        and (%(feature)s::text is null or l.feature_used = %(feature)s::text)
        and (%(plan)s::text is null or o.plan = %(plan)s::text)
    group by 1, 2, 3
), refunds as (
    select date_trunc(%(bucket)s::text, e.created_at, %(timezone)s::text) as start,
        case %(by)s::text when 'feature' then e.data ->> 'feature'
            when 'plan' then coalesce(o.plan, '')
            when 'organization' then e.organization_id::text
            when 'user' then coalesce(e.data ->> 'user_id', '') else 'all' end as key,
        case when %(by)s::text = 'user' then e.organization_id end as of,
        0::bigint as uses, 0::bigint as tokens, sum(e.balance_change)::bigint as refunded
    from public.ai_token_events e
    left join public.organizations o on o.id = e.organization_id
    where e.kind = 'refund'
        and e.created_at >= %(since)s::timestamptz and e.created_at < %(until)s::timestamptz
        and (%(organization_id)s::uuid is null or e.organization_id = %(organization_id)s::uuid)
        and (%(user_id)s::uuid is null or e.data ->> 'user_id' = %(user_id)s::uuid::text)
        and (%(feature)s::text is null or e.data ->> 'feature' = %(feature)s::text)
        and (%(plan)s::text is null or o.plan = %(plan)s::text)
    group by 1, 2, 3
), figures as (
    select * from charges union all select * from refunds
), ranked as (
    select key, of, row_number() over (order by sum(tokens) desc, sum(uses) desc, of,
        nullif(key, ''), key) as rank
    from figures group by key, of
), merged as (
    select f.start, case when r.rank <= %(top)s::bigint then f.key end as key,
        min(least(r.rank, %(top)s::bigint + 1)) as rank, sum(f.uses)::bigint as uses,
        sum(f.tokens)::bigint as tokens, sum(f.refunded)::bigint as refunded
    from figures f join ranked r on r.key = f.key and r.of is not distinct from f.of
    group by 1, 2
)
select m.start, m.key,
    case when m.key is null then 'Other' when m.key = '' then 'Unknown' else
        case %(by)s::text
            when 'feature' then (select title from public.ai_token_features f
                where f.feature = m.key)
            when 'plan' then (select title from public.ai_token_plans p where p.plan = m.key)
            when 'organization' then (select name from public.organizations o
                where o.id = m.key::uuid)
            when 'user' then (select coalesce(u.full_name, u.email) from public.user_profiles u
                where u.id = m.key::uuid)
            when 'all' then 'All' end end as label,
    m.uses, m.tokens, m.refunded
from merged m
where now() at time zone %(timezone)s::text is not null -- refuses a wrong name without rows
order by m.start, m.rank

-- name: series_closed
-- For staff and the service, by feature or all in one, from the rollups.
with figures as (
    select start, case %(by)s::text when 'feature' then feature else 'all' end as key,
        sum(uses)::bigint as uses, sum(tokens)::bigint as tokens, sum(refunded)::bigint as refunded
    from tokenlib.usage_bars(%(since)s, %(until)s, %(bucket)s, %(timezone)s, %(organization_id)s)
    where (uses > 0 or refunded > 0)
        and (%(feature)s::text is null or feature = %(feature)s::text)
    group by 1, 2
), ranked as (
    select key, row_number() over (order by sum(tokens) desc, sum(uses) desc, nullif(key, ''), key)
            as rank
    from figures group by key
), merged as (
    select f.start, case when r.rank <= %(top)s::bigint then f.key end as key,
        min(least(r.rank, %(top)s::bigint + 1)) as rank, sum(f.uses)::bigint as uses,
        sum(f.tokens)::bigint as tokens, sum(f.refunded)::bigint as refunded
    from figures f join ranked r on r.key = f.key
    group by 1, 2
)
select m.start, m.key, case when m.key is null then 'Other' when m.key = '' then 'Unknown'
        when %(by)s::text = 'all' then 'All'
        else (select title from public.ai_token_features f where f.feature = m.key) end as label,
    m.uses, m.tokens, m.refunded
from merged m
order by m.start, m.rank

-- name: organizations_closed
-- For staff and the service, by organization: the first ones from the rollups, the others as what
-- everybody used less these.
with used as materialized (
    select organization_id, row_number() over (order by tokens desc, uses desc, organization_id) as rank
    from tokenlib.top_usage(%(since)s, %(until)s, false, %(top)s, null)
), top as materialized (
    select * from used
    union all
    -- Where few were charged, who only got something back has a part, too.
    select organization_id, (select count(*) from used) + row_number() over (order by organization_id)
    from (
        select distinct organization_id from public.ai_token_events e
        where kind = 'refund' and (select count(*) from used) < %(top)s::bigint
            and created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
            and organization_id not in (select organization_id from used)
        order by organization_id limit %(top)s::bigint - least(%(top)s::bigint,
            (select count(*) from used))) as given_back
), figures as materialized (
    select b.start, t.organization_id::text as key, t.rank, b.uses, b.tokens, b.refunded
    from tokenlib.usage_organizations((select array_agg(organization_id) from top), %(since)s,
        %(until)s, %(bucket)s, %(timezone)s, false) as b
    join top t on t.organization_id = b.organization_id
    union all
    select start, null, null, uses, tokens, refunded
    from tokenlib.usage_bars(%(since)s, %(until)s, %(bucket)s, %(timezone)s, null)
), bars as (
    select start, key, min(rank) as rank, sum(uses)::bigint as uses, sum(tokens)::bigint as tokens,
        sum(refunded)::bigint as refunded
    from figures where rank is not null
    group by 1, 2
    union all
    select start, null, %(top)s::bigint + 1,
        sum(case when rank is null then uses else -uses end)::bigint,
        sum(case when rank is null then tokens else -tokens end)::bigint,
        sum(case when rank is null then refunded else -refunded end)::bigint
    from figures group by start
)
select b.start, b.key, case when b.key is null then 'Other'
        else (select name from public.organizations o where o.id = b.key::uuid) end as label,
    b.uses, b.tokens, b.refunded
from bars b
where b.uses > 0 or b.refunded > 0
order by b.start, b.rank

-- name: users_closed
-- The same by user, of everybody or of one organization.
with used as materialized (
    select organization_id, user_id, row_number() over (order by tokens desc, uses desc, organization_id, user_id) as rank
    from tokenlib.top_usage(%(since)s, %(until)s, true, %(top)s, %(organization_id)s)
), top as materialized (
    select * from used
    union all
    -- Where few were charged, who only got something back has a part, too.
    select organization_id, user_id, (select count(*) from used) + row_number() over (order by organization_id, user_id)
    from (
        select distinct organization_id, (data ->> 'user_id')::uuid as user_id from public.ai_token_events e
        where kind = 'refund' and (select count(*) from used) < %(top)s::bigint
            and created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
            and not exists (select from used u where u.organization_id = e.organization_id
                and u.user_id::text is not distinct from e.data ->> 'user_id')
            and (%(organization_id)s::uuid is null
                or organization_id = %(organization_id)s::uuid)
        order by organization_id, user_id limit %(top)s::bigint - least(%(top)s::bigint,
            (select count(*) from used))) as given_back
), figures as materialized (
    select b.start, coalesce(t.user_id::text, '') as key, t.rank, b.uses, b.tokens, b.refunded
    from tokenlib.usage_persons((select array_agg(organization_id order by rank) from top),
        (select array_agg(user_id order by rank) from top), %(since)s, %(until)s, %(bucket)s,
        %(timezone)s) as b
    join top t on t.organization_id = b.organization_id and t.user_id is not distinct from b.user_id
    union all
    select start, null, null, uses, tokens, refunded
    from tokenlib.usage_bars(%(since)s, %(until)s, %(bucket)s, %(timezone)s, %(organization_id)s)
), bars as (
    select start, key, min(rank) as rank, sum(uses)::bigint as uses, sum(tokens)::bigint as tokens,
        sum(refunded)::bigint as refunded
    from figures where rank is not null
    group by 1, 2
    union all
    select start, null, %(top)s::bigint + 1,
        sum(case when rank is null then uses else -uses end)::bigint,
        sum(case when rank is null then tokens else -tokens end)::bigint,
        sum(case when rank is null then refunded else -refunded end)::bigint
    from figures group by start
)
select b.start, b.key, case when b.key is null then 'Other' when b.key = '' then 'Unknown'
        else (select coalesce(u.full_name, u.email) from public.user_profiles u
            where u.id = b.key::uuid) end as label,
    b.uses, b.tokens, b.refunded
from bars b
where b.uses > 0 or b.refunded > 0
order by b.start, b.rank

-- name: before
-- What the first organizations or users of a window were charged in the time before.
with used as materialized (
    select organization_id, case when %(by)s::text = 'user' then user_id end as user_id
    from public.ai_token_usage_log
    where created_at >= %(since)s::timestamptz and created_at < %(until)s::timestamptz
        and (%(organization_id)s::uuid is null or organization_id = %(organization_id)s::uuid)
    group by 1, 2
    order by sum(tokens_deducted) desc, count(*) desc, 1, 2
    limit %(top)s::bigint
)
select case when %(by)s::text = 'user' then coalesce(l.user_id::text, '')
        else l.organization_id::text end as key, sum(l.tokens_deducted)::bigint as tokens
from public.ai_token_usage_log l
join used u on u.organization_id = l.organization_id
    and (%(by)s::text <> 'user' or u.user_id is not distinct from l.user_id)
where l.created_at >= %(before)s::timestamptz and l.created_at < %(before_until)s::timestamptz
group by 1

-- name: before_organization_closed
-- The same for staff and the service, from the rollups.
select organization_id::text as key, sum(tokens)::bigint as tokens
from tokenlib.usage_organizations((select array_agg(t.organization_id)
    from tokenlib.top_usage(%(since)s, %(until)s, false, %(top)s, null) as t),
    %(before)s, %(before_until)s, null, 'UTC', false)
where uses > 0
group by 1

-- name: before_user_closed
with used as materialized (
    select array_agg(organization_id order by organization_id, user_id) as organizations,
        array_agg(user_id order by organization_id, user_id) as users
    from tokenlib.top_usage(%(since)s, %(until)s, true, %(top)s, %(organization_id)s)
)
select coalesce(p.user_id::text, '') as key, sum(p.tokens)::bigint as tokens
from used u
cross join lateral tokenlib.usage_persons(u.organizations, u.users, %(before)s, %(before_until)s,
    null, 'UTC') as p
where p.uses > 0
group by 1

-- name: plans_closed
-- The same by plan, or of one plan by feature or all in one.
with figures as (
    select start, case %(by)s::text when 'feature' then feature when 'plan' then plan
            else 'all' end as key,
        sum(uses)::bigint as uses, sum(tokens)::bigint as tokens, sum(refunded)::bigint as refunded
    from tokenlib.usage_plans(%(since)s, %(until)s, %(bucket)s, %(timezone)s, %(plan)s)
    where %(feature)s::text is null or feature = %(feature)s::text
    group by 1, 2
), ranked as (
    select key, row_number() over (order by sum(tokens) desc, sum(uses) desc, nullif(key, ''), key)
            as rank
    from figures group by key
), merged as (
    select f.start, case when r.rank <= %(top)s::bigint then f.key end as key,
        min(least(r.rank, %(top)s::bigint + 1)) as rank, sum(f.uses)::bigint as uses,
        sum(f.tokens)::bigint as tokens, sum(f.refunded)::bigint as refunded
    from figures f join ranked r on r.key = f.key
    group by 1, 2
)
select m.start, m.key, case when m.key is null then 'Other' when m.key = '' then 'Unknown' else
        case %(by)s::text
            when 'feature' then (select title from public.ai_token_features f
                where f.feature = m.key)
            when 'plan' then (select title from public.ai_token_plans p where p.plan = m.key)
            else 'All' end end as label,
    m.uses, m.tokens, m.refunded
from merged m
order by m.start, m.rank

-- name: totals
select c.uses, c.tokens, c.waived, r.refunded, c.tokens - r.refunded as net
from (
    select count(*) as uses, coalesce(sum(l.tokens_deducted), 0)::bigint as tokens,
        coalesce(sum(l.tokens_waived), 0)::bigint as waived
    from public.ai_token_usage_log l
    left join public.organizations o on o.id = l.organization_id
    where l.created_at >= %(since)s::timestamptz and l.created_at < %(until)s::timestamptz
        and (%(organization_id)s::uuid is null or l.organization_id = %(organization_id)s::uuid)
        and (%(user_id)s::uuid is null or l.user_id = %(user_id)s::uuid)
        and (%(feature)s::text is null or l.feature_used = %(feature)s::text)
        and (%(plan)s::text is null or o.plan = %(plan)s::text)
) as c
cross join (
    select coalesce(sum(e.balance_change), 0)::bigint as refunded
    from public.ai_token_events e
    left join public.organizations o on o.id = e.organization_id
    where e.kind = 'refund'
        and e.created_at >= %(since)s::timestamptz and e.created_at < %(until)s::timestamptz
        and (%(organization_id)s::uuid is null or e.organization_id = %(organization_id)s::uuid)
        and (%(user_id)s::uuid is null or e.data ->> 'user_id' = %(user_id)s::uuid::text)
        and (%(feature)s::text is null or e.data ->> 'feature' = %(feature)s::text)
        and (%(plan)s::text is null or o.plan = %(plan)s::text)
) as r

-- name: totals_closed
select coalesce(sum(uses), 0)::bigint as uses, coalesce(sum(tokens), 0)::bigint as tokens,
    coalesce(sum(waived), 0)::bigint as waived, coalesce(sum(refunded), 0)::bigint as refunded,
    coalesce(sum(tokens - refunded), 0)::bigint as net
from tokenlib.usage_between(%(since)s, %(until)s, %(organization_id)s)
where %(feature)s::text is null or feature = %(feature)s::text

-- name: totals_of_plan
-- The same of a plan.
select coalesce(sum(uses), 0)::bigint as uses, coalesce(sum(tokens), 0)::bigint as tokens,
    coalesce(sum(waived), 0)::bigint as waived, coalesce(sum(refunded), 0)::bigint as refunded,
    coalesce(sum(tokens - refunded), 0)::bigint as net
from tokenlib.usage_plans(%(since)s, %(until)s, null, 'UTC', %(plan)s)
where %(feature)s::text is null or feature = %(feature)s::text

-- name: totals_of_user
-- The same of a person, in every organization.
select coalesce(sum(uses), 0)::bigint as uses, coalesce(sum(tokens), 0)::bigint as tokens,
    coalesce(sum(waived), 0)::bigint as waived, coalesce(sum(refunded), 0)::bigint as refunded,
    coalesce(sum(tokens - refunded), 0)::bigint as net
from tokenlib.usage_person(%(since)s, %(until)s, null, 'UTC', %(organization_id)s, %(user_id)s)

-- name: rows
select l.id, l.organization_id, coalesce(o.name, l.organization_id::text) as organization, o.plan,
    l.user_id, coalesce(u.full_name, u.email, l.user_id::text, 'unknown') as user,
    l.feature_used as feature, l.token_type, l.units, l.tokens_deducted as tokens,
    l.tokens_waived as waived, l.remaining_balance,
    -- Not exists: every refund that there is would be read for it, instead of one for each row.
    (select true from public.ai_token_events e where e.organization_id = l.organization_id
        and e.subject_id = l.id and e.kind = 'refund') is not null as refunded,
    l.reservation_id, l.metadata, l.created_at
from public.ai_token_usage_log l
left join public.organizations o on o.id = l.organization_id
left join public.user_profiles u on u.id = l.user_id
where (%(since)s::timestamptz is null or l.created_at >= %(since)s::timestamptz)
    and (%(until)s::timestamptz is null or l.created_at < %(until)s::timestamptz)
    and (%(organization_id)s::uuid is null or l.organization_id = %(organization_id)s::uuid)
    and (%(user_id)s::uuid is null or l.user_id = %(user_id)s::uuid)
    and (%(feature)s::text is null or l.feature_used = %(feature)s::text)
    and (%(token_type)s::text is null or l.token_type = %(token_type)s::text)
    and (%(plan)s::text is null or o.plan = %(plan)s::text)
    and (%(before_at)s::timestamptz is null or (l.created_at, l.organization_id, l.id)
        < (%(before_at)s::timestamptz, %(before_organization)s::uuid, %(before_id)s::uuid))
order by l.created_at desc, l.organization_id desc, l.id desc
limit %(limit)s::bigint
