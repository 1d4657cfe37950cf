-- Log rows by the million, for measuring: played set by set inside the server, for the owner alone.
-- Every draw is a hash of the seed and a number, so the same arguments give the same rows. What is
-- played waits in unlogged tables of the owner's; one transaction then stores all of it.

-- name: occupied
select exists (select from public.organizations) or exists (select from public.ai_tokens) as occupied

-- name: clear
drop table if exists tokenlib.demo_organizations, tokenlib.demo_wallets, tokenlib.demo_log,
    tokenlib.demo_events, tokenlib.demo_grants, tokenlib.demo_holds, tokenlib.demo_refusals

-- name: prepare
-- Of each wallet and each entry the figures that the gate's own functions would have left.
create unlogged table tokenlib.demo_organizations (number bigint primary key, id uuid, name text,
    plan text, joined bigint, members bigint, charges bigint, before bigint, pack boolean);
create unlogged table tokenlib.demo_wallets (like public.ai_tokens);
create unlogged table tokenlib.demo_log (like public.ai_token_usage_log);
create unlogged table tokenlib.demo_events (like public.ai_token_events);
create unlogged table tokenlib.demo_grants (like public.ai_token_grants);
create unlogged table tokenlib.demo_holds (like public.ai_token_reservations);
create unlogged table tokenlib.demo_refusals (like public.ai_token_refusals)

-- name: helpers
-- A number from 0 to 1 for a key and a place among its draws, an id for a name, a time for
-- microseconds; and the chains, computed by the functions that the gate and verify use.
create function pg_temp.draw(p_key bigint, p_place bigint) returns double precision
language sql immutable as $$
    select ((hashint8extended(p_key, p_place) >> 11) & 9007199254740991)::double precision
        / 9007199254740992::double precision
$$;
create function pg_temp.named(p_name text) returns uuid
language sql immutable as $$ select md5(p_name)::uuid $$;
create function pg_temp.moment(p_at bigint) returns timestamptz
language sql stable as $$
    select timestamptz '1970-01-01 00:00+00' + p_at * interval '1 microsecond'
$$;
create aggregate pg_temp.usage_chain(public.ai_token_usage_log) (
    sfunc = tokenlib.usage_hash, stype = bytea, initcond = '\x');
create aggregate pg_temp.event_chain(public.ai_token_events) (
    sfunc = tokenlib.event_hash, stype = bytea, initcond = '\x');
create temporary table charges (number bigint, kind integer, period integer, at bigint,
    serial bigint, place bigint, feature text, cost bigint, refunded bigint, chance double precision);
create temporary table periods (number bigint, kind integer, period integer, charges bigint,
    before bigint, gross bigint, net bigint, begins bigint, ends bigint, refreshed bigint,
    organization_id uuid, token_type text, plan text, planned bigint, allowance bigint, extra bigint);
create temporary table played (like public.ai_token_usage_log, variant text, cost bigint,
    base bigint, units_held bigint, opened bigint, at bigint, closes bigint, period_begins bigint);
create temporary table happened (like public.ai_token_events, position integer);
alter table happened alter number drop not null, alter hash drop not null;
create temporary table written (like public.ai_token_events)

