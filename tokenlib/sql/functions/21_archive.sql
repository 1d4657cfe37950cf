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
