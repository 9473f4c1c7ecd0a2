"""The pages that blends on a CPU work on: the engine's own, and others for layers whose blocks it frees early."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvblend.blend.attention import scored_attention
from kvblend.host_kernels import HostKernels, HostPagedKV, Rows, attend, probe
from kvblend.vllm_connector.engine.attention import EngineAttention
from kvblend.vllm_connector.engine.host_context import HostContext
from kvblend.vllm_connector.engine.host_loading import HostLoader
from kvblend.vllm_connector.engine.layer_cache import LayerCache
from kvblend.vllm_connector.engine.pages import PlacedKV
from kvblend.vllm_connector.engine.scratch_pages import ScratchPages, no_room

__all__ = ["HostPages"]


class HostPages:
    """Every layer's pages, with attention over them: by our kernels, by the engine's own and PyTorch where it must be.

        a layer that keeps its blocks    its own cache; a context is loaded, probed and repaired where it stays
        a layer with a sliding window    a scratch cache of the same layout, as long as the context: the engine's
                                         blocks behind the window are null, the others are copied there and back

    `Pages` says what each method is for.
    """

    def __init__(
        self,
        layers: Sequence[LayerCache],
        kv_cache_specs: Sequence[Any],
        vllm_config: Any,
        kernels: HostKernels | None,
        *,
        scratch_tokens: int,
    ) -> None:
        """kv_cache_specs: of each KV cache group, as vLLM's metadata builders take them.

        `scratch_tokens`: of all contexts at a time, where a layer has a sliding window.

        Raises InvalidRequestError where there is no memory for them.
        """
        self.layers = tuple(layers)
        known = all(layer.host_kv is not None and layer.spec.sinks is None for layer in layers)
        self.kernels = kernels if known else None
        """None too where a layer's pages are in an order that they do not know, or its attention has sinks."""
        groups = {layer.group for layer in layers}
        self._of_group = {group: [own for own in layers if own.group == group] for group in groups}
        self._attention = {
            group: EngineAttention(own, kv_cache_specs[group], vllm_config) for group, own in self._of_group.items()
        }
        self.scratched = frozenset(group for group, own in self._of_group.items() if not own[0].keeps_blocks)
        """Groups whose layers have scratch caches."""
        self._page_size = max((self._of_group[group][0].page_size for group in self.scratched), default=1)
        num_pages = -(-scratch_tokens // self._page_size)
        self._pages = ScratchPages(num_pages, self._page_size)
        try:
            self._scratch = self._allocated(num_pages)
        except RuntimeError as error:
            raise no_room(scratch_tokens, error) from error
        self._loader = HostLoader(self.kernels)

    def page_size(self, group: int) -> int:
        return self._of_group[group][0].page_size

    def cache(self, layer: int) -> Tensor:
        """Where a layer's tokens are while they are blended."""
        own: Tensor = self.layers[layer].layer.kv_cache
        return self._scratch.get(layer, own)

    def read(self, layer: int, table: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a context's tokens below `end`, `[end, kv_heads, head_dim]`; `table`: its group's."""
        return self.layers[layer].read_pages(self.cache(layer), table, 0, end)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write tokens `[n, kv_heads, head_dim]` at `slots` (int64 `[n]`) of the layer's `cache`."""
        self.layers[layer].write_slots(self.cache(layer), slots, keys, values)

    def host_kv(self, layer: int) -> HostPagedKV:
        """A layer's pages as the kernels address them, where there are kernels."""
        pages = self.layers[layer].host_kv
        assert pages is not None
        return pages

    def rows(self, group: int, positions: Sequence[Tensor], tables: Sequence[Tensor]) -> Any:
        """What `attend` must know of a pass, the same for a group's layers; as `EngineAttention.metadata`."""
        if self.kernels is not None:
            return Rows.of(positions, tables)
        return self._attention[group].metadata(positions, tables)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rows: Any) -> Tensor:
        """Attention of a pass's rows over the layer's pages, where their own keys and values lie already."""
        if self.kernels is not None:
            return attend(self.kernels, self.host_kv(layer), self.cache(layer), self.layers[layer].spec, q, rows)
        return EngineAttention.attend(self.layers[layer], q, k, v, self.cache(layer), rows)

    def probe(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        positions: Tensor,
        table: Tensor,
        readable: Tensor,
        scores: Tensor,
    ) -> Tensor:
        """Attention of a question over a context and itself; as `host_kernels.probe`, positions int64."""
        spec = self.layers[layer].spec
        if self.kernels is not None:
            return probe(
                self.kernels,
                self.host_kv(layer),
                self.cache(layer),
                spec,
                q,
                k,
                v,
                positions=positions.int(),
                table=table,
                readable=readable,
                scores=scores,
            )
        seen = readable.nonzero()[:, 0]
        keys, values = (
            torch.cat((own[seen], new)) for own, new in zip(self.read(layer, table, len(readable)), (k, v), strict=True)
        )
        out, own_scores = scored_attention(spec, q, keys, values, positions, torch.cat((seen, positions)))
        scores[seen] += own_scores[: len(seen)]
        return out

    def write_from(self, group: int, hit: int) -> int:
        """The first position of a context behind a local hit that may be written: scratch pages are nobody else's."""
        return 0 if group in self.scratched else hit

    def reserve(self, num_tokens: int) -> list[int] | None:
        return self._pages.reserve(num_tokens) if self.scratched else []

    def release(self, scratch: Sequence[int]) -> None:
        self._pages.release(scratch)

    def context(
        self, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], *, num_tokens: int, hit: int
    ) -> HostContext:
        tables = {}
        for group, own in self._of_group.items():
            pages = scratch if group in self.scratched else own[0].pages(block_ids[group])
            tables[group] = torch.tensor(pages[: -(-num_tokens // own[0].page_size)], dtype=torch.int32)
            assert bool((tables[group] != 0).all()), f"KV cache group {group} has freed blocks of a blended request"
        for layer, ours, theirs in self._both(block_ids, scratch[: -(-hit // self._page_size)], 0):
            self._scratch[layer][ours] = self.layers[layer].layer.kv_cache[theirs]
        return HostContext(self, tables, torch.zeros(num_tokens, dtype=torch.bool))

    def bring(self, context: HostContext, passages: Sequence[PlacedKV], *, hit: int) -> dict[int, str]:
        return self._loader.load(context, passages, hit=hit)

    def copy_back(
        self, context: HostContext, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], *, hit: int
    ) -> None:
        assert not scratch or hit % self._page_size == 0, f"token {hit} is not the first of a page"
        for layer, ours, theirs in self._both(block_ids, scratch, hit // self._page_size):
            self.layers[layer].layer.kv_cache[theirs] = self._scratch[layer][ours]

    def close(self) -> None:
        self._loader.close()

    def _both(
        self, block_ids: Sequence[Sequence[int]], scratch: Sequence[int], first: int
    ) -> list[tuple[int, Tensor, Tensor]]:
        """(layer, its scratch pages, the engine's), of a context's pages from its `first` on, without null ones."""
        both = []
        for index, layer in enumerate(self.layers):
            if layer.group in self.scratched and scratch:
                ours = torch.tensor(scratch[first:])
                theirs = torch.tensor(layer.pages(block_ids[layer.group])[first : len(scratch)])
                both.append((index, ours[theirs != 0], theirs[theirs != 0]))
        return both

    def _allocated(self, num_pages: int) -> dict[int, Tensor]:
        """Scratch caches of so many pages, besides the null page; zeros, since what is masked must be finite."""
        return {
            index: torch.zeros((num_pages + 1, *layer.layer.kv_cache.shape[1:]), dtype=layer.layer.kv_cache.dtype)
            for index, layer in enumerate(self.layers)
            if layer.group in self.scratched
        }