-- name: organizations
-- The n-th is sized by n to the minus 1.035: of 100,000 the first makes a tenth of all charges and
-- half of them a dozen or fewer of ten million. A fifth of the small ones is on starter, without AI.
insert into tokenlib.demo_organizations
with sized as (
    select n, case when n > 20 and pg_temp.draw(n, %(seed)s) < 0.2 then 0
            else n::double precision ^ -1.035 end as size,
        floor(%(extra_users)s * (sqrt(n) - sqrt(n - 1))
            / sqrt(%(organizations)s::double precision) + pg_temp.draw(n, %(seed)s + 6))::bigint as more
    from generate_series(1, %(organizations)s::bigint) as n
), counted as (
    select n, size, more,
        floor(%(rows)s * size / sum(size) over () + pg_temp.draw(n, %(seed)s + 1))::bigint as charges
    from sized
)
select n, case when n = 2 then %(member_organization)s else
        pg_temp.named(concat_ws(' ', %(seed)s, 'organization', n)) end,
    concat_ws(' ', (%(first)s::text[])[n %% cardinality(%(first)s::text[]) + 1],
        (%(second)s::text[])[n %% cardinality(%(second)s::text[]) + 1], to_char(n, 'FM000000')),
    case when size = 0 then 'starter'
        when n <= %(organizations)s / 20 or pg_temp.draw(n, %(seed)s + 2) < 0.1 then 'enterprise'
        else 'pro' end,
    -- The large ones have been here from the beginning, the others joined on the way.
    %(now)s::bigint - (%(day)s::bigint * case when n <= %(organizations)s / 10
        then 119.5 - 7.5 * pg_temp.draw(n, %(seed)s + 3)
        else 1 + 118.5 * pg_temp.draw(n, %(seed)s + 3) end)::bigint,
    1 + case when n = 1 then %(extra_users)s - sum(more) over () + more else more end,
    charges, sum(charges) over (order by n) - charges,
    size > 0 and pg_temp.draw(n, %(seed)s + 4) < 0.01
from counted

-- name: slices
-- Organizations in turn, so many that a slice has about as many charges as asked.
select min(number) as first, max(number) as last, sum(charges)::bigint as charges
from (select number, charges, before / %(slice)s as slice, number / %(most)s as crowd
    from tokenlib.demo_organizations) as cut
group by slice, crowd order by 1

-- name: empty_slice
truncate pg_temp.charges, pg_temp.periods, pg_temp.played, pg_temp.happened, pg_temp.written

-- name: charges
-- Who asks for what and when, in the rhythm of the business day and growing.
insert into pg_temp.charges
select o.number, (%(kinds)s::integer[])[f.taste], ((t.at - o.joined) / %(period)s)::integer, t.at,
    c.serial, 1 + floor(o.members * pg_temp.draw(c.serial, %(seed)s + 12) ^ 2)::bigint,
    (%(features)s::text[])[f.taste], v.cost,
    case when v.chance < 0.001 and v.due - t.at > 60000000 and t.at < %(now)s - 60000000
        then v.cost else 0 end,
    v.chance
from tokenlib.demo_organizations o
cross join lateral (
    select greatest(0, (o.joined - %(start)s) / 3600000000 + 1)::integer as hour) as since
cross join lateral (select coalesce((%(hours)s::double precision[])[since.hour + 1], 1) as share) as s
cross join lateral generate_series(o.before + 1, o.before + o.charges) as c (serial)
cross join lateral (
    select %(start)s + 3600000000 * (width_bucket(s.share + (1 - s.share)
            * pg_temp.draw(c.serial, %(seed)s + 10), %(hours)s::double precision[]) - 1)
        + (3600000000 * pg_temp.draw(c.serial, %(seed)s + 11))::bigint as at) as t
cross join lateral (select width_bucket(pg_temp.draw(c.serial, %(seed)s + 13),
    %(tastes)s::double precision[]) as taste) as f
cross join lateral (
    select (%(costs)s::bigint[])[f.taste] as cost, pg_temp.draw(c.serial, %(seed)s + 14) as chance,
        o.joined + ((t.at - o.joined) / %(period)s + 1) * %(period)s as due) as v
where o.number between %(first_number)s and %(last_number)s

