"""Which KV heads each tensor-parallel rank owns."""

from typing import Any

__all__ = ["head_ranges"]


def head_ranges(vllm_config: Any) -> list[tuple[int, int]]:
    """`[start, end)` of KV heads by rank; ranks share a range where there are more ranks than heads."""
    total = vllm_config.model_config.get_total_num_kv_heads()
    ranks = vllm_config.parallel_config.tensor_parallel_size
    size = max(1, total // ranks)
    starts = [rank * total // ranks for rank in range(ranks)]
    return [(start, start + size) for start in starts]
