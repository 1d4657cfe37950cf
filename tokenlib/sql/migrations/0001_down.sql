-- Takes tokenlib out of a database. Host tables stay. The append-only log goes with it: export first.
drop table public.ai_token_verifications, public.ai_token_latencies, public.ai_token_changes, public.ai_token_findings,
    public.ai_token_refusals, public.ai_token_reservations, public.ai_token_grants,
    public.ai_token_events, public.ai_token_usage_log, public.ai_tokens, public.tokenlib_staff,
    public.tokenlib_signed_out, public.tokenlib_staff_claims,
    public.ai_token_user_settings, public.ai_token_organization_allowances,
    public.ai_token_organization_settings, public.ai_token_limits, public.ai_token_parameters,
    public.ai_token_packs, public.ai_token_features, public.ai_token_allowances,
    public.ai_token_plans, public.ai_token_types, public.quests, public.ai_token_api_keys,
    public.ai_token_api_requests, public.ai_token_usage_closed, public.ai_token_usage_sums, public.ai_token_usage_kept,
    public.ai_token_usage_windows, public.ai_token_usage_active, public.ai_token_usage_seen,
    public.ai_token_usage_pace, public.ai_token_usage_days,
    public.ai_token_usage_hasty, public.ai_token_usage_bursts, public.ai_token_usage_costs, public.ai_token_wallet_sums,
    public.ai_token_usage_cost_sums, public.ai_token_refusal_sums, public.ai_token_refusal_windows, public.ai_token_refusal_rules,
    public.ai_token_refusal_seen,
    public.ai_token_archived_keys cascade;
do $$
declare
    v_item record;
begin
    for v_item in
        select policyname, tablename from pg_catalog.pg_policies
        where schemaname = 'public' and tablename in ('organizations', 'user_profiles')
            and policyname in ('service_reads', 'staff_reads', 'member_reads_own')
    loop
        execute format('drop policy %I on public.%I', v_item.policyname, v_item.tablename);
    end loop;
    for v_item in
        select p.oid::regprocedure as signature from pg_catalog.pg_proc p
        where p.pronamespace = 'tokenlib'::regnamespace
    loop
        execute format('drop function if exists %s cascade', v_item.signature);
    end loop;
end
$$;
drop type tokenlib.answer cascade;