-- name: periods
-- Every period of every wallet, used or not: what it gave, what it used, when it was begun. Somebody
-- looks every minute, as `serve` does, and a charge looks at once.
insert into pg_temp.periods
with used as (
    select number, kind, period, count(*) as charges, sum(cost) as gross, sum(cost - refunded) as net,
        min(at) as first
    from pg_temp.charges group by number, kind, period
), played as (
    select o.number, k.kind, p.period, coalesce(u.charges, 0) as charges,
        coalesce(u.gross, 0)::bigint as gross, coalesce(u.net, 0)::bigint as net,
        o.joined + p.period * %(period)s::bigint as begins, u.first, o.id,
        (%(types)s::text[])[k.kind] as token_type, o.plan, o.pack
    from tokenlib.demo_organizations o
    cross join generate_series(1, cardinality(%(types)s::text[])) as k (kind)
    cross join lateral generate_series(0, ((%(now)s - o.joined) / %(period)s)::integer) as p (period)
    left join used u on u.number = o.number and u.kind = k.kind and u.period = p.period
    where o.number between %(first_number)s and %(last_number)s
        and (o.pack or (%(types)s::text[])[k.kind] <> 'shared')
), terms as (
    select p.*, max(gross) over wallet as most,
        case when p.token_type = 'shared' then 0 else coalesce(a.allowance, 0) end as planned,
        sum(charges) over (wallet order by period) - charges as before
    from played p
    left join public.ai_token_allowances a on a.plan = p.plan and a.token_type = p.token_type
    window wallet as (partition by p.number, p.kind)
)
select number, kind, period, charges, before, gross, net, begins, begins + %(period)s,
    case when period = 0 then begins else least(%(now)s, first,
        begins + (60000000 * pg_temp.draw(number * 64 + kind * 8 + period, %(seed)s + 20))::bigint) end,
    id, token_type, plan, planned,
    -- A contract leaves a quarter of its largest period, in two leading digits.
    case when planned >= most then planned
        else ceil(most * 4 / 3.0 / 10 ^ greatest(0, length(most::text) - 2))::bigint
            * (10 ^ greatest(0, length(most::text) - 2))::bigint end,
    case when token_type = 'shared' then 500
        when planned > 0 and pg_temp.draw(number * 8 + kind, %(seed)s + 21) < 0.02 then 25
        else 0 end
from terms

-- name: played
-- The charges in order of each wallet, balance and hash after each. Of a thousand, 20 were held
-- first, 2 came after a hold that was given back, 1 before one that nobody ended, 1 was refunded; and
-- after 20 somebody was refused.
insert into pg_temp.played (id, organization_id, user_id, token_type, feature_used, tokens_deducted,
    remaining_balance, metadata, created_at, number, units, tokens_waived, reservation_id, held,
    returned, idempotency_key, request_hash, metadata_digest, hash_version, hash, variant, cost, base,
    units_held, opened, at, closes, period_begins)
with ordered as (
    select c.serial, c.place, c.feature, c.cost, c.at, c.chance, c.refunded, c.period, c.kind,
        p.number as owner, p.organization_id, p.token_type, p.allowance + p.extra as given,
        p.refreshed, p.ends,
        row_number() over wallet as number, lag(c.at) over wallet as earlier,
        lead(c.at) over wallet as later,
        sum(c.cost - c.refunded) over period as net
    from pg_temp.charges c
    join pg_temp.periods p on p.number = c.number and p.kind = c.kind and p.period = c.period
    window wallet as (partition by p.number, c.kind order by c.period, c.at, c.serial
            rows unbounded preceding),
        period as (partition by p.number, c.kind, c.period order by c.at, c.serial
            rows unbounded preceding)
), told as (
    select o.*, given - net + cost - refunded as base,
        coalesce(least(later, ends), %(now)s) as closes,
        case when owner = 2 and place = 1 then %(member)s else
            pg_temp.named(concat_ws(' ', %(seed)s, 'user', owner, place)) end as user_id,
        case when feature = 'generate_goal' then jsonb_build_object('quarter',
            to_char(pg_temp.moment(at), 'YYYY"-Q"Q')) end as metadata
    from ordered o
), decided as (
    select t.*, case when refunded > 0 then 'refunded'
            when chance >= 0.001 and chance < 0.021 then 'held'
            when chance >= 0.021 and chance < 0.023 then 'released'
            when chance >= 0.023 and chance < 0.024 and least(closes, %(now)s) - at > 1800000000
                and base >= 2 * cost then 'expired'
            when chance >= 0.98 then 'refused' end as variant,
        case when chance >= 0.001 and chance < 0.011 and refunded = 0 and base >= 2 * cost
            then 2 else 1 end as units_held
    from told t
), entries as (
    select d.*, pg_temp.named(concat_ws(' ', %(seed)s, 'charge', serial)) as id,
        case when variant = 'held' then pg_temp.named(concat_ws(' ', %(seed)s, 'hold', serial)) end
            as reservation_id,
        case when variant = 'held' then cost * units_held else 0 end as held,
        case when variant = 'held' then cost * (units_held - 1) else 0 end as returned,
        case when serial %% 2 = 0 then 'request ' || serial end as key,
        case when serial %% 2 = 0 then sha256(convert_to(jsonb_build_array(user_id, feature, units_held,
            metadata)::text, 'UTF8')) end as request_hash,
        case when metadata is not null then sha256(convert_to(metadata::text, 'UTF8')) end as digest,
        pg_temp.moment(at) as created_at,
        greatest(refreshed, at - least(8000000, (at - coalesce(earlier, refreshed)) / 2)) as opened
    from decided d
)
select id, organization_id, user_id, token_type, feature, cost, base - cost, metadata, created_at,
    number, 1, 0, reservation_id, held, returned, key, request_hash, digest, 1,
    pg_temp.usage_chain(row(id, organization_id, user_id, token_type, feature, cost, base - cost,
        metadata, created_at, number, 1, 0, reservation_id, held, returned, key, request_hash,
        digest, 1::smallint, null)::public.ai_token_usage_log)
        over (partition by owner, kind order by period, at, serial rows unbounded preceding),
    variant, cost, base, units_held, opened, at, closes, refreshed
