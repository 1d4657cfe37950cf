"""A server that may forget what it has confirmed is not served from."""

from __future__ import annotations

import pytest

from tokenlib import ConfigurationError, cluster, connect, embedded
from tokenlib.testing import TestDatabase, postgres_programs


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


def test_a_server_that_may_forget_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fsync", "full_page_writes"):
        monkeypatch.setitem(cluster._PROMISES, name, "off")
    with embedded.temporary(postgres_programs()) as server:
        url = plain(server.url("postgres", "postgres"))
        with pytest.raises(ConfigurationError) as refused:
            connect(url)
    assert "runs with fsync and full_page_writes off" in str(refused.value)


@pytest.mark.parametrize("scope", ["database {0}", "role tokenlib_service in database {0}"])
def test_a_login_whose_commits_do_not_wait_is_refused_by_name(
    token_database: TestDatabase, scope: str
) -> None:
    url = plain(token_database.url())
    connect(url).close()
    with token_database.connect("postgres") as operator:
        operator.execute(f"alter {scope.format(token_database.name)} set synchronous_commit = off")
    with pytest.raises(ConfigurationError, match="Set synchronous_commit to on"):
        connect(url)


def test_what_the_gate_waits_for_has_a_bound(token_database: TestDatabase) -> None:
    """T3: the role's own settings, so that also a client other than tokenlib has them."""
    with token_database.connect("tokenlib_service") as service:
        for name in (
            "lock_timeout",
            "statement_timeout",
            "idle_in_transaction_session_timeout",
        ):
            row = service.execute("select setting::int from pg_settings where name = %s", (name,))
            assert (row.fetchone() or (0,))[0] > 0, name
