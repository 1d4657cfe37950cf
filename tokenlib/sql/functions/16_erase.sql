-- Erases the metadata of one person: of their log rows, reservations and quests. Each wallet gets an
-- entry first, with who, why and how many; the log's trigger lets nothing pass without it, and verify
-- finds metadata that is gone without it. The chain still holds, since it covers a digest. The user
-- may be deleted by now.
create function tokenlib.erase_metadata(
    p_organization uuid, p_user uuid, p_actor text, p_reason text,
    out status text, out log_entries bigint, out reservations bigint, out quests bigint
)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_type text;
    w public.ai_tokens;
    v_now timestamptz;
    v_rows bigint;
begin
    perform tokenlib.require_reason(p_reason);
    if not exists (select from public.organizations where id = p_organization)
        and not exists (select from public.ai_tokens where organization_id = p_organization) then
        raise exception '%', p_organization using errcode = 'TK404';
    end if;
    -- Whoever was erased before is still known by the rows: then there is nothing left to do.
    if not exists (select from public.user_profiles
            where id = p_user and organization_id = p_organization)
        and not exists (select from public.ai_token_usage_log
            where organization_id = p_organization and user_id = p_user)
        and not exists (select from public.ai_token_reservations
            where organization_id = p_organization and user_id = p_user)
        and not exists (select from public.quests q
            where q.organization_id = p_organization and q.created_by = p_user) then
        status := 'not_a_member';
        return;
    end if;
    log_entries := 0;
    -- Also a wallet with a hold alone: who deducts it meanwhile would log what is erased here.
    for v_type in
        select token_type from (
            select token_type from public.ai_token_usage_log
            where organization_id = p_organization and user_id = p_user and metadata is not null
            union
            select token_type from public.ai_token_reservations
            where organization_id = p_organization and user_id = p_user and metadata is not null
        ) as found
        order by token_type = 'shared', token_type
    loop
        -- Not brought up to date: the organization may be gone, and erasing must still be possible.
        select * into w from public.ai_tokens
        where organization_id = p_organization and token_type = v_type
        for no key update;
        if not found or w.event_number = 0 then
            w := tokenlib.open_wallet(p_organization, v_type);
            if w.id is null then
                raise exception '%', p_organization using errcode = 'TK404';
            end if;
        end if;
        select count(*) into v_rows from public.ai_token_usage_log
        where organization_id = p_organization and token_type = v_type and user_id = p_user
            and metadata is not null;
        continue when v_rows = 0;
        v_now := greatest(tokenlib.clock(), w.last_entry_at);
        w := tokenlib.append_event(w, 'metadata_erased', v_now, p_actor => p_actor,
            p_reason => p_reason, p_subject => p_user,
            p_data => jsonb_build_object('log_entries', v_rows));
        perform tokenlib.store_wallet(w, v_now);
        update public.ai_token_usage_log
        set metadata = null,
            metadata_digest = coalesce(metadata_digest, tokenlib.digest(metadata))
        where organization_id = p_organization and token_type = v_type and user_id = p_user
            and metadata is not null;
        log_entries := log_entries + v_rows;
    end loop;
    update public.ai_token_reservations set metadata = null
    where organization_id = p_organization and user_id = p_user and metadata is not null;
    get diagnostics reservations = row_count;
    update public.quests q set metadata = '{}'
    where q.organization_id = p_organization and q.created_by = p_user and q.metadata <> '{}';
    get diagnostics quests = row_count;
    insert into public.ai_token_changes (organization_id, action, actor, reason, after, created_at)
    values (p_organization, 'erase_metadata', p_actor, p_reason,
        jsonb_build_object('user_id', p_user, 'log_entries', log_entries,
            'reservations', reservations, 'quests', quests), tokenlib.clock());
    status := 'ok';
end
$$;