from entries

-- name: happened
-- What is no charge, in its place between them. An event keeps to the half of the gap that is its
-- charge's own, so that none stands in the way of the next.
insert into pg_temp.happened (id, organization_id, token_type, after_log, kind, balance_change,
    reserved_change, used_change, balance_after, effective_at, created_at, actor, reason, subject_id,
    data, hash_version, position)
with periods as (
    select p.*, lag(net) over wallet as net_before,
        jsonb_build_object('allowance', allowance, 'period_start', tokenlib.utc(pg_temp.moment(begins)),
            'refresh_date', tokenlib.utc(pg_temp.moment(ends))) as terms
    from pg_temp.periods p
    window wallet as (partition by number, kind order by period)
), found (name, organization_id, token_type, after_log, kind, balance, reserved, used, after, effective,
    at, actor, reason, subject, data, position) as (
    select concat_ws(' ', 'opening', number, kind), organization_id, token_type, 0, 'opening',
        allowance, 0, 0, allowance, begins, begins, 'system', 'opened on plan ' || plan,
        case when token_type <> 'shared' then
            pg_temp.named(concat_ws(' ', %(seed)s, 'allowance', number, kind, 0)) end,
        jsonb_build_object('plan', plan) || terms, 0
    from periods where period = 0
    union all
    select concat_ws(' ', 'grant', number, kind), organization_id, token_type, 0, 'grant', extra, 0, 0,
        allowance + extra, begins, begins, case when token_type = 'shared' then 'billing' else %(admin)s
        end, case when token_type <> 'shared' then 'Welcome' end,
        pg_temp.named(concat_ws(' ', %(seed)s, 'extra', number, kind)),
        jsonb_build_object('kind', case when token_type = 'shared' then 'purchase' else 'gift' end,
            'source', case when token_type = 'shared' then 'pack_500' else 'gift' end,
            'amount', extra, 'expires_at', tokenlib.utc(pg_temp.moment(begins + 365 * %(day)s::bigint))),
        1
    from periods where period = 0 and extra > 0
    union all
    select concat_ws(' ', 'refresh', number, kind, period), organization_id, token_type, before,
        'refresh', net_before, 0, -net_before, allowance + extra, begins, refreshed, 'system', null,
        null, jsonb_build_object('lapsed', allowance - net_before, 'granted', allowance, 'periods', 1)
            || terms, 4
    from periods where period > 0
    union all
    select concat_ws(' ', e.kind, l.id), l.organization_id, l.token_type, e.after_log, e.kind, e.balance,
        e.reserved, e.used, e.after, coalesce(e.effective, e.at), e.at, e.actor, e.reason, e.subject,
        e.data, e.position
    from pg_temp.played l
    cross join lateral (values
        ('held', 'reserve', l.number - 1, -l.held, l.held, 0, l.base - l.held, null::bigint, l.opened,
            l.user_id::text, l.feature_used, l.reservation_id, true, 5),
        ('released', 'reserve', l.number - 1, -l.cost, l.cost, 0, l.base - l.cost, null, l.opened,
            l.user_id::text, l.feature_used, null, true, 5),
        ('released', 'release', l.number - 1, l.cost, -l.cost, 0, l.base, null,
            l.opened + (l.at - l.opened) / 2, l.user_id::text, 'The call failed', null, false, 6),
        ('refunded', 'refund', l.number, l.cost, 0, -l.cost, l.base, null,
            l.at + least(20000000, (l.closes - l.at) / 2), %(admin)s, 'The answer was unusable', l.id,
            false, 2),
        ('expired', 'reserve', l.number, -l.cost, l.cost, 0, l.base - 2 * l.cost, null, l.at + 60000000,
            l.user_id::text, l.feature_used, null, true, 2),
        ('expired', 'hold_expired', l.number, l.cost, -l.cost, 0, l.base - l.cost,
            l.at + 660000000, l.at + 690000000, 'system', null, null, false, 3)
    ) as v (variant, kind, after_log, balance, reserved, used, after, effective, at, actor, reason,
        subject, terms, position)
    cross join lateral (select v.kind, v.after_log, v.balance, v.reserved, v.used, v.after, v.effective,
        v.at, v.actor, v.reason,
        coalesce(v.subject, pg_temp.named(concat_ws(' ', 'hold beside', l.id))) as subject,
        case when v.kind = 'refund' then jsonb_build_object('feature', l.feature_used, 'user_id',
                l.user_id)
            when v.terms then jsonb_build_object('units', case when v.variant = 'held'
                    then l.units_held else 1 end, 'waived', 0,
                'idempotency_key', case when v.variant = 'held' then l.idempotency_key end,
                'request_hash', case when v.variant = 'held' then encode(l.request_hash, 'hex') end,
                'metadata_digest', case when v.variant = 'held' then encode(l.metadata_digest, 'hex')
                    end, 'expires_at', tokenlib.utc(pg_temp.moment(v.at + 600000000)))
            else jsonb_build_object('lapsed', 0) end as data,
        v.position) as e
    where l.variant = v.variant
)
select pg_temp.named(concat_ws(' ', %(seed)s, name)), organization_id, token_type, after_log, kind,
    balance, reserved, used, after, pg_temp.moment(effective), pg_temp.moment(at), actor, reason,
    subject, data, 1, position
