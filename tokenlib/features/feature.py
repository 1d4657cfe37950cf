"""What every demo feature is: a name in the catalog, a real example, and a computation."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FeatureResult:
    """What a run found: a sentence or two, and the rows behind them, ready for JSON."""

    title: str
    summary: str
    rows: tuple[Mapping[str, str | int | float], ...]


@dataclass(frozen=True, slots=True)
class DemoFeature:
    """A feature that can be run on small inputs, without network or database.

    `run` computes only from what it is given, gives the same result for the same input, and
    raises `InvalidInput` (a ValueError that names the field) when the input is not usable.
    """

    name: str
    title: str
    description: str
    example: Mapping[str, object]
    run: Callable[[Mapping[str, object]], FeatureResult]

    def sample(self) -> dict[str, object]:
        """A copy of the example that the caller may edit and pass to `run`."""
        return deepcopy(dict(self.example))
