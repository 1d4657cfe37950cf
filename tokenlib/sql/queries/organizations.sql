-- Finding an organization, and what stands around its wallets. Of the host's own tables only the
-- columns that every product has are read.

-- name: organizations
-- One row at least, with the total: a page past the end still says how long the list is. Wallets are
-- read for the page only, unless the list is narrowed or sorted by what they hold: else nothing of
-- `held` is wanted, and the planner leaves it out. `caseless` is what every match has, too: what is in
-- neither case is compared in half the time.
with clock as materialized (select tokenlib.clock() as now),
by_email as (
    select organization_id from public.user_profiles
    where %(pattern)s::text is not null and email like %(caseless)s::text
        and email ilike %(pattern)s::text
), near as (
    select organization_id from public.ai_tokens
    where %(near)s::integer is not null and total_allocated > 0
        and total_used * 5 >= total_allocated * 4 and not (allowance is null and plan is not null)
        and %(near)s::integer = case when total_used >= total_allocated then 100 else 80 end
), candidates as (
    select o.id, o.name, o.plan, coalesce(s.status, 'active') as status
    from public.organizations o
    left join public.ai_token_organization_settings s on s.organization_id = o.id
    where (%(organization_id)s::uuid is null or o.id = %(organization_id)s::uuid)
        and (%(pattern)s::text is null
            or (o.name like %(caseless)s::text and o.name ilike %(pattern)s::text)
            or o.id between %(id_from)s::uuid and %(id_to)s::uuid
            or o.id in (select organization_id from by_email))
        and (%(plan)s::text is null or o.plan = %(plan)s::text)
        and (%(status)s::text is null or coalesce(s.status, 'active') = %(status)s::text)
        and (%(near)s::integer is null or o.id in (select organization_id from near))
), held as (
    select a.organization_id, sum(a.balance) as balance, sum(a.total_used) as total_used,
        min(a.refresh_date) as refresh_date, max(a.last_used_at) as last_used_at,
        min(case when a.allowance is null and a.plan is not null then 3
            when a.total_allocated <= 0 then null
            when a.balance * 2 > a.total_allocated then 3
            when a.balance * 5 >= a.total_allocated then 2
            else 1 end) filter (where a.token_type <> 'shared') as rank
    from public.ai_tokens a
    group by a.organization_id
), week as (
    -- The pace of overview.run_outs, for this order alone.
    select organization_id, token_type, sum(tokens_deducted) as tokens
    from public.ai_token_usage_log
    where %(sort)s::text = 'run_out' and created_at >= (select now - interval '7 days' from clock)
        and created_at < (select now from clock)
    group by organization_id, token_type
    having sum(tokens_deducted) > 0
), run_outs as (
    select a.organization_id, min(r.at) as at
    from week w
    join public.ai_tokens a
        on a.organization_id = w.organization_id and a.token_type = w.token_type
    cross join clock c
    -- Compared before it is computed: a slow pace would overflow the calendar.
    cross join lateral (select case when a.balance::numeric * 604800
        < w.tokens * extract(epoch from interval '365 days')
        then c.now + (a.balance * 7 / w.tokens)::float8 * interval '1 day' end as at) as r
    where (a.allowance is not null or a.plan is null)
        and (a.token_type = 'shared' or r.at < a.refresh_date)
    group by a.organization_id
), filtered as (
    select c.*, case %(sort)s::text when 'plan' then p.position when 'balance' then h.balance
            when 'level' then h.rank when 'total_used' then h.total_used
            when 'refresh_date' then extract(epoch from h.refresh_date)
            when 'last_used_at' then extract(epoch from h.last_used_at)
            when 'run_out' then extract(epoch from r.at) end as key,
        case %(sort)s::text when 'name' then c.name when 'status' then c.status end as text
    from candidates c
    left join public.ai_token_plans p on %(sort)s::text = 'plan' and p.plan = c.plan
    left join held h on h.organization_id = c.id
    left join run_outs r on r.organization_id = c.id
    where %(level)s::text is null
        or coalesce((array['red', 'yellow', 'green'])[h.rank], 'none') = %(level)s::text
), page as (
    select id, row_number() over () as place from (
        select id from filtered
        order by case when %(descending)s::boolean then text end desc nulls last,
            case when not %(descending)s::boolean then text end nulls last,
            case when %(descending)s::boolean then -key else key end nulls last, name, id
        limit %(limit)s::bigint offset %(offset)s::bigint) as sorted
)
select t.total, r.*
from (select count(*) as total from filtered) as t
left join tokenlib.organization_rows(array(select id from page order by place)) as r on true
order by r.place

-- name: organizations_sorted
-- All of them, in an order that their wallets decide, for staff and the service.
select t.total, r.*
from (select count(*) as total from public.organizations) as t
left join tokenlib.organization_rows(tokenlib.organizations_by_wallets(%(sort)s,
    %(descending)s, %(limit)s, %(offset)s)) as r on true
order by r.place

