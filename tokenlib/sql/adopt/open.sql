-- Opens the books of every wallet that was taken in, and then holds the tables to our rules. What can
-- be spent stays as it stands: also a period that is over is refreshed only at the next touch.
analyze public.ai_tokens, public.ai_token_usage_log, public.user_profiles;

do $$
declare
    w public.ai_tokens;
    v_plan text;
    v_now timestamptz := tokenlib.clock();
    v_found jsonb;
    v_usable bigint;
begin
    for w in select * from public.ai_tokens order by organization_id, token_type loop
        v_found := jsonb_build_object('balance', w.balance, 'total_allocated', w.total_allocated,
            'total_used', w.total_used);
        v_usable := greatest(w.balance, 0);
        w.balance := v_usable;
        w.total_used := greatest(w.total_used, 0);
        select plan into v_plan from public.organizations where id = w.organization_id;
        w := tokenlib.open_books(w, v_plan, v_now, false, v_found);
        if w.balance <> v_usable then
            raise exception 'wallet % of organization % would change from % to %', w.token_type,
                w.organization_id, v_usable, w.balance using errcode = 'TK001';
        end if;
        w.due_at := tokenlib.next_due(w);
        perform tokenlib.store_wallet(w, v_now);
    end loop;
end
$$;

alter table public.ai_tokens
    add constraint balance_not_negative check (balance >= 0),
    add constraint reserved_not_negative check (reserved >= 0),
    add constraint used_not_negative check (total_used >= 0),
    add constraint pending_not_negative check (pending >= 0),
    add constraint sums_close check (total_allocated = balance + reserved + total_used),
    add constraint ai_tokens_token_type_fkey
        foreign key (token_type) references public.ai_token_types (token_type);
