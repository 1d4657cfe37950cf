-- Ends a session of the console in every process, until it would have ended by itself. Twice is once.
create function tokenlib.sign_out(p_session text, p_life interval) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_now constant timestamptz := tokenlib.clock();
begin
    delete from public.tokenlib_signed_out where until <= v_now;
    insert into public.tokenlib_signed_out (session, until)
    values (p_session, v_now + p_life) on conflict (session) do nothing;
end
$$;
