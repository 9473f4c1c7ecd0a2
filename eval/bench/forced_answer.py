"""Teacher forcing inside vLLM, to compare distributions over one answer."""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

__all__ = ["ForcedAnswer"]


class ForcedAnswer(AdapterLogitsProcessor):  # type: ignore[misc]
    """Makes a request with `extra_args={"forced_answer": [token, ...]}` generate just these tokens.

    Raw logprobs are taken before logits processors, so they are those of the model.
    """

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        answer = (params.extra_args or {}).get("forced_answer")
        if not answer:
            return None

        def process(output: list[int], logits: torch.Tensor) -> torch.Tensor:
            forced = torch.full_like(logits, float("-inf"))
            forced[answer[len(output)]] = 0
            return forced

        return process