-- name: organizations_closed
-- The same where wallets narrow the list, or sort what something else narrows.
with clock as materialized (select tokenlib.clock() as now),
moved as materialized (
    select m.organization_id from clock c
    cross join lateral tokenlib.organizations_moved(tokenlib.wallets_closed_to(c.now), c.now) as m
), by_email as (
    select organization_id from public.user_profiles
    where %(pattern)s::text is not null and email like %(caseless)s::text
        and email ilike %(pattern)s::text
), held as not materialized (
    select s.* from public.ai_token_wallet_sums s
    where s.organization_id not in (select organization_id from moved)
    union all
    select * from tokenlib.sum_wallets(array(select organization_id from moved))
), run_outs as (
    -- Where nothing narrows the list, of those alone who can be on its page.
    select organization_id, extract(epoch from min(run_out_at)) as at
    from tokenlib.run_outs(interval '365 days', case when %(descending)s::boolean
            or %(near)s::integer is not null or coalesce(%(pattern)s::text, %(plan)s::text,
            %(status)s::text, %(level)s::text) is not null then 1000000000
        else (%(offset)s::bigint + %(limit)s::bigint) * (
            select count(*) from public.ai_token_types) end, true)
    where %(sort)s::text = 'run_out'
    group by organization_id
), filtered as (
    select o.id, o.name, case %(sort)s::text when 'plan' then p.position
            when 'balance' then h.balance when 'level' then h.rank
            when 'total_used' then h.total_used
            when 'refresh_date' then extract(epoch from h.refresh_date)
            when 'last_used_at' then extract(epoch from h.last_used_at)
            when 'run_out' then r.at end as key,
        case %(sort)s::text when 'name' then o.name
            when 'status' then coalesce(s.status, 'active') end as text
    from public.organizations o
    left join public.ai_token_organization_settings s on s.organization_id = o.id
    left join public.ai_token_plans p on %(sort)s::text = 'plan' and p.plan = o.plan
    left join held h on h.organization_id = o.id
        and (%(sort)s::text in ('balance', 'level', 'total_used', 'refresh_date', 'last_used_at')
            or %(level)s::text is not null)
    left join run_outs r on r.organization_id = o.id
    where (%(pattern)s::text is null
            or (o.name like %(caseless)s::text and o.name ilike %(pattern)s::text)
            or o.id between %(id_from)s::uuid and %(id_to)s::uuid
            or o.id in (select organization_id from by_email))
        and (%(plan)s::text is null or o.plan = %(plan)s::text)
        and (%(status)s::text is null or coalesce(s.status, 'active') = %(status)s::text)
        -- An array: few are, and each is looked up.
        and (%(near)s::integer is null or o.id = any (array(select organization_id from held
            where case when %(near)s::integer = 80 then near_80 else near_100 end)))
        and (%(level)s::text is null
            or coalesce((array['red', 'yellow', 'green'])[h.rank], 'none') = %(level)s::text)
), page as (
    select id, row_number() over () as place from (
        select id from filtered
        order by case when %(descending)s::boolean then text end desc nulls last,
            case when not %(descending)s::boolean then text end nulls last,
            case when %(descending)s::boolean then -key else key end nulls last, name, id
        limit %(limit)s::bigint offset %(offset)s::bigint) as sorted
)
select t.total, r.*
from (select count(*) as total from filtered) as t
left join tokenlib.organization_rows(array(select id from page order by place)) as r on true
order by r.place

-- name: members
-- Each table is told which organization: a Citus then leaves the question to its node as a whole.
with clock as materialized (select tokenlib.clock() as now)
select u.organization_id, u.id as user_id, coalesce(u.full_name, u.email, u.id::text) as user,
    u.email, u.role, s.paused_at, l.calls, l.tokens, p.last_used_at
from public.user_profiles u
cross join clock c
left join public.ai_token_user_settings s
    on s.organization_id = %(organization_id)s::uuid and s.user_id = u.id
cross join lateral (
    select count(*) as calls, coalesce(sum(tokens_deducted), 0)::bigint as tokens
    from public.ai_token_usage_log
    where organization_id = %(organization_id)s::uuid and user_id = u.id
        and created_at >= c.now - interval '30 days') as l
cross join lateral (
    select max(created_at) as last_used_at from public.ai_token_usage_log
    where organization_id = %(organization_id)s::uuid and user_id = u.id) as p
where u.organization_id = %(organization_id)s::uuid
order by l.tokens desc, l.calls desc, 3, u.id

-- name: members_closed
-- The same for staff and the service, from the rollups.
with clock as materialized (select tokenlib.clock() as now),
used as materialized (
    select t.user_id, sum(t.uses)::bigint as calls, sum(t.tokens)::bigint as tokens
    from clock c
    cross join lateral (
        select user_id, uses, tokens
        from tokenlib.top_usage(c.now - interval '720 hours', c.now, true, 1000000000,
            %(organization_id)s)
        union all
        select user_id, count(*), sum(tokens_deducted)::bigint from public.ai_token_usage_log
        where organization_id = %(organization_id)s::uuid and created_at >= c.now
        group by user_id) as t
    group by t.user_id
)
select u.organization_id, u.id as user_id, coalesce(u.full_name, u.email, u.id::text) as user,
    u.email, u.role, s.paused_at, coalesce(l.calls, 0) as calls, coalesce(l.tokens, 0) as tokens,
    p.last_used_at
from public.user_profiles u
left join public.ai_token_user_settings s
    on s.organization_id = u.organization_id and s.user_id = u.id
left join used l on l.user_id = u.id
cross join lateral (
    select max(created_at) as last_used_at from public.ai_token_usage_log
    where organization_id = u.organization_id and user_id = u.id) as p
where u.organization_id = %(organization_id)s::uuid
order by coalesce(l.tokens, 0) desc, coalesce(l.calls, 0) desc, 3, u.id

-- name: quests
select id, organization_id, title, description, quarter, target_amount, progress, status, metadata,
    created_by, created_at
from public.quests
where organization_id = %(organization_id)s::uuid
order by created_at desc, id
limit %(limit)s::bigint
