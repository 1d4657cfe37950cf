-- Do the books close? Every check returns its problems; none means it does.

-- name: organizations
-- Also those whose wallets are gone; with how many rows there are to read of each.
select id, sum(rows)::bigint as rows from (
    select organization_id as id, count(*) as rows from public.ai_tokens group by 1
    union all
    select organization_id, count(*) from public.ai_token_events group by 1
    union all
    select organization_id, count(*) from public.ai_token_usage_log where number is not null group by 1
) as found
group by id order by id

-- name: unbounded
-- An operator's check may take as long as there is to read; the gate's statements may not.
set local statement_timeout = 0

-- name: counts
select
    (select count(*) from public.ai_tokens where organization_id = any(%(ids)s)) as wallets,
    (select count(*) from public.ai_token_usage_log
        where organization_id = any(%(ids)s) and number is not null)
    + (select count(*) from public.ai_token_events where organization_id = any(%(ids)s)) as entries

-- name: wallet_sums
-- The constraints, recomputed: a dropped constraint is found too.
select organization_id, token_type, 'sums_do_not_close' as kind, 'wallet' as entry,
    format('allocated %%s, balance %%s, reserved %%s, used %%s', total_allocated, balance, reserved,
        total_used) as detail
from public.ai_tokens
where organization_id = any(%(ids)s) and (total_allocated <> balance + reserved + total_used
    or balance < 0 or reserved < 0 or total_used < 0)

-- name: wallet_entries
-- Replays the entries of each wallet in order, in one pass: the balance after each, and the figures at
-- the end. What was archived counts as one, with the sums of its entry; before it no balance can be
-- replayed. Entries whose wallet is gone nothing else here would look at.
with archived as (
    select organization_id, token_type, max((data ->> 'through')::bigint) as through
    from public.ai_token_events
    where organization_id = any(%(ids)s) and kind = 'archived'
    group by organization_id, token_type
), entries as (
    select organization_id, token_type, number as log_position, 0::bigint as event_position,
        null::bigint as event, 1 as entries,
        case when reservation_id is null then -tokens_deducted else returned end as balance_change,
        -held as reserved_change, tokens_deducted as used_change, remaining_balance as balance_after
    from public.ai_token_usage_log
    where organization_id = any(%(ids)s) and number is not null
    union all
    select organization_id, token_type, after_log, number, number, 1,
        balance_change, reserved_change, used_change, balance_after
    from public.ai_token_events
    where organization_id = any(%(ids)s)
    union all
    select organization_id, token_type, (data ->> 'through')::bigint, 0, number, 0,
        (data ->> 'balance_change')::bigint, (data ->> 'reserved_change')::bigint,
        (data ->> 'tokens_deducted')::bigint, (data ->> 'balance_after')::bigint
    from public.ai_token_events
    where organization_id = any(%(ids)s) and kind = 'archived'
), replayed as (
    select *, sum(balance_change) over in_order as balance
    from entries
    window in_order as (partition by organization_id, token_type
        order by log_position, event_position rows unbounded preceding)
), totals as materialized (
    select organization_id, token_type, sum(entries) as entries, sum(balance_change) as balance,
        sum(reserved_change) as reserved, sum(used_change) as used,
        array_agg(array[log_position, event, balance_after, balance])
            filter (where balance <> balance_after) as wrong
    from replayed group by organization_id, token_type
)
select t.organization_id, t.token_type, 'balance_after_differs' as kind,
    coalesce('event ' || t.wrong[i][2], 'log ' || t.wrong[i][1]) as entry,
    format('says %%s, the entries before it give %%s', t.wrong[i][3], t.wrong[i][4]) as detail
from totals t
cross join generate_subscripts(t.wrong, 1) as i
where not exists (
    select from archived a where a.organization_id = t.organization_id
        and a.token_type = t.token_type and a.through > t.wrong[i][1])
union all
select w.organization_id, w.token_type, 'wallet_differs_from_entries', 'wallet',
    format('balance %%s, reserved %%s, used %%s; its entries give %%s, %%s, %%s', w.balance,
        w.reserved, w.total_used, t.balance, t.reserved, t.used)
from public.ai_tokens w
left join totals t using (organization_id, token_type)
where w.organization_id = any(%(ids)s) and w.event_number > 0
    and (w.balance, w.reserved, w.total_used) is distinct from (t.balance, t.reserved, t.used)
