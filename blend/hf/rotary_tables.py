"""Find the rotary table of each layer of a Hugging Face model, by what its keys do.

A model's rotary modules say which angles there are (several, where layer types differ), but not which layer uses which,
nor how pairs lie in a head. So every reading of every module is tried on keys of the same tokens at two places.
"""

import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from kvblend.blend.rotary import RotaryTable, rerotate
from kvblend.core.errors import UnsupportedModelError

__all__ = ["choose_table", "possible_tables"]

LENGTH_DEPENDENT = {"dynamic", "longrope"}


def possible_tables(model: nn.Module, *, num_positions: int) -> list[RotaryTable | None]:
    """Every reading of every rotary module of `model`; None, no rotation, is the first.

    Raises UnsupportedModelError where the angles depend on the prompt's length.
    """
    tables: list[RotaryTable | None] = [None]
    for module in model.modules():
        if not type(module).__name__.endswith("RotaryEmbedding"):
            continue
        kinds = getattr(module, "rope_type", "default")
        if LENGTH_DEPENDENT & set(kinds.values() if isinstance(kinds, dict) else [kinds]):
            raise UnsupportedModelError(f"rotary embedding of type {kinds} changes with the prompt's length")
        for cos, sin in _angles(module, num_positions):
            half = cos.shape[-1] // 2
            readings = [(cos[:, :half], sin[:, :half])]
            if not torch.equal(cos[:, :half], cos[:, ::2]):
                readings.append((cos[:, ::2], sin[:, ::2]))
            for interleaved in (False, True):
                tables += [
                    RotaryTable.from_cache(torch.cat(reading, dim=-1), interleaved=interleaved) for reading in readings
                ]
    return tables


def choose_table(
    tables: Sequence[RotaryTable | None], before: Tensor, after: Tensor, *, delta: int, tolerance: float
) -> RotaryTable | None:
    """The table that turns keys `before` into `after`, `[num_tokens, kv_heads, head_dim]`, `delta` positions on.

    Raises UnsupportedModelError where none does within `tolerance`, relative to the keys' norm.
    """
    best: tuple[float, RotaryTable | None] = (float("inf"), None)
    for table in tables:
        moved = before if table is None else rerotate(before, table, delta=delta)
        deviation = float((moved.float() - after.float()).norm() / after.float().norm())
        if deviation < best[0]:
            best = (deviation, table)
    if not best[0] <= tolerance:
        raise UnsupportedModelError(f"keys do not follow a rotary embedding: off by {best[0]:.2g} of their norm")
    return best[1]


def _angles(module: nn.Module, num_positions: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(cos, sin), each fp32 `[num_positions, rotary_dim]`, of each layer type that the module knows."""
    device = next(module.buffers()).device
    x, positions = torch.zeros(1, device=device), torch.arange(num_positions, device=device)[None]
    by_type = "layer_type" in inspect.signature(module.forward).parameters
    for layer_type in getattr(module, "layer_types", ()) if by_type else (None,):
        with torch.no_grad():
            cos, sin = module(x, positions) if layer_type is None else module(x, positions, layer_type)
        yield cos[0], sin[0]
