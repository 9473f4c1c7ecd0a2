"""Which reused tokens to recompute: one policy a file."""

from collections.abc import Mapping
from types import MappingProxyType

from kvblend.blend.selectors.all import AllSelector
from kvblend.blend.selectors.none import NoneSelector
from kvblend.blend.selectors.probe import ProbeSelector
from kvblend.blend.selectors.selector import Selector, num_selected

__all__ = ["SELECTORS", "AllSelector", "NoneSelector", "ProbeSelector", "Selector", "num_selected"]

SELECTORS: Mapping[str, Selector] = MappingProxyType(
    {"probe": ProbeSelector(), "none": NoneSelector(), "all": AllSelector()}
)
