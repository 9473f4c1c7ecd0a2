"""Time to first token of a whole blend over paged KV against full prefill, on models of random weights."""

from kvblend.blend.benchmark.measure import BlendResult
from kvblend.blend.benchmark.results import blend_results
from kvblend.blend.benchmark.shapes import ModelShape, shapes_for

__all__ = ["BlendResult", "ModelShape", "blend_results", "shapes_for"]
