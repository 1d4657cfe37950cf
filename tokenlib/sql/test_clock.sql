-- For test databases only: a clock that can be stopped and moved.
create table tokenlib.test_clock (stopped_at timestamptz, ahead interval not null default '0');
insert into tokenlib.test_clock default values;
grant select on tokenlib.test_clock to tokenlib_service, tokenlib_reader, authenticated;
create or replace function tokenlib.clock() returns timestamptz
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    return (select coalesce(stopped_at, clock_timestamp() + ahead) from tokenlib.test_clock);
end
$$;