from found

-- name: keep
-- What a slice gave, for the tables of the books.
insert into tokenlib.demo_log
select id, organization_id, user_id, token_type, feature_used, tokens_deducted, remaining_balance,
    metadata, created_at, number, units, tokens_waived, reservation_id, held, returned,
    idempotency_key, request_hash, metadata_digest, hash_version, hash
from pg_temp.played order by created_at;
insert into pg_temp.written
select id, organization_id, token_type, number, after_log, kind, balance_change, reserved_change,
    used_change, balance_after, effective_at, created_at, actor, reason, subject_id, null, null, data,
    hash_version,
    pg_temp.event_chain(row(id, organization_id, token_type, number, after_log, kind, balance_change,
        reserved_change, used_change, balance_after, effective_at, created_at, actor, reason,
        subject_id, null, null, data, hash_version, null)::public.ai_token_events)
        over (partition by organization_id, token_type order by number rows unbounded preceding)
from (select h.id, organization_id, token_type, after_log, kind, balance_change, reserved_change,
        used_change, balance_after, effective_at, created_at, actor, reason, subject_id, data,
        hash_version, row_number() over (partition by organization_id, token_type
            order by after_log, created_at, position) as number
    from pg_temp.happened h) as numbered;
insert into tokenlib.demo_events select * from pg_temp.written

-- name: keep_rest
insert into tokenlib.demo_wallets (id, organization_id, token_type, balance, total_allocated,
    total_used, refresh_date, last_used_at, created_at, updated_at, reserved, period_start, plan,
    allowance, pending, due_at, log_number, log_hash, event_number, event_hash, last_entry_at)
