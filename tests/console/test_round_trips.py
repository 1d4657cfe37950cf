"""How often a page goes to the database: on a server far away each time is a wait.

The limits are what the pages need now. Who adds a question asks it together with the others of its
place (`reports.together`), or raises the limit and says so in docs/performance.md.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.console.opening import Open
from tokenlib import demo, pool
from tokenlib.reports import Reports, Viewer
from tokenlib.tokens import Tokens

MOST = {
    "overview.py": 84,
    "organizations.py": 30,
    "organization.py": 46,
    "usage.py": 50,
    "spenders.py": 40,
    "health.py": 48,
    "settings.py": 26,
    "quests.py": 38,
    "features.py": 38,
}


# What the driver waits for and how often that goes to the server: BEGIN and COMMIT go, too.
TRIPS = {"_execute_gen": 1, "_commit_gen": 2}
END = {"_exit_gen": 1}


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each wait for the database, in round trips."""
    made: list[int] = []
    wait = pool.Connection.wait

    def counted(self: pool.Connection, gen: Any, *given: Any, **named: Any) -> Any:
        # What is sent together is waited for at its end.
        counts = END if self.pgconn.pipeline_status else TRIPS
        made.append(counts.get(gen.__name__, 0))
        return wait(self, gen, *given, **named)

    monkeypatch.setattr(pool.Connection, "wait", counted)
    return made


@pytest.mark.parametrize("page", MOST)
def test_a_page_goes_to_the_database_no_more_than_it_did(
    look: Open, trips: list[int], page: str
) -> None:
    one = str(demo.SCENARIOS["healthy"].organization_id)
    app = look(page, **({"id": one} if page == "organization.py" else {}))
    trips.clear()
    app.run()
    assert not app.exception
    assert 0 < sum(trips) <= MOST[page]


def test_what_is_asked_together_shares_a_transaction(kept_tokens: Tokens, trips: list[int]) -> None:
    admin = demo.PERSONAS["admin"].user_id
    reports = Reports(kept_tokens.database, Viewer(admin, "tokenlib_reader"))
    reports.staff()  # connects, and learns how to become somebody here
    trips.clear()
    alone = (reports.staff(), reports.limits(), reports.parameters())
    apart = sum(trips)
    trips.clear()
    with reports.together() as asked:
        assert (asked.staff(), asked.limits(), asked.parameters()) == alone
    assert sum(trips) == 6  # begin, become, three questions, commit
    assert apart == 3  # each with its become in one
