-- The clock of the books. The one function that the test template replaces.
create function tokenlib.clock() returns timestamptz
language sql volatile set search_path = pg_catalog, pg_temp as $$ select clock_timestamp() $$;
