"""The AI features of the demo: pure computations on small inputs, one for each catalog feature."""

from collections.abc import Mapping
from types import MappingProxyType

from tokenlib.features import efficiency, forecast, insight, leads, quests, strategy
from tokenlib.features.feature import DemoFeature, FeatureResult
from tokenlib.features.inputs import InvalidInput

__all__ = ["FEATURES", "DemoFeature", "FeatureResult", "InvalidInput"]

FEATURES: Mapping[str, DemoFeature] = MappingProxyType(
    {
        module.FEATURE.name: module.FEATURE
        for module in (leads, quests, strategy, forecast, insight, efficiency)
    }
)
"""Every demo feature by its name in the catalog."""
