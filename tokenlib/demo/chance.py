"""Chance from a seed: the same words give the same draws on every machine and Python."""

from __future__ import annotations

from random import Random


def chance(*words: object) -> Random:
    """A generator of its own for these words, so that no draw depends on the order of others."""
    return Random(" ".join(map(str, words)))  # noqa: S311 - a demo, nothing to guess


def draw_id(random: Random) -> str:
    """A UUID of version 4 as the database writes it."""
    drawn = f"{random.getrandbits(128):032x}"
    return f"{drawn[:8]}-{drawn[8:12]}-4{drawn[13:16]}-a{drawn[17:20]}-{drawn[20:]}"
