"""Every layer's paged cache of a model, with what blending knows of the layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvblend.blend.rotary import RotaryTable
from kvblend.triton_kernels import AttentionSpec, PagedKV, PagedLayers

__all__ = ["LayerRun", "PagedCaches"]


@dataclass(frozen=True)
class LayerRun:
    """Layers that one launch loads: of one group, layout and rotary table."""

    layers: tuple[int, ...]
    caches: PagedLayers
    group: int
    table: RotaryTable | None


@dataclass(frozen=True)
class PagedCaches:
    """The paged KV of all layers; made once, since it puts addresses on the device."""

    layers: tuple[PagedKV, ...]
    specs: tuple[AttentionSpec, ...]
    groups: tuple[int, ...]
    """Which of a request's block tables each layer goes by: vLLM's KV cache groups."""
    runs: tuple[LayerRun, ...]

    @classmethod
    def of(
        cls,
        layers: Sequence[PagedKV],
        specs: Sequence[AttentionSpec],
        *,
        tables: Sequence[RotaryTable | None],
        groups: Sequence[int] | None = None,
    ) -> "PagedCaches":
        """Of each layer's cache, attention, rotary table (None where keys do not turn) and group, by default 0.

        Raises ValueError where layers differ in heads, dtype or device, or those of a group in block size.
        """
        groups = [0] * len(layers) if groups is None else groups
        if not layers or not len(layers) == len(specs) == len(tables) == len(groups):
            raise ValueError(
                f"{len(layers)} caches, {len(specs)} attentions, {len(tables)} rotary tables and {len(groups)} groups"
            )
        first, members = layers[0], dict[tuple[object, ...], list[int]]()
        block_sizes: dict[int, int] = {}
        for index, (layer, group, table) in enumerate(zip(layers, groups, tables, strict=True)):
            for name, ours, theirs in (
                ("heads", layer.keys.shape[2:], first.keys.shape[2:]),
                ("dtype", layer.keys.dtype, first.keys.dtype),
                ("device", layer.keys.device, first.keys.device),
                ("block size", layer.block_size, block_sizes.setdefault(group, layer.block_size)),
            ):
                if ours != theirs:
                    raise ValueError(f"layer {index} of group {group} has {name} {ours}, others {theirs}")
            members.setdefault((group, id(table), layer.layout), []).append(index)
        runs = tuple(
            LayerRun(tuple(run), PagedLayers.of([layers[index] for index in run]), groups[run[0]], tables[run[0]])
            for run in members.values()
        )
        return cls(tuple(layers), tuple(specs), tuple(groups), runs)

    @property
    def device(self) -> torch.device:
        return self.layers[0].keys.device

    @property
    def num_kv_heads(self) -> int:
        return self.layers[0].num_kv_heads

    @property
    def block_sizes(self) -> dict[int, int]:
        """Tokens of a block, by group, ascending."""
        return {group: self.layers[self.groups.index(group)].block_size for group in sorted(set(self.groups))}