select pg_temp.named(concat_ws(' ', %(seed)s, 'wallet', p.number, p.kind)), p.organization_id,
    p.token_type, p.allowance + p.extra - p.net, p.allowance + p.extra, p.net, pg_temp.moment(p.ends),
    l.created_at, pg_temp.moment(p.begins - p.period * %(period)s::bigint),
    greatest(l.created_at, e.created_at), 0, pg_temp.moment(p.begins), p.plan, p.allowance, p.net,
    pg_temp.moment(p.ends), coalesce(l.number, 0), coalesce(l.hash, '\x'), e.number, e.hash,
    greatest(l.created_at, e.created_at)
from (select distinct on (number, kind) * from pg_temp.periods
    order by number, kind, period desc) as p
left join (select distinct on (organization_id, token_type) * from pg_temp.played
    order by organization_id, token_type, number desc) as l using (organization_id, token_type)
join (select distinct on (organization_id, token_type) * from pg_temp.written
    order by organization_id, token_type, number desc) as e using (organization_id, token_type);
insert into tokenlib.demo_grants (id, organization_id, token_type, kind, source, amount, used,
    used_before, remaining, created_at, effective_at, arrived_at, expires_at, closed_at)
select pg_temp.named(concat_ws(' ', %(seed)s, 'allowance', number, kind, period)), organization_id,
    token_type, 'allowance', 'plan ' || plan, allowance, case when next is null then 0 else net end, 0,
    case when next is null then allowance else 0 end, pg_temp.moment(refreshed), pg_temp.moment(begins),
    pg_temp.moment(refreshed), pg_temp.moment(ends), pg_temp.moment(next)
from (select p.*, lead(refreshed) over (partition by number, kind order by period) as next
    from pg_temp.periods p) as followed
where token_type <> 'shared'
union all
select pg_temp.named(concat_ws(' ', %(seed)s, 'extra', number, kind)), organization_id, token_type,
    case when token_type = 'shared' then 'purchase' else 'gift' end,
    case when token_type = 'shared' then 'pack_500' else 'gift' end, extra, 0, 0, extra,
    pg_temp.moment(begins), pg_temp.moment(begins), pg_temp.moment(begins),
    pg_temp.moment(begins + 365 * %(day)s::bigint), null
from pg_temp.periods where period = 0 and extra > 0;
insert into tokenlib.demo_holds (id, organization_id, user_id, token_type, feature, units, tokens,
    waived, state, idempotency_key, request_hash, metadata, created_at, expires_at, resolved_at)
select e.subject_id, e.organization_id, l.user_id, e.token_type, l.feature_used,
    (e.data ->> 'units')::bigint, e.reserved_change, 0,
    case l.variant when 'held' then 'deducted' else l.variant end,
    case when l.variant = 'held' then l.idempotency_key end,
    case when l.variant = 'held' then l.request_hash end,
    case when l.variant = 'held' then l.metadata end, e.created_at,
    e.created_at + interval '10 minutes', coalesce(ended.created_at, l.created_at)
from pg_temp.played l
join pg_temp.happened e on e.kind = 'reserve'
    and e.subject_id = coalesce(l.reservation_id, pg_temp.named(concat_ws(' ', 'hold beside', l.id)))
left join pg_temp.happened ended on ended.kind in ('release', 'hold_expired')
    and ended.subject_id = e.subject_id
where l.variant in ('held', 'released', 'expired');
insert into tokenlib.demo_refusals
select organization_id, user_id, feature_used, rule, date_trunc('minute', refused_at, 'UTC'),
    min(token_type), max(case when rule = 'insufficient_tokens' then base + 1 else cost end),
    min(base), count(*), min(refused_at), max(refused_at),
    jsonb_strip_nulls(jsonb_build_object('plan', min(plan),
        'limit', case when rule = 'rate_limited' then 'seconds_between_requests' end,
        'allowed', case when rule = 'rate_limited' then 3 end))
from (select l.*, p.plan, l.created_at + interval '1 second' as refused_at,
        case when l.number %% 3 = 0 then 'insufficient_tokens' else 'rate_limited' end as rule
    from pg_temp.played l
    join (select distinct organization_id, plan from pg_temp.periods) as p using (organization_id)
    where l.variant = 'refused' and l.at < %(now)s - 1000000) as refused
