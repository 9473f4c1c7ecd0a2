"""What a local prefix hit lacks where layers have sliding windows."""

from collections.abc import Iterable, Sequence

from kvblend.vllm_connector.engine.layer_cache import LayerCache

__all__ = ["num_lost_tokens"]


def num_lost_tokens(layers: Iterable[LayerCache], block_ids: Sequence[Sequence[int]], hit: int) -> int:
    """How many of a hit's first tokens are gone in some layer, though tokens that a blend repairs look at them.

    vLLM keeps the window before the end of all that is computed, the tokens that we bring in among them
    (v1/core/single_type_kv_cache_manager.py, line 295): a window before the hit's own end may lie in null blocks.
    block_ids: the request's, by KV cache group. 0 if nothing is missing.
    """
    num_lost = 0
    for layer in {layer.group: layer for layer in layers if not layer.keeps_blocks}.values():
        first_seen = max(0, hit + 1 - layer.layer.sliding_window)
        for place in range(first_seen // layer.block_size, -(-hit // layer.block_size)):
            if block_ids[layer.group][place] == 0:
                num_lost = max(num_lost, min(hit, (place + 1) * layer.block_size))
    return num_lost
