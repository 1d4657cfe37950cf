-- What holds for everyone or for one organization, who is staff, and who changed what.

-- name: limits
-- Those of everyone first (organization_id null), then the organizations that differ.
select l.organization_id, o.name as organization, l.requests_per_minute, l.seconds_between_requests,
    l.tokens_per_request, l.output_units_per_request, l.alert_tokens_per_hour, l.failed_attempts
from public.ai_token_limits l
left join public.organizations o on o.id = l.organization_id
order by l.organization_id is not null, o.name, l.organization_id

-- name: output_limit
-- Of a request in one organization; null: none.
select output_units_per_request from public.ai_token_limits
where scope in (%(organization_id)s::uuid, '00000000-0000-0000-0000-000000000000')
order by scope desc limit 1

-- name: parameters
select p.period, p.hold_life, p.top_up_block, p.token_cost_cents,
    case when p.mode_until is null or p.mode_until > tokenlib.clock() then p.mode else 'enforce' end
        as mode,
    case when p.mode_until > tokenlib.clock() then p.mode_until end as mode_until
from public.ai_token_parameters p

-- name: staff
select s.user_id, s.email, s.full_name, s.role, s.grants_per_day, g.tokens as granted_today,
    s.created_at, s.issuer
from public.tokenlib_staff s
cross join lateral (
    select coalesce(sum((e.data ->> 'amount')::bigint), 0)::bigint as tokens
    from public.ai_token_events e
    where e.kind in ('grant', 'grant_scheduled') and e.actor = s.user_id::text
        and e.created_at >= date_trunc('day', tokenlib.clock(), 'UTC')) as g
where coalesce(s.until, 'infinity') > tokenlib.clock()
order by s.role, s.full_name, s.user_id

-- name: request_limits
-- What the HTTP API takes a minute from an organization as a whole: everyone's first, then each own.
select null::uuid as organization_id, null::text as organization,
    p.organization_requests_per_minute as requests_per_minute
from public.ai_token_parameters p
union all
(select s.organization_id, coalesce(o.name, s.organization_id::text), s.requests_per_minute
from public.ai_token_organization_settings s
left join public.organizations o on o.id = s.organization_id
where s.requests_per_minute is not null
order by 2, 1)

-- name: keys
-- Those that work first. Nothing of their secrets but what they begin with.
select k.id, k.organization_id, o.name as organization, k.name, k.start, k.scopes,
    coalesce(s.full_name, k.owner_id::text) as owner, k.requests_per_minute,
    k.seconds_between_requests, k.tokens_per_request, k.output_units_per_request, k.limit_users,
    k.created_at, k.expires_at, k.last_used_at,
    case when k.old_until > tokenlib.clock() then k.old_until end as old_until, k.revoked_at,
    case when k.revoked_at is not null then 'revoked'
        when k.expires_at <= tokenlib.clock() then 'expired' else 'good' end as state
from public.ai_token_api_keys k
left join public.organizations o on o.id = k.organization_id
left join public.tokenlib_staff s on s.user_id = k.owner_id
order by k.revoked_at is not null or coalesce(k.expires_at <= tokenlib.clock(), false),
    k.created_at desc, k.id

-- name: former_staff
-- By the e-mail address that they had: nothing else of them is kept.
select distinct on (1) (c.before ->> 'user_id')::uuid as user_id, c.before ->> 'email' as name
from public.ai_token_changes c
where c.action = 'set_staff' and c.before ->> 'user_id' is not null
    and not exists (select from public.tokenlib_staff s
        where s.user_id::text = c.before ->> 'user_id' and coalesce(s.until, 'infinity') > tokenlib.clock())
order by 1, c.created_at desc

-- name: changes
-- Both books of what people did: changes, and the wallet entries that a person caused.
-- Each gives its latest, by an index.
with done as (
    (select c.id, c.organization_id, c.action, c.actor, c.reason, c.before, c.after, c.created_at
    from public.ai_token_changes c
    where (%(organization_id)s::uuid is null or c.organization_id = %(organization_id)s::uuid)
        and (%(action)s::text is null or c.action = %(action)s::text)
        and (%(actor)s::text is null or c.actor = %(actor)s::text)
        and (%(before_at)s::timestamptz is null or (c.created_at, c.id)
            < (%(before_at)s::timestamptz, %(before_id)s::uuid))
    order by c.created_at desc, c.id desc limit %(limit)s::bigint)
    union all
    -- Of releases those that somebody else than the hold's owner decided.
    (select e.id, e.organization_id, e.kind, e.actor, e.reason, null,
        jsonb_build_object('token_type', e.token_type, 'subject_id', e.subject_id,
            'balance_change', e.balance_change, 'balance_after', e.balance_after) || e.data,
        e.created_at
    from public.ai_token_events e
    where (e.kind in ('grant', 'grant_scheduled', 'refund', 'finding_settled')
            and e.actor <> 'system' or e.kind = 'release' and e.data ? 'user_id')
        and (%(organization_id)s::uuid is null or e.organization_id = %(organization_id)s::uuid)
        and (%(action)s::text is null or e.kind = %(action)s::text)
        and (%(actor)s::text is null or e.actor = %(actor)s::text)
        and (%(before_at)s::timestamptz is null or (e.created_at, e.id)
            < (%(before_at)s::timestamptz, %(before_id)s::uuid))
    order by e.created_at desc, e.id desc limit %(limit)s::bigint)
), former as (
    select distinct on (1) before ->> 'user_id' as actor, before ->> 'email' as name
    from public.ai_token_changes where action = 'set_staff' and before ->> 'user_id' is not null
    order by 1, created_at desc
)
select d.id, d.organization_id, o.name as organization, d.action, d.actor,
    coalesce(s.full_name, f.name, d.actor) as actor_name, d.reason, d.before, d.after, d.created_at
