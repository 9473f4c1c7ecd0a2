"""vLLM's own attention, asked for tokens at any positions of contexts that lie in paged blocks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import CommonAttentionMetadata

from kvblend.vllm_connector.engine.layer_cache import LayerCache

__all__ = ["EngineAttention", "sequence_lengths"]

MIN_RUN = 4
"""Fewer neighbours are answered sooner one by one: vLLM's CPU kernels have a path of their own for one query."""


class EngineAttention:
    """The attention of layers of one KV cache group, by the engine's backend and metadata builder.

    A token is a sequence that ends at it, so the backend's causal mask is the right one wherever it stands, and sliding
    windows and soft caps are the backend's own. All rows of a batch, of whatever requests, are one call a layer.
    """

    def __init__(self, layers: Sequence[LayerCache], kv_cache_spec: Any, vllm_config: Any) -> None:
        first = layers[0].layer
        names = [layer.layer.layer_name for layer in layers]
        builder = first.get_attn_backend().get_builder_cls()
        self._builder = builder(kv_cache_spec, names, vllm_config, first.kv_cache.device)

    def metadata(self, positions: Sequence[Tensor], tables: Sequence[Tensor]) -> Any:
        """What the backend must know of a pass: made once, used by every layer of the group.

        positions: each request's rows, int64 `[n]`, strictly increasing; tables: its pages, int32 `[num_pages]`.
        """
        lengths = [sequence_lengths(own) for own in positions]
        rows = torch.nn.utils.rnn.pad_sequence(list(tables), batch_first=True)
        query_lengths = torch.cat(lengths)
        starts = torch.zeros(len(query_lengths) + 1, dtype=torch.int32)
        torch.cumsum(query_lengths, 0, out=starts[1:])
        seq_lens = (torch.cat(list(positions))[starts[1:].long() - 1] + 1).int()
        requests = torch.arange(len(tables)).repeat_interleave(torch.tensor([len(own) for own in lengths]))
        return self._builder.build(
            0,
            CommonAttentionMetadata(
                query_start_loc=starts,
                query_start_loc_cpu=starts,
                seq_lens=seq_lens,
                num_reqs=len(seq_lens),
                num_actual_tokens=int(starts[-1]),
                max_query_len=int(query_lengths.max()),
                max_seq_len=int(seq_lens.max()),
                block_table_tensor=rows[requests].contiguous(),
                slot_mapping=torch.empty(0, dtype=torch.int64),
                causal=True,
            ),
        )

    @staticmethod
    def attend(layer: LayerCache, q: Tensor, k: Tensor, v: Tensor, cache: Tensor, metadata: Any) -> Tensor:
        """Attention of a pass's rows over `cache`, where their own keys and values lie already: `[n, heads, dim]`."""
        out = torch.empty_like(q)
        layer.layer.impl.forward(layer.layer, q, k, v, cache, metadata, output=out)
        return out


def sequence_lengths(positions: Tensor) -> Tensor:
    """Cut strictly increasing positions (int64 `[n]`) into sequences: int64, by sum `n`.

    Runs of at least `MIN_RUN` neighbours are one sequence each, all other tokens are alone.
    """
    ends = torch.cat((positions.diff() != 1, torch.ones(1, dtype=torch.bool))).nonzero()[:, 0] + 1
    runs = torch.diff(ends, prepend=ends.new_zeros(1))
    together = runs >= MIN_RUN
    return torch.where(together, runs, 1).repeat_interleave(torch.where(together, 1, runs))
