-- Opens the books of a wallet that has none: a new one gets its allowance; one that plain SQL or
-- the old system wrote is taken in as it stands. Its usable balance is kept, the sums are made to
-- close, its legacy log rows are counted and digested, and what was wrong becomes a finding.
create function tokenlib.open_books(
    w public.ai_tokens, p_plan text, p_now timestamptz, p_new boolean, p_found jsonb default null
) returns public.ai_tokens
-- In UTC a day has 24 hours, whatever time zone the session is in.
language plpgsql set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
declare
    v_period interval;
    v_block bigint;
    v_allowance bigint := tokenlib.allowance(w.organization_id, p_plan, w.token_type);
    v_balance bigint := w.balance;
    v_used bigint := w.total_used;
    v_limit bigint;
    v_from_allowance bigint;
    v_grant uuid;
    v_rows bigint := 0;
    v_digest text;
    v_logged bigint;
    v_orphans bigint;
    v_found jsonb := coalesce(p_found, jsonb_build_object('balance', w.balance,
        'total_allocated', w.total_allocated, 'total_used', w.total_used));
    v_finding record;
begin
    select period, top_up_block into strict v_period, v_block from public.ai_token_parameters;
    w.plan := p_plan;
    w.allowance := v_allowance;
    w.period_start := w.refresh_date - v_period;
    if p_new then
        w.refresh_date := p_now + v_period;
        w.period_start := p_now;
        v_balance := coalesce(v_allowance, v_block);
        v_used := 0;
    end if;
    v_limit := coalesce(v_allowance, greatest(v_block, v_balance) + v_used);
    v_from_allowance := least(v_balance, greatest(0, v_limit - v_used));

    if w.token_type <> 'shared' then
        insert into public.ai_token_grants (organization_id, token_type, kind, source, amount, used,
            remaining, created_at, effective_at, arrived_at, expires_at)
        values (w.organization_id, w.token_type, 'allowance', 'plan ' || coalesce(p_plan, '?'),
            v_limit, v_limit - v_from_allowance, v_from_allowance, p_now, w.period_start, p_now,
            w.refresh_date)
        returning id into v_grant;
    else
        v_from_allowance := 0;
    end if;
    if v_balance > v_from_allowance then
        insert into public.ai_token_grants (organization_id, token_type, kind, source, amount,
            remaining, created_at, effective_at, arrived_at)
        values (w.organization_id, w.token_type, 'adopted', 'balance before tokenlib',
            v_balance - v_from_allowance, v_balance - v_from_allowance, p_now, p_now, p_now);
    end if;

    select count(*),
        encode(sha256(string_agg(tokenlib.legacy_hash(row(l.*)::public.ai_token_usage_log),
            ''::bytea order by l.created_at, l.id)), 'hex'),
        coalesce(sum(l.tokens_deducted) filter (where l.created_at >= w.period_start), 0),
        count(*) filter (where l.user_id is null or u.id is null)
    into v_rows, v_digest, v_logged, v_orphans
    from public.ai_token_usage_log l
    left join public.user_profiles u
        on u.id = l.user_id and u.organization_id = l.organization_id
    where l.organization_id = w.organization_id and l.token_type = w.token_type
        and l.number is null;
    if not p_new then
        for v_finding in
            select * from (values
                ('emergency_balance', (v_found ->> 'balance')::bigint = 9999,
                    'balance 9999, the old emergency value'),
                ('balance_above_allocated',
                    (v_found ->> 'balance')::bigint > (v_found ->> 'total_allocated')::bigint,
                    format('balance %s above total_allocated %s', v_found ->> 'balance',
                        v_found ->> 'total_allocated')),
                ('used_differs_from_log', (v_found ->> 'total_used')::bigint <> v_logged,
                    format('total_used %s, the log of the period says %s', v_found ->> 'total_used',
                        v_logged)),
                ('log_of_deleted_users', v_orphans > 0,
                    format('%s log rows of users that no longer exist', v_orphans))
            ) as f (kind, present, detail)
            where present
        loop
            insert into public.ai_token_findings (organization_id, token_type, kind, detail, found,
                found_at)
            values (w.organization_id, w.token_type, v_finding.kind, v_finding.detail, v_found,
                p_now);
        end loop;
    end if;

    w.balance := 0;
    w.reserved := 0;
    w.total_used := 0;
    return tokenlib.append_event(w, 'opening', p_now, v_balance, 0, v_used,
        p_subject => v_grant,
        p_reason => case when p_new then 'opened on plan ' || p_plan else 'adopted as found' end,
        p_data => jsonb_build_object('plan', p_plan, 'allowance', v_allowance,
                'period_start', tokenlib.utc(w.period_start),
                'refresh_date', tokenlib.utc(w.refresh_date))
            || case when p_new then '{}'::jsonb else jsonb_build_object('found', v_found) end
            || case when p_new and v_rows = 0 then '{}'::jsonb
                else jsonb_build_object('legacy_rows', v_rows, 'legacy_digest', v_digest) end);
end
$$;
