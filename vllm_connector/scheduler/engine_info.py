"""What the control channel tells a service of this engine."""

from collections.abc import Sequence
from typing import Any

from kvblend.core.control import EngineInfo
from kvblend.core.settings import STORED_SHARE, Settings
from kvblend.vllm_connector.siblings import Siblings

__all__ = ["engine_info"]


def engine_info(
    vllm_config: Any,
    settings: Settings,
    *,
    model_fingerprint: str,
    heads: Sequence[tuple[int, int]],
    siblings: Siblings,
    places: list[str],
) -> EngineInfo:
    model, events = vllm_config.model_config, vllm_config.kv_events_config
    return EngineInfo(
        model=str(model.model),
        model_fingerprint=model_fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        block_size=vllm_config.cache_config.block_size,
        max_model_len=model.max_model_len,
        head_ranges=list(heads),
        token_bytes=_token_bytes(model, settings),
        default_recompute_ratio=settings.recompute_ratio,
        max_raw_logprobs=_max_raw_logprobs(model),
        salted=siblings.needs_plan_salt or (events is not None and events.enable_kv_cache_events),
        proxied=siblings.prefills_for_others,
        places=places,
    )


def _max_raw_logprobs(model_config: Any) -> int:
    """How many log-probabilities a request may ask that are the model's own; 0 where vLLM gives processed ones."""
    if model_config.logprobs_mode != "raw_logprobs":
        return 0
    limit: int = model_config.max_logprobs
    return int(model_config.get_vocab_size()) if limit == -1 else limit


def _token_bytes(model_config: Any, settings: Settings) -> int:
    """By a codec, which stores as many bytes whatever the dtype is, or as they are."""
    num_numbers = (
        2 * model_config.get_total_num_hidden_layers() * model_config.get_total_num_kv_heads()
        * model_config.get_head_size()
    )  # fmt: skip
    num_bytes = int(model_config.dtype.itemsize) if settings.codec == "raw" else 2 * STORED_SHARE[settings.codec]
    return int(num_numbers * num_bytes)