group by organization_id, user_id, feature_used, rule, date_trunc('minute', refused_at, 'UTC');
insert into tokenlib.demo_refusals
-- On starter somebody tries it all the same.
select o.id, pg_temp.named(concat_ws(' ', %(seed)s, 'user', o.number, 1)), 'generate_goal',
    'feature_not_in_plan', date_trunc('minute', at, 'UTC'), 'goal_generation', 3, 0, 1, at, at,
    '{"plan": "starter"}'
from (select o.*, pg_temp.moment(joined
        + ((%(now)s - joined) * pg_temp.draw(number, %(seed)s + 22))::bigint) as at
    from tokenlib.demo_organizations o
    where number between %(first_number)s and %(last_number)s and plan = 'starter') as o

-- name: by_time
create index on tokenlib.demo_log using brin (created_at) with (pages_per_range = 32);
analyze tokenlib.demo_log

-- name: indexes
-- What stands in the way of ten million rows, to be put back just as it was; nothing where the owner
-- could not put it back.
select t.relname as table, coalesce(c.conname, i.relname) as name, c.conname is not null as constraint,
    coalesce(pg_get_constraintdef(c.oid), pg_get_indexdef(x.indexrelid)) as definition
from pg_index x
join pg_class t on t.oid = x.indrelid
join pg_class i on i.oid = x.indexrelid
left join pg_constraint c on c.conindid = x.indexrelid and c.conrelid = x.indrelid
where x.indrelid = any(array['public.ai_tokens', 'public.ai_token_usage_log', 'public.ai_token_events',
    'public.ai_token_grants', 'public.ai_token_reservations', 'public.ai_token_refusals']::regclass[])
    and has_schema_privilege('public', 'create')
order by t.relname, x.indisprimary desc, i.relname

-- name: store_people
insert into public.organizations (id, name, plan, created_at)
select id, name, plan, pg_temp.moment(joined) from tokenlib.demo_organizations order by number;
insert into public.user_profiles (id, organization_id, full_name, email, role, created_at)
select case when o.number = 2 and place = 1 then %(member)s else
        pg_temp.named(concat_ws(' ', %(seed)s, 'user', o.number, place)) end,
    o.id, concat_ws(' ', g.given, to_char(o.number, 'FM000000') || '-' || place),
    lower(g.given) || '.' || to_char(o.number, 'FM000000') || '-' || place || '@example.org',
    case when place = 1 then 'owner' else 'member' end, pg_temp.moment(o.joined)
from tokenlib.demo_organizations o
cross join lateral generate_series(1, o.members) as place
cross join lateral (select (%(given)s::text[])[1 + floor(cardinality(%(given)s::text[])
    * pg_temp.draw(o.number * 8192 + place, %(seed)s + 5))::integer] as given) as g
order by o.number, place

-- name: store_staff
insert into public.tokenlib_staff (user_id, email, full_name, role, grants_per_day)
values (%s, %s, %s, %s, %s)

-- name: store_wallets
insert into public.ai_tokens select * from tokenlib.demo_wallets order by organization_id, token_type;
insert into public.ai_token_organization_allowances (organization_id, token_type, allowance)
select w.organization_id, w.token_type, w.allowance
from tokenlib.demo_wallets w
join public.ai_token_allowances a on a.plan = w.plan and a.token_type = w.token_type
where w.allowance is distinct from a.allowance;
insert into public.ai_token_events select * from tokenlib.demo_events order by created_at, id;
insert into public.ai_token_grants select * from tokenlib.demo_grants order by created_at, id;
insert into public.ai_token_reservations select * from tokenlib.demo_holds order by created_at, id;
insert into public.ai_token_refusals select * from tokenlib.demo_refusals order by first_at, user_id

-- name: store_log
-- A day at a time, in the order that real use would have written it.
insert into public.ai_token_usage_log
select * from tokenlib.demo_log
where created_at >= pg_temp.moment(%(since)s) and created_at < pg_temp.moment(%(until)s)
order by created_at, id

-- name: vacuum
vacuum (analyze) public.organizations, public.user_profiles, public.ai_tokens,
    public.ai_token_organization_allowances, public.ai_token_usage_log, public.ai_token_events,
    public.ai_token_grants, public.ai_token_reservations, public.ai_token_refusals
