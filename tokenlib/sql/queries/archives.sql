-- Old log rows in files: what is due, what goes into one, and whether a file still is what its entries
-- in the books say.

-- name: due
-- How far each wallet can be archived. No entry is dated before the one before it, so what is older
-- than a date are the first ones.
create temporary table due as
select organization_id, token_type, min(number) as first, max(number) as through
from public.ai_token_usage_log
where created_at < %(before)s and number is not null
group by organization_id, token_type

-- name: analyze_due
analyze pg_temp.due

-- name: due_rows
select coalesce(sum(through - first + 1), 0)::bigint as rows from pg_temp.due

-- name: too_young
select %(before)s > tokenlib.clock() - interval '92 days' as too_young

-- name: next_due
select organization_id, token_type, first, through from pg_temp.due
where (organization_id, token_type) > (%(organization_id)s, %(token_type)s)
order by organization_id, token_type limit %(limit)s

-- name: rows
select l.id::text, l.organization_id::text, l.user_id::text, l.token_type, l.feature_used,
    l.tokens_deducted, l.remaining_balance, l.metadata::text, l.created_at, l.number, l.units,
    l.tokens_waived, l.reservation_id::text, l.held, l.returned, l.idempotency_key, l.request_hash,
    l.metadata_digest, l.hash_version, l.hash
from unnest(%(organizations)s::uuid[], %(token_types)s::text[], %(firsts)s::bigint[],
    %(throughs)s::bigint[]) as part (organization_id, token_type, first, through)
join public.ai_token_usage_log l on l.organization_id = part.organization_id
    and l.token_type = part.token_type and l.number between part.first and part.through
order by l.organization_id, l.token_type, l.number

-- name: archive
select tokenlib.archive_log(%(organization_id)s, %(token_type)s, %(through)s, %(documents)s,
    %(file)s, %(actor)s) as rows

-- name: files
select distinct data ->> 'file' as file from public.ai_token_events
where kind = 'archived' and (%(only)s::uuid is null or organization_id = %(only)s)
order by 1

-- name: stage
create temporary table archived_log (like public.ai_token_usage_log) on commit drop

-- name: whole_log
-- A child of the log, of this session alone: who reads the log in this transaction reads these rows, too.
create temporary table archived_usage () inherits (public.ai_token_usage_log) on commit drop

-- name: into_whole_log
insert into pg_temp.archived_usage select * from pg_temp.archived_log

-- name: next_file
truncate pg_temp.archived_log

-- name: index_by_time
create index on pg_temp.archived_usage (created_at)

-- name: index_by_user
create index on pg_temp.archived_usage (organization_id, user_id, created_at)

-- name: analyze_whole_log
analyze pg_temp.archived_usage

-- name: roll_up
select tokenlib.roll_archived_usage(%(until)s)

-- name: archived_to
select tokenlib.usage_archived_to() as until

-- name: without_file
select organization_id, token_type, 'archive_missing' as kind, 'event ' || number as entry,
    format('%%s: %%s', data ->> 'file', %(problem)s::text) as detail
from public.ai_token_events
where kind = 'archived' and data ->> 'file' = %(file)s
    and (%(only)s::uuid is null or organization_id = %(only)s)
order by organization_id, token_type, number

-- name: against_file
-- The entry in the books holds the chain's end, so it holds every bit that the chain covers.
with anchors as (
    select e.organization_id, e.token_type, e.number as event, (data ->> 'first')::bigint as first,
        (data ->> 'through')::bigint as through, decode(data ->> 'hash', 'hex') as hash,
        data as said, coalesce((
            select decode(p.data ->> 'hash', 'hex') from public.ai_token_events p
            where p.organization_id = e.organization_id and p.token_type = e.token_type
                and p.kind = 'archived' and p.number < e.number
            order by p.number desc limit 1), '\x') as before
    from public.ai_token_events e
    where kind = 'archived' and data ->> 'file' = %(file)s
        and (%(only)s::uuid is null or organization_id = %(only)s)
), rows as (
    select l.*, row(l.*)::public.ai_token_usage_log as entry,
        lag(hash) over in_order as hash_before, lag(number) over in_order as last
    from pg_temp.archived_log l
    where %(only)s::uuid is null or organization_id = %(only)s
    window in_order as (partition by organization_id, token_type order by number)
), sums as (
    select organization_id, token_type, min(number) as first, max(number) as through,
        count(*) as entries, count(idempotency_key) as keys, sum(tokens_deducted) as deducted,
        sum(tokens_waived) as waived, sum(held) as held,
        sum(case when reservation_id is null then -tokens_deducted else returned end) as change,
        (array_agg(hash order by number desc))[1] as hash,
        (array_agg(remaining_balance order by number desc))[1] as balance
    from rows group by organization_id, token_type
)
select a.organization_id, a.token_type, 'archive_differs' as kind, 'event ' || a.event as entry,
    'the file is not what its entry says' as detail
from anchors a
left join sums s using (organization_id, token_type)
where (a.first, a.through, a.through - a.first + 1, a.hash, (said ->> 'keys')::bigint,
        (said ->> 'tokens_deducted')::bigint, (said ->> 'tokens_waived')::bigint,
        (said ->> 'balance_change')::bigint, (said ->> 'reserved_change')::bigint,
        (said ->> 'balance_after')::bigint)
    is distinct from (s.first, s.through, s.entries, s.hash, s.keys, s.deducted, s.waived, s.change,
        -s.held, s.balance)
union all
select r.organization_id, r.token_type, p.kind, 'log ' || r.number, p.detail
from rows r
left join anchors a using (organization_id, token_type)
cross join lateral (values
    ('archive_unknown_row', a.event is null, 'no entry says that it was archived here'),
    ('log_number_gap', r.number <> coalesce(r.last + 1, a.first), 'does not follow on the one before it'),
    ('log_hash_differs', r.hash is distinct from
        tokenlib.usage_hash(coalesce(r.hash_before, a.before), r.entry),
        'the archived entry or the one before it was changed'),
    ('metadata_differs', r.metadata is not null
        and r.metadata_digest is distinct from tokenlib.digest(r.metadata),
        'the archived metadata is not what was charged'),
    ('archived_key_missing', r.idempotency_key is not null and not exists (
        select from public.ai_token_archived_keys k where k.organization_id = r.organization_id
            and k.idempotency_key = r.idempotency_key), 'its key is not kept'),
    ('reservation_differs', r.reservation_id is not null and not exists (
        select from public.ai_token_reservations h where h.organization_id = r.organization_id
            and h.id = r.reservation_id and h.state = 'deducted' and h.tokens = r.held
            and h.resolved_at = r.created_at), 'its reservation says otherwise')
) as p (kind, wrong, detail)
where p.wrong