union all
select t.organization_id, t.token_type, 'wallet_missing', 'wallet',
    format('there are %%s entries, and no wallet', t.entries)
from totals t
where not exists (select from public.ai_tokens w
    where w.organization_id = t.organization_id and w.token_type = t.token_type)

-- name: log_chain
-- One pass in the order of the index: what is compared is an entry and the one before it, and the
-- first with where an archive ends. The hash is tokenlib.charge_hash, and the digest tokenlib.digest,
-- written out: to call them takes as long as to compute them. Metadata may be gone only where an entry
-- says that this person's was erased.
with cuts as (
    select distinct on (organization_id, token_type) organization_id, token_type,
        (data ->> 'through')::bigint as through, decode(data ->> 'hash', 'hex') as end_hash
    from public.ai_token_events
    where organization_id = any(%(ids)s) and kind = 'archived'
    order by organization_id, token_type, number desc
), chained as (
    select l.*, coalesce(lag(l.hash) over in_order, cuts.end_hash, '\x'::bytea) as before,
        coalesce(lag(l.number) over in_order, cuts.through, 0::bigint) as last
    from public.ai_token_usage_log l
    left join cuts using (organization_id, token_type)
    where l.organization_id = any(%(ids)s) and l.number is not null
    window in_order as (partition by l.organization_id, l.token_type order by l.number)
), looked_at as (
    select organization_id, token_type, number, last, user_id, number <> last + 1 as gap,
        hash is distinct from sha256(before || convert_to(json_build_array(hash_version, id,
            organization_id, token_type, number, user_id, feature_used, units, tokens_deducted,
            tokens_waived, remaining_balance, reservation_id, held, returned, idempotency_key,
            encode(request_hash, 'hex'), encode(metadata_digest, 'hex'),
            (extract(epoch from created_at) * 1000000)::bigint)::text, 'UTF8')) as altered,
        metadata is not null and metadata_digest
            is distinct from sha256(convert_to(metadata::text, 'UTF8')) as other,
        metadata is null and metadata_digest is not null as gone
    from chained
)
select l.organization_id, l.token_type, p.kind, 'log ' || l.number as entry, p.detail
from looked_at l
cross join lateral (values
    ('log_number_gap', gap, format('follows number %%s', last)),
    ('log_hash_differs', altered, 'the entry or the one before it was changed'),
    ('metadata_differs', other, 'the metadata is not what was charged'),
    ('metadata_missing', gone and not exists (
            select from public.ai_token_events e
            where e.organization_id = l.organization_id and e.token_type = l.token_type
                and e.kind = 'metadata_erased' and e.subject_id = l.user_id
                and e.after_log >= l.number),
        'the metadata is gone, and no entry says that it was erased')
) as p (kind, wrong, detail)
where (gap or altered or other or gone) and p.wrong

-- name: log_heads
-- The wallet knows how many there are, archived ones included, and the hash of the last one.
select w.organization_id, w.token_type, 'log_head_differs' as kind, 'wallet' as entry,
    format('the wallet counts %%s log entries, there are %%s%%s', w.log_number, n.entries,
        case when w.log_number = n.entries then ', ending otherwise' else '' end) as detail
from public.ai_tokens w
left join (
    select organization_id, token_type, count(*) as entries
    from public.ai_token_usage_log
    where organization_id = any(%(ids)s) and number is not null
    group by organization_id, token_type
) as c using (organization_id, token_type)
left join lateral (
    select hash from public.ai_token_usage_log l
    where l.organization_id = w.organization_id and l.token_type = w.token_type and number is not null
    order by number desc limit 1
) as head on true
left join lateral (
    select (data ->> 'through')::bigint as through, decode(data ->> 'hash', 'hex') as hash
    from public.ai_token_events e
    where e.organization_id = w.organization_id and e.token_type = w.token_type
        and kind = 'archived'
    order by number desc limit 1
) as cut on true
cross join lateral (select coalesce(c.entries, 0) + coalesce(cut.through, 0) as entries) as n
where w.organization_id = any(%(ids)s)
    and (w.log_number, w.log_hash)
        is distinct from (n.entries, coalesce(head.hash, cut.hash, '\x'::bytea))

