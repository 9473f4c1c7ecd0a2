"""Staged passage KV into paged blocks at new positions, all passages and layers of a batch in one launch."""

from collections.abc import Sequence

from torch import Tensor

from kvblend.triton_kernels.load_rerotate.plan import LoadPlan
from kvblend.triton_kernels.load_rerotate.reference import load_rerotate_reference
from kvblend.triton_kernels.paged_kv import PagedLayers
from kvblend.triton_kernels.staged import StagedPassage

__all__ = ["LoadPlan", "load_rerotate", "load_rerotate_reference"]


def load_rerotate(
    passages: Sequence[StagedPassage],
    caches: PagedLayers,
    slots: Tensor,
    deltas: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool,
    source_layers: Sequence[int] | None = None,
) -> None:
    """Dequantize `passages`, turn their keys by each token's difference in positions, and write them by slot.

    slots, deltas: integers `[num_tokens]` of all passages, one after the other. A token whose slot is negative or in
    the null block is dropped. cos, sin: fp32 `[num_positions, rotary_dim / 2]`, without magnitude scale, by the
    difference's absolute value (on a GPU, keys of a difference beyond the table become NaN; on CPU IndexError).
    `interleaved`: pairs are neighbours (GPT-J), not halves apart (neox). `source_layers`: which layer of the passages
    each cache is; by default the i-th is the i-th. All passages have one codec. Raises ValueError.
    """
    LoadPlan.of(passages, caches, slots, deltas, cos, sin, interleaved=interleaved, source_layers=source_layers).run()
