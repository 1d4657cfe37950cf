-- Archives the log of one wallet up to an entry whose rows stand in a file by now: an entry of the
-- wallet says what is gone and where the chain ends there, the keys are kept, and the rows go. Nobody
-- but the owner can, and the log's trigger lets no row pass without that entry. p_documents: how many
-- rows in the file have metadata, since an erasure may have come between.
create function tokenlib.archive_log(
    p_organization uuid, p_token_type text, p_through bigint, p_documents bigint,
    p_file text, p_actor text
) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    w public.ai_tokens;
    l public.ai_token_usage_log;
    s record;
    v_now timestamptz;
begin
    -- Not brought up to date: the organization may be gone, and its log is archived all the same.
    select * into strict w from public.ai_tokens
    where organization_id = p_organization and token_type = p_token_type
    for no key update;
    select count(*) as entries, count(metadata) as documents, count(idempotency_key) as keys,
        min(number) as first, min(created_at) as first_at, sum(tokens_deducted) as deducted,
        sum(tokens_waived) as waived, sum(held) as held,
        sum(case when reservation_id is null then -tokens_deducted else returned end) as change
    into strict s from public.ai_token_usage_log
    where organization_id = p_organization and token_type = p_token_type and number <= p_through;
    select * into strict l from public.ai_token_usage_log
    where organization_id = p_organization and token_type = p_token_type and number = p_through;
    if s.entries <> p_through - s.first + 1 or s.documents <> p_documents then
        raise exception 'the log of wallet % of organization % changed while it was archived',
            p_token_type, p_organization using errcode = 'TK003';
    end if;
    if l.created_at > tokenlib.clock() - interval '92 days' then
        raise exception 'must be at least 92 days ago' using errcode = '22023', column = 'before';
    end if;
    v_now := greatest(tokenlib.clock(), w.last_entry_at);
    w := tokenlib.append_event(w, 'archived', v_now, p_actor => p_actor,
        p_data => jsonb_build_object('file', p_file, 'first', s.first, 'through', p_through,
            'hash', encode(l.hash, 'hex'), 'keys', s.keys, 'tokens_deducted', s.deducted,
            'tokens_waived', s.waived, 'balance_change', s.change, 'reserved_change', -s.held,
            'balance_after', l.remaining_balance, 'first_at', tokenlib.utc(s.first_at),
            'last_at', tokenlib.utc(l.created_at)));
    perform tokenlib.store_wallet(w, v_now);
    insert into public.ai_token_archived_keys (organization_id, idempotency_key)
    select p_organization, idempotency_key from public.ai_token_usage_log
    where organization_id = p_organization and token_type = p_token_type and number <= p_through
        and idempotency_key is not null;
    delete from public.ai_token_usage_log
    where organization_id = p_organization and token_type = p_token_type and number <= p_through;
    return s.entries;
end
$$;

-- Makes the rollups of the time before p_to anew, from a log that has all of its rows again: those of the
-- files stand in a child of it that only this session sees (see archives.roll_up). Nobody but the owner can.
-- Others see what was before until it is committed, and close_usage goes on from p_to.
create function tokenlib.roll_archived_usage(p_to timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp set timezone = 'UTC' set work_mem = '64MB' as $$
declare
    v_from timestamptz := date_bin('5 minutes', least(p_to,
        (select min(created_at) from public.ai_token_usage_log),
        (select min(created_at) from public.ai_token_events where kind = 'refund'),
        (select min(last_at) from public.ai_token_refusals)), '2000-01-01 00:00Z');
    v_to timestamptz;
    v_kind text;
    v_step interval;
    v_ids uuid[];
begin
    perform pg_advisory_xact_lock(7305404);
    if not exists (select from public.ai_token_usage_closed where closed_to >= p_to) then
        raise exception 'usage is not closed up to %', p_to
            using errcode = '55000', hint = 'Close usage first.';
    end if;
    delete from public.ai_token_usage_closed;
    delete from public.ai_token_usage_sums;
    delete from public.ai_token_refusal_sums;
    delete from public.ai_token_usage_active;
    delete from public.ai_token_usage_seen;
    delete from public.ai_token_usage_hasty;
    delete from public.ai_token_usage_bursts;
    delete from public.ai_token_usage_windows;
    delete from public.ai_token_usage_pace;
    delete from public.ai_token_usage_costs;
    delete from public.ai_token_usage_cost_sums;
    delete from public.ai_token_usage_days;
    delete from public.ai_token_refusal_windows;
    delete from public.ai_token_refusal_rules;
    delete from public.ai_token_refusal_seen;
    delete from public.ai_token_wallet_sums;
    delete from public.ai_token_usage_kept where plan is not null;
    while v_from < p_to loop
        v_to := least(v_from + interval '1 day', p_to);
        perform tokenlib.fold_sums('all', null, '5 minutes', v_from, v_to);
        perform tokenlib.fold_active(v_from, v_to);
        perform tokenlib.fold_refusals(v_from, v_to);
        perform tokenlib.fold_plans(date_bin('15 minutes', v_to, '2000-01-01 00:00Z'));
        v_from := v_to;
    end loop;
    for v_kind, v_step, v_ids in
        select k.kind, k.step, array_agg(u.scope)
        from (values ('organization', interval '15 minutes'), ('whole', interval '15 minutes'),
            ('user', interval '1 hour')) as k (kind, step)
        join public.ai_token_usage_kept u on u.plan is null and k.kind = case
            when u.user_id is null then 'organization'
            when u.user_id = '00000000-0000-0000-0000-000000000000' then 'whole' else 'user' end
        group by 1, 2
    loop
        perform tokenlib.fold_sums(v_kind, v_ids, v_step, '-infinity', p_to);
    end loop;
    update public.ai_token_usage_kept set closed_to = p_to where plan is null;
    insert into public.ai_token_usage_closed (closed_to) values (p_to);
end
$$;