-- name: archives
-- What was archived follows on what was archived before, and is gone; its keys are kept.
with archives as (
    select organization_id, token_type, 'event ' || number as entry,
        (data ->> 'first')::bigint as first, (data ->> 'through')::bigint as through,
        lag((data ->> 'through')::bigint, 1, 0::bigint) over (
            partition by organization_id, token_type order by number) as last,
        (data ->> 'keys')::bigint as keys
    from public.ai_token_events
    where organization_id = any(%(ids)s) and kind = 'archived'
)
select organization_id, token_type, 'archive_gap' as kind, entry,
    format('begins with entry %%s, and %%s is the last before it', first, last) as detail
from archives where first <> last + 1 or through < first
union all
select organization_id, token_type, 'archived_and_there', entry,
    format('log entry %%s was archived, and is in the log', number)
from archives a
cross join lateral (
    select number from public.ai_token_usage_log l
    where l.organization_id = a.organization_id and l.token_type = a.token_type
        and number between a.first and a.through
    limit 1) as found
union all
select organization_id, min(token_type), 'archived_keys_differ', 'keys',
    format('%%s keys were archived, %%s are kept', sum(a.keys), k.kept)
from archives a
join lateral (select count(*) as kept from public.ai_token_archived_keys k
    where k.organization_id = a.organization_id) as k on true
group by organization_id, k.kept having sum(a.keys) <> k.kept

-- name: event_chain
-- As log_chain, by tokenlib.event_hash.
with chained as (
    select e.*, lag(hash, 1, '\x'::bytea) over in_order as before,
        lag(number, 1, 0::bigint) over in_order as last
    from public.ai_token_events e
    where organization_id = any(%(ids)s)
    window in_order as (partition by organization_id, token_type order by number)
), looked_at as (
    select organization_id, token_type, number, last, number <> last + 1 as gap,
        hash is distinct from sha256(before || convert_to(json_build_array(hash_version, id,
            organization_id, token_type, number, after_log, kind, balance_change, reserved_change,
            used_change, balance_after, (extract(epoch from effective_at) * 1000000)::bigint,
            (extract(epoch from created_at) * 1000000)::bigint, actor, reason, subject_id,
            idempotency_key, encode(request_hash, 'hex'), data)::text, 'UTF8')) as altered
    from chained
)
select organization_id, token_type, p.kind, 'event ' || number as entry, p.detail
from looked_at
cross join lateral (values
    ('event_number_gap', gap, format('follows number %%s', last)),
    ('event_hash_differs', altered, 'the entry or the one before it was changed')
) as p (kind, wrong, detail)
where (gap or altered) and p.wrong

-- name: event_heads
-- The wallet knows how many there are, and the hash of the last one.
select w.organization_id, w.token_type, 'event_head_differs' as kind, 'wallet' as entry,
    format('the wallet counts %%s events, there are %%s%%s', w.event_number, coalesce(c.entries, 0),
        case when w.event_number = coalesce(c.entries, 0) then ', ending otherwise' else '' end)
        as detail
from public.ai_tokens w
left join (
    select organization_id, token_type, count(*) as entries
    from public.ai_token_events
    where organization_id = any(%(ids)s)
    group by organization_id, token_type
) as c using (organization_id, token_type)
left join lateral (
    select hash from public.ai_token_events e
    where e.organization_id = w.organization_id and e.token_type = w.token_type
    order by number desc limit 1
) as head on true
where w.organization_id = any(%(ids)s)
    and (w.event_number, w.event_hash)
        is distinct from (coalesce(c.entries, 0), coalesce(head.hash, '\x'::bytea))

-- name: grant_sums
-- What open grants still hold = what can be spent + what waits to be drawn + holds not yet drawn.
select w.organization_id, w.token_type, 'grants_differ' as kind, 'wallet' as entry,
    format('open grants hold %%s, the wallet accounts for %%s', g.remaining,
        w.balance + w.pending + h.undrawn) as detail
from public.ai_tokens w
cross join lateral (
    select coalesce(sum(remaining), 0) as remaining from public.ai_token_grants
    where organization_id = w.organization_id and token_type = w.token_type
        and closed_at is null and arrived_at is not null) as g
cross join lateral (
    select coalesce(sum(tokens), 0) as undrawn from public.ai_token_reservations
    where organization_id = w.organization_id and token_type = w.token_type
        and state = 'held' and drawn is null) as h
where w.organization_id = any(%(ids)s) and w.event_number > 0
    and g.remaining <> w.balance + w.pending + h.undrawn