from done d
left join public.organizations o on o.id = d.organization_id
left join public.tokenlib_staff s on s.user_id::text = d.actor
left join former f on f.actor = d.actor
order by d.created_at desc, d.id desc
limit %(limit)s::bigint

-- name: cost_effects
-- What another cost of a feature would have done since a midnight (UTC) 30 days ago. What a wallet was
-- charged more is carried along its own entries within a period: where a cost passes what was left, the
-- wallet would have run out.
-- Both ends of the time are columns: under row security an index takes no `now - interval`.
with clock as materialized (
    select c.now, date_bin('24 hours', c.now, '2000-01-01 00:00Z') - interval '720 hours' as since
    from (select tokenlib.clock() as now) as c
), used as materialized (
    select l.organization_id, l.token_type, count(*) as uses
    from clock c
    join public.ai_token_usage_log l on l.created_at >= c.since and l.created_at < c.now
    where l.feature_used = %(feature)s::text
    group by l.organization_id, l.token_type
), entries as (
    select l.organization_id, l.token_type, coalesce(l.number, 0) as position, 0 as turn,
        l.created_at, l.id, l.remaining_balance,
        -- What cost nothing stays free.
        case when l.feature_used = %(feature)s::text and l.tokens_deducted > 0 then l.units else 0
            end as units,
        case when l.feature_used = %(feature)s::text and l.tokens_deducted > 0
            then l.tokens_deducted else 0 end as tokens
    from clock c
    join public.ai_token_usage_log l on l.created_at >= c.since and l.created_at < c.now
    join used u on u.organization_id = l.organization_id and u.token_type = l.token_type
    union all
    -- A refresh stands between two entries of the log and begins a period.
    select e.organization_id, e.token_type, e.after_log, 1, e.created_at, e.id, null, 0, 0
    from clock c
    join public.ai_token_events e
        on e.kind = 'refresh' and e.created_at >= c.since and e.created_at < c.now
    join used u on u.organization_id = e.organization_id and u.token_type = e.token_type
), phased as (
    select *, sum(turn) over (partition by organization_id, token_type
        order by position, turn, created_at, id) as period
    from entries
), running as (
    select *, sum(units) over of_period as carried_units, sum(tokens) over of_period as carried
    from phased
    window of_period as (partition by organization_id, token_type, period
        order by position, turn, created_at, id)
), wallets as (
    select r.organization_id, r.token_type, u.uses, sum(r.units)::bigint as units,
        sum(r.tokens)::bigint as tokens,
        -- A cost passes what was left if cost * units - tokens > balance.
        min(case when r.carried_units > 0 then floor(
            (greatest(r.remaining_balance, 0) + r.carried) / r.carried_units) + 1 end)::bigint as lowest
    from running r
    join used u on u.organization_id = r.organization_id and u.token_type = r.token_type
    group by r.organization_id, r.token_type, u.uses
), limited as (
    select w.*, case when a.allowance is not null or a.plan is null then w.lowest end as runs_out_from
    from wallets w
    -- A subquery: see citus.sql.
    left join (select organization_id, token_type, allowance, plan from public.ai_tokens) as a
        on a.organization_id = w.organization_id and a.token_type = w.token_type
), ranked as (
    select *, row_number() over (order by runs_out_from, units desc, organization_id, token_type)
        as rank
    from limited
), effects as (
    select organization_id, min(rank) as rank, sum(uses)::bigint as uses,
        sum(units)::bigint as units, sum(tokens)::bigint as tokens,
        min(runs_out_from) as runs_out_from
    from ranked
    group by organization_id
), page as (
    select e.*, count(*) over () as used_by,
        count(*) filter (where runs_out_from <= %(cost)s::bigint) over () as run_outs,
        (sum(units) over ())::bigint as all_units, (sum(tokens) over ())::bigint as all_tokens
    from effects e
    order by rank limit %(limit)s::bigint
)
select c.since, e.organization_id, coalesce(o.name, e.organization_id::text) as name, o.plan, e.uses,
    e.units, e.tokens, e.units * %(cost)s::bigint as new_tokens, e.runs_out_from, e.used_by,
    e.run_outs, e.all_units, e.all_tokens
from clock c
left join page e on true
left join public.organizations o on o.id = e.organization_id
order by e.rank

-- name: cost_effects_closed
-- The same for staff and the service, from what the closing keeps.
select e.since, e.organization_id, coalesce(o.name, e.organization_id::text) as name, o.plan, e.uses,
    e.units, e.tokens, e.units * %(cost)s::bigint as new_tokens, e.runs_out_from, e.used_by,
    e.run_outs, e.all_units, e.all_tokens
from tokenlib.cost_effects(%(feature)s, %(cost)s, %(limit)s) as e
left join public.organizations o on o.id = e.organization_id
order by e.place
