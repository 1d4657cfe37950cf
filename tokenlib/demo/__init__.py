"""Demo data: four months of sixty made-up organizations, and every situation a console must show.

tokenlib.demo.load(owner_url, tokens)    once; a second call does nothing
tokenlib.demo.load_rows(owner_url, tokens, Size(10_000_000))   into an empty database, to measure
tokenlib.demo.reset(owner_url, tokens)   the scenarios back to their start
tokenlib.demo.legacy.figures(url)        the faults of the old system, from its own database
"""

from tokenlib.demo import legacy
from tokenlib.demo.cast import PERSONAS, SCENARIOS, Persona, Scenario
from tokenlib.demo.loading import DemoSummary, load, load_rows, loaded
from tokenlib.demo.resetting import reset
from tokenlib.demo.rows import Size

__all__ = [
    "PERSONAS",
    "SCENARIOS",
    "DemoSummary",
    "Persona",
    "Scenario",
    "Size",
    "legacy",
    "load",
    "load_rows",
    "loaded",
    "reset",
]
