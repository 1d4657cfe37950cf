"""The tests run on the server that was asked for, and no superuser has made what is on it."""

from __future__ import annotations

import subprocess

from tokenlib.cluster import _MAJOR
from tokenlib.testing import TestDatabase, postgres_programs


def test_the_server_is_the_one_that_was_asked_for(token_database: TestDatabase) -> None:
    major = _MAJOR
    if programs := postgres_programs():
        words = [str(programs / "postgres"), "--version"]
        version = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        major = version.split()[2].partition(".")[0]
    with token_database.connect() as connection:
        assert connection.info.server_version // 10_000 == int(major)


def test_what_there_is_was_made_by_an_owner_who_is_no_superuser(
    token_database: TestDatabase,
) -> None:
    with token_database.connect("postgres") as connection:
        owners = connection.execute(
            """select distinct rolname, rolsuper, rolbypassrls
            from (select relowner, relnamespace from pg_class
                union select proowner, pronamespace from pg_proc) as made (owner, schema)
            join pg_roles r on r.oid = owner
            where schema in ('public'::regnamespace, 'tokenlib'::regnamespace)"""
        ).fetchall()
    assert owners == [("tokenlib_owner", False, False)]


def test_what_forbids_a_plan_forbids_to_compile_it(token_database: TestDatabase) -> None:
    """What is forbidden costs ten billion before 18, and what costs that much is compiled first."""
    with token_database.connect() as owner:
        settings = owner.execute(
            "select proconfig from pg_proc where pronamespace = 'tokenlib'::regnamespace"
            " and proconfig::text like '%enable_%=off%'"
        ).fetchall()
    assert settings
    for (config,) in settings:
        assert "jit=off" in config
