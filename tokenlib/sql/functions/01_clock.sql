-- The clock of the books. The one function that the test template replaces. In plpgsql, which keeps
-- its plan: before PostgreSQL 18 a function in SQL is planned anew for every call.
create function tokenlib.clock() returns timestamptz
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    return clock_timestamp();
end
$$;
