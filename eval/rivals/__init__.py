"""Selectors that only the lab runs, one a file, each from its paper; and all selectors by name.

A new one is a file here with a frozen dataclass that has `blend` (`LabSelector`), and a line in `LAB_SELECTORS`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from kvblend.blend.selectors import SELECTORS, LabSelector, Serving
from kvblend.eval.rivals.cacheblend import CacheBlendSelector
from kvblend.eval.rivals.cachecraft import CacheCraftSelector
from kvblend.eval.rivals.equal_flops import EqualFlopsProbe
from kvblend.eval.rivals.fusionrag import FusionRAGSelector
from kvblend.eval.rivals.gradual import GradualSelector
from kvblend.eval.rivals.head import HeadSelector
from kvblend.eval.rivals.infoflow import InfoFlowSelector
from kvblend.eval.rivals.random import RandomSelector

__all__ = [
    "LAB_SELECTORS",
    "CacheBlendSelector",
    "CacheCraftSelector",
    "EqualFlopsProbe",
    "FusionRAGSelector",
    "GradualSelector",
    "HeadSelector",
    "InfoFlowSelector",
    "RandomSelector",
]

LAB_SELECTORS: Mapping[str, LabSelector] = MappingProxyType(
    {
        **{name: Serving(selector) for name, selector in SELECTORS.items()},
        "probe_equal_flops": EqualFlopsProbe(),
        "cacheblend_published": CacheBlendSelector("v", exact_mask=False),
        "cacheblend_v": CacheBlendSelector("v"),
        "cacheblend_k": CacheBlendSelector("k"),
        "cacheblend_kv": CacheBlendSelector("kv"),
        "gradual": GradualSelector(),
        "cachecraft": CacheCraftSelector(),
        "fusionrag": FusionRAGSelector(),
        "head": HeadSelector(),
        "infoflow": InfoFlowSelector(),
        "random": RandomSelector(),
    }
)