-- name: grants
-- Each grant that somebody gave is what its entry says, and each such entry has its grant.
with given as (
    select organization_id, token_type, subject_id as id, data ->> 'kind' as kind,
        data ->> 'source' as source, (data ->> 'amount')::bigint as amount, effective_at,
        data ->> 'expires_at' as expires_at
    from public.ai_token_events
    where organization_id = any(%(ids)s) and kind in ('grant', 'grant_scheduled') and data ? 'kind'
), kept as (
    select organization_id, token_type, id, kind, source, amount, effective_at,
        to_char(expires_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as expires_at
    from public.ai_token_grants
    where organization_id = any(%(ids)s) and kind in ('purchase', 'gift', 'adjustment')
)
select organization_id, coalesce(g.token_type, k.token_type) as token_type,
    'grant_differs' as kind, 'grant ' || id as entry,
    format('it is %%s, its entry says %%s',
        case when k is null then 'gone' else concat_ws(' ', k.amount, k.kind, 'from', k.source,
            'until', coalesce(k.expires_at, 'further notice')) end,
        case when g is null then 'nothing' else concat_ws(' ', g.amount, g.kind, 'from', g.source,
            'until', coalesce(g.expires_at, 'further notice')) end) as detail
from given g
full join kept k using (organization_id, id)
where (g.token_type, g.kind, g.source, g.amount, g.effective_at, g.expires_at)
    is distinct from (k.token_type, k.kind, k.source, k.amount, k.effective_at, k.expires_at)

-- name: wallet_terms
-- What the wallet goes by: its plan, its allowance and its period are those of its last
-- entry about them, and it wakes no later than something falls due.
select w.organization_id, w.token_type, 'terms_differ' as kind, 'wallet' as entry, p.detail
from public.ai_tokens w
cross join lateral (
    select coalesce(data ->> 'to', data ->> 'plan') as plan from public.ai_token_events e
    where e.organization_id = w.organization_id and e.token_type = w.token_type
        and kind in ('opening', 'plan_change')
    order by number desc limit 1) as planned
cross join lateral (
    select (data ->> 'allowance')::bigint as allowance from public.ai_token_events e
    where e.organization_id = w.organization_id and e.token_type = w.token_type
        and kind in ('opening', 'plan_change', 'refresh')
    order by number desc limit 1) as allowed
cross join lateral (
    select (data ->> 'period_start')::timestamptz as begins,
        (data ->> 'refresh_date')::timestamptz as ends
    from public.ai_token_events e
    where e.organization_id = w.organization_id and e.token_type = w.token_type
        and kind in ('opening', 'refresh')
    order by number desc limit 1) as period
cross join lateral (
    select least(w.refresh_date,
        (select min(expires_at) from public.ai_token_reservations
            where organization_id = w.organization_id and token_type = w.token_type
                and state = 'held'),
        (select min(case when arrived_at is null then effective_at else expires_at end)
            from public.ai_token_grants
            where organization_id = w.organization_id and token_type = w.token_type
                and closed_at is null and (arrived_at is null or kind <> 'allowance'))) as due) as next
cross join lateral (values
    (w.plan is distinct from planned.plan,
        format('plan %%s, its entries say %%s', w.plan, planned.plan)),
    (w.allowance is distinct from allowed.allowance,
        format('allowance %%s, its entries say %%s', coalesce(w.allowance::text, 'unlimited'),
            coalesce(allowed.allowance::text, 'unlimited'))),
    ((w.period_start, w.refresh_date) is distinct from (period.begins, period.ends),
        format('a period from %%s to %%s, its entries say from %%s to %%s', w.period_start,
            w.refresh_date, period.begins, period.ends)),
    (w.due_at > next.due, format('it wakes at %%s, something is due at %%s', w.due_at, next.due))
) as p (wrong, detail)
where w.organization_id = any(%(ids)s) and w.event_number > 0 and p.wrong

-- name: wallet_dates
-- No entry is dated before the one before it: a wallet dated ahead would date all that follow.
select w.organization_id, w.token_type, 'last_entry_differs' as kind, 'wallet' as entry,
    format('it dates its last entry %%s, that is dated %%s', w.last_entry_at, last.at) as detail
from public.ai_tokens w
cross join lateral (
    select greatest(
        (select created_at from public.ai_token_usage_log l
            where l.organization_id = w.organization_id and l.token_type = w.token_type
                and number is not null
            order by number desc limit 1),
        (select created_at from public.ai_token_events e
            where e.organization_id = w.organization_id and e.token_type = w.token_type
            order by number desc limit 1)) as at) as last
where w.organization_id = any(%(ids)s) and w.event_number > 0
    and w.last_entry_at is distinct from last.at

-- name: hold_sums
select w.organization_id, w.token_type, 'holds_differ' as kind, 'wallet' as entry,
    format('live reservations hold %%s, the wallet says %%s', h.held, w.reserved) as detail
from public.ai_tokens w
cross join lateral (
    select coalesce(sum(tokens), 0) as held from public.ai_token_reservations
    where organization_id = w.organization_id and token_type = w.token_type
        and state = 'held') as h
where w.organization_id = any(%(ids)s) and h.held <> w.reserved

-- name: reservations
-- Each reservation holds what its entry says, and ended as its entries say, once.
with made as (
    select organization_id, token_type, subject_id as id, reserved_change as tokens
    from public.ai_token_events
    where organization_id = any(%(ids)s) and kind = 'reserve'
), ended as (
    select organization_id, reservation_id as id, 'deducted' as state, held as tokens
    from public.ai_token_usage_log
    where organization_id = any(%(ids)s) and reservation_id is not null
    union all
    select organization_id, subject_id,
        case kind when 'release' then 'released' else 'expired' end, -reserved_change
    from public.ai_token_events
    where organization_id = any(%(ids)s) and kind in ('release', 'hold_expired')
), kept as (
    select organization_id, token_type, id, tokens, state, resolved_at
    from public.ai_token_reservations where organization_id = any(%(ids)s)
), archived as (
    select organization_id, token_type, max((data ->> 'last_at')::timestamptz) as last_at
    from public.ai_token_events
    where organization_id = any(%(ids)s) and kind = 'archived'
    group by organization_id, token_type
)
select organization_id, coalesce(m.token_type, k.token_type) as token_type,
    'reservation_differs' as kind, 'reservation ' || id as entry,
    format('it is %%s with %%s tokens, its entries say %%s with %%s', coalesce(k.state, 'gone'),
        coalesce(k.tokens, 0), coalesce(e.state, 'held'), coalesce(m.tokens, 0)) as detail
from made m
full join kept k using (organization_id, id)
left join ended e using (organization_id, id)
where (k.state, k.tokens, coalesce(e.tokens, k.tokens))
    is distinct from (coalesce(e.state, 'held'), m.tokens, m.tokens)
    -- Deducted by an entry that was archived: the files tell.
    and not (e.state is null and k.state = 'deducted' and k.tokens = m.tokens and exists (
        select from archived a where a.organization_id = k.organization_id
            and a.token_type = k.token_type and a.last_at >= k.resolved_at))

-- name: reservation_terms
-- A row is named by its columns, here as above: on a shard of Citus its own type is another.
-- Whose a reservation is, what for, under which key and until when: what its entries say. Metadata
-- may be gone, since it can be erased.
-- Grouped and not joined: one pass, whatever the planner believes about how few holds there are.
with parts as (
    select organization_id, id, row(r.*)::public.ai_token_reservations as r,
        null::public.ai_token_events as e, null::timestamptz as at
    from public.ai_token_reservations r where organization_id = any(%(ids)s)
    union all
    select organization_id, subject_id, null, row(e.*)::public.ai_token_events, null
    from public.ai_token_events e
    where organization_id = any(%(ids)s) and kind = 'reserve'
    union all
    select organization_id, reservation_id, null, null, created_at from public.ai_token_usage_log
    where organization_id = any(%(ids)s) and reservation_id is not null
    union all
    select organization_id, subject_id, null, null, created_at from public.ai_token_events
    where organization_id = any(%(ids)s) and kind in ('release', 'hold_expired')
), holds as (
    select organization_id, id, (array_agg(r) filter (where (r).id is not null))[1] as r,
        (array_agg(e) filter (where (e).id is not null))[1] as e, max(at) as ended_at
    from parts group by organization_id, id
)
select organization_id, (e).token_type, 'reservation_terms_differ' as kind,
    'reservation ' || h.id as entry, 'its entries say otherwise: ' || p.names as detail
from holds h
cross join lateral (
    select string_agg(name, ', ') as names
    from (values
        ('token_type', (h.r).token_type <> (h.e).token_type),
        ('user_id', (h.r).user_id::text <> (h.e).actor),
        ('feature', (h.r).feature <> (h.e).reason),
        ('units', (h.r).units is distinct from ((h.e).data ->> 'units')::bigint),
        ('waived', (h.r).waived is distinct from ((h.e).data ->> 'waived')::bigint),
        ('idempotency_key', (h.r).idempotency_key is distinct from (h.e).data ->> 'idempotency_key'),
        ('request_hash', encode((h.r).request_hash, 'hex') is distinct from (h.e).data ->> 'request_hash'),
        ('metadata', (h.r).metadata is not null and encode(tokenlib.digest((h.r).metadata), 'hex')
            is distinct from (h.e).data ->> 'metadata_digest'),
        ('created_at', (h.r).created_at <> (h.e).created_at),
        ('expires_at', (h.r).expires_at is distinct from ((h.e).data ->> 'expires_at')::timestamptz),
        ('resolved_at', (h.r).resolved_at is distinct from h.ended_at
            and not (h.ended_at is null and (h.r).state = 'deducted' and exists (
                select from public.ai_token_events a
                where a.organization_id = h.organization_id and a.token_type = (h.r).token_type
                    and a.kind = 'archived'
                    and (a.data ->> 'last_at')::timestamptz >= (h.r).resolved_at)))
    ) as compared (name, wrong)
    where wrong) as p
where (h.r).id is not null and (h.e).id is not null and p.names is not null

-- name: keys
-- One key, one charge or grant: what the unique indexes promise, recomputed.
select organization_id, min(token_type) as token_type, 'key_used_twice' as kind,
    'key ' || idempotency_key as entry, format('%%s entries have it', count(*)) as detail
from (
    select organization_id, token_type, idempotency_key from public.ai_token_usage_log
    where organization_id = any(%(ids)s) and idempotency_key is not null
    union all
    select organization_id, token_type, idempotency_key from public.ai_token_events
    where organization_id = any(%(ids)s) and idempotency_key is not null
    union all
    select organization_id, 'archived', idempotency_key from public.ai_token_archived_keys
    where organization_id = any(%(ids)s)
) as keyed
group by organization_id, idempotency_key having count(*) > 1

-- name: record
select tokenlib.record_verification(%(wallets)s, %(entries)s, %(problems)s) as recorded

-- name: erasures
-- As log_chain has it, for rows of the old system.
select l.organization_id, l.token_type, 'metadata_missing' as kind,
    'log ' || l.id as entry,
    'the metadata is gone, and no entry says that it was erased' as detail
from public.ai_token_usage_log l
where l.organization_id = any(%(ids)s) and l.number is null
    and l.metadata is null and l.metadata_digest is not null
    and not exists (
        select from public.ai_token_events e
        where e.organization_id = l.organization_id and e.token_type = l.token_type
            and e.kind = 'metadata_erased' and e.subject_id = l.user_id
            and e.after_log >= 0)

-- name: legacy_rows
-- The opening entry holds how many rows of the old system there were, and their digest.
with legacy as (
    select organization_id, token_type, count(*) as rows,
        encode(sha256(string_agg(tokenlib.legacy_hash(row(l.*)::public.ai_token_usage_log),
            ''::bytea order by created_at, id)), 'hex') as digest
    from public.ai_token_usage_log l
    where organization_id = any(%(ids)s) and number is null
    group by organization_id, token_type
)
select w.organization_id, w.token_type, 'legacy_rows_differ' as kind, 'event 1' as entry,
    format('the opening entry knows %%s rows of the old system, there are %%s%%s',
        coalesce(e.data ->> 'legacy_rows', '0'), coalesce(l.rows, 0),
        case when coalesce(e.data ->> 'legacy_rows', '0') = coalesce(l.rows, 0)::text
            then ', not the same' else '' end) as detail
from public.ai_tokens w
join public.ai_token_events e on e.organization_id = w.organization_id
    and e.token_type = w.token_type and e.number = 1
left join legacy l on l.organization_id = w.organization_id and l.token_type = w.token_type
where w.organization_id = any(%(ids)s)
    and (coalesce(e.data ->> 'legacy_rows', '0'), e.data ->> 'legacy_digest')
        is distinct from (coalesce(l.rows, 0)::text, l.digest)
