"""Puts the scenarios back to where they start."""

from __future__ import annotations

from uuid import uuid4

from tokenlib.db import statements
from tokenlib.demo import scenes
from tokenlib.demo.cast import PERSONAS, SCENARIOS
from tokenlib.demo.owner import first, only_one
from tokenlib.errors import ConfigurationError
from tokenlib.tokens import Tokens


def reset(owner_url: str, tokens: Tokens) -> None:
    """Bring the scenarios' organizations back to their start, however they were left.

    The books are append-only, so nothing is undone: holds are released, whatever was granted beside
    the allowance expires now, and each wallet's period ends early. The refresh that follows is the
    gate's own: it gives the allowance anew, also to an empty wallet, and the start state is charged
    from there. What was charged before stays in the log and in every report, the same organizations
    keep their ids, and `verify` holds. New organizations at each reset, the other honest way, would
    have filled every list with the old ones.

    Plan, contract, status, pauses, limits, switch (everyone's, too) and quests are put back. The
    rest of the demo is left alone. Raises ConfigurationError where no demo was loaded.
    """
    load, named = statements("load", "demo"), statements("reset", "demo")
    actor = str(PERSONAS["admin"].user_id)
    with only_one(owner_url) as connection:
        found = connection.execute(load["loaded"]).fetchone()
        if found is None:
            raise ConfigurationError("There is no demo here to reset. Load it first.")
        if "rows" in found["after"]:
            raise ConfigurationError("These are rows for measuring: they have no start.")
        with connection.transaction():
            ids = {"ids": scenes.organization_ids(), "actor": actor}
            connection.execute(named["lock_wallets"], ids)
            connection.execute(named["release_holds"], ids)
            for scenario in SCENARIOS.values():
                params = {
                    "organization_id": scenario.organization_id,
                    "plan": scenario.plan,
                    "status": scenario.status,
                    "unlimited": scenario.unlimited,
                    "actor": actor,
                }
                connection.execute(named["restore_plan"], params)
                connection.execute(named["restore_contract"], params)
                connection.execute(named["restore_status"], params)
            for step in (
                "resume_members",
                "clear_switch",
                "clear_switch_for_everyone",
                "clear_limits",
                "expire_grants",
                "drop_scheduled_grants",
                "end_periods",
                "refresh",
                "restore_ends",
            ):
                connection.execute(named[step], ids)
            now = first(connection, load["terms"])["now"]
        scenes.start(connection, tokens, now, uuid4().hex)
