"""What is measured of a model shape: checked first, then every context length, every tier."""

from collections.abc import Iterator

import torch

from kvblend.blend.benchmark.checks import check_against_dense, check_against_full_prefill
from kvblend.blend.benchmark.measure import BlendResult, measure
from kvblend.blend.benchmark.shapes import ModelShape

__all__ = ["blend_results"]

RECOMPUTE_RATIO = 0.15
CHECKED_LAYERS = 2
PASSAGES_CHECKED = 4
"""Of a prompt that is compared with full prefill at recompute ratio 1.0."""


def blend_results(shape: ModelShape, device: torch.device) -> Iterator[BlendResult]:
    """Raises AssertionError where a blend is wrong: no speed is reported from a wrong result."""
    torch.manual_seed(0)
    few_layers = shape.build(device, num_layers=CHECKED_LAYERS)
    for num_context in shape.contexts:
        check_against_dense(
            few_layers, num_context=num_context, passage_tokens=shape.passage_tokens, recompute_ratio=RECOMPUTE_RATIO
        )
    del few_layers
    model = shape.build(device)
    check_against_full_prefill(
        model, num_context=PASSAGES_CHECKED * shape.passage_tokens // 4, passage_tokens=shape.passage_tokens // 4
    )
    for num_context in shape.contexts:
        yield from measure(
            model,
            shape.name,
            num_context=num_context,
            passage_tokens=shape.passage_tokens,
            recompute_ratio=RECOMPUTE_RATIO,
        )
