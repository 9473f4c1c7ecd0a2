"""Which reused tokens to recompute: one policy a file.

`SELECTORS` serve: they pick from the probe's scores. `LAB_SELECTORS` are these and their rivals.
"""

from collections.abc import Mapping
from types import MappingProxyType

from kvblend.blend.selectors.all import AllSelector
from kvblend.blend.selectors.cacheblend import CacheBlendSelector
from kvblend.blend.selectors.equal_flops import EqualFlopsProbe
from kvblend.blend.selectors.gradual import GradualSelector
from kvblend.blend.selectors.head import HeadSelector
from kvblend.blend.selectors.infoflow import InfoFlowSelector
from kvblend.blend.selectors.lab import Computed, LabPrompt, LabSelector, Serving
from kvblend.blend.selectors.none import NoneSelector
from kvblend.blend.selectors.probe import ProbeSelector
from kvblend.blend.selectors.random import RandomSelector
from kvblend.blend.selectors.selector import Selector, num_selected

__all__ = [
    "LAB_SELECTORS",
    "SELECTORS",
    "AllSelector",
    "CacheBlendSelector",
    "Computed",
    "EqualFlopsProbe",
    "GradualSelector",
    "HeadSelector",
    "InfoFlowSelector",
    "LabPrompt",
    "LabSelector",
    "NoneSelector",
    "ProbeSelector",
    "RandomSelector",
    "Selector",
    "Serving",
    "num_selected",
]

SELECTORS: Mapping[str, Selector] = MappingProxyType(
    {"probe": ProbeSelector(), "none": NoneSelector(), "all": AllSelector()}
)

LAB_SELECTORS: Mapping[str, LabSelector] = MappingProxyType(
    {
        **{name: Serving(selector) for name, selector in SELECTORS.items()},
        "probe_equal_flops": EqualFlopsProbe(),
        "cacheblend_published": CacheBlendSelector("v", exact_mask=False),
        "cacheblend_v": CacheBlendSelector("v"),
        "cacheblend_k": CacheBlendSelector("k"),
        "cacheblend_kv": CacheBlendSelector("kv"),
        "gradual": GradualSelector(),
        "head": HeadSelector(),
        "infoflow": InfoFlowSelector(),
        "random": RandomSelector(),
    }
)
