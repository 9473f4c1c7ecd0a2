"""Which reused tokens to recompute: one policy a file.

`SELECTORS` serve: they pick from the probe's scores. Their rivals are in `eval/rivals/`, which knows all by name.
"""

from collections.abc import Mapping
from types import MappingProxyType

from kvblend.blend.selectors.all import AllSelector
from kvblend.blend.selectors.lab import Computed, LabPrompt, LabSelector, Serving
from kvblend.blend.selectors.none import NoneSelector
from kvblend.blend.selectors.probe import ProbeSelector
from kvblend.blend.selectors.selector import Selector, highest, num_selected

__all__ = [
    "SELECTORS",
    "AllSelector",
    "Computed",
    "LabPrompt",
    "LabSelector",
    "NoneSelector",
    "ProbeSelector",
    "Selector",
    "Serving",
    "highest",
    "num_selected",
]

SELECTORS: Mapping[str, Selector] = MappingProxyType(
    {"probe": ProbeSelector(), "none": NoneSelector(), "all": AllSelector()}
)
