"""A whole prompt with its passages, and the context plan that vLLM gets for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kvblend.api.encode_context import EncodeContext
from kvblend.api.passage_kv import KVName
from kvblend.api.prompt import Frame
from kvblend.core.errors import PromptTooLongError
from kvblend.core.identity import token_hash
from kvblend.core.plan import ContextPlan, KVBlendParams, SelectorName, Span

__all__ = ["BlendPrompt", "PromptPassage"]


@dataclass(frozen=True)
class PromptPassage:
    """A passage in a prompt, and the encode context that its stored KV has."""

    token_ids: tuple[int, ...]
    encode_context: EncodeContext
    owner: str | None = None

    @cached_property
    def name(self) -> KVName:
        return self.encode_context.hash, token_hash(self.token_ids)


@dataclass(frozen=True)
class BlendPrompt:
    """`[preamble][passage]...[passage][question]`."""

    frame: Frame
    passages: Sequence[PromptPassage]

    @property
    def token_ids(self) -> list[int]:
        passages = (token_id for passage in self.passages for token_id in passage.token_ids)
        return [*self.frame.preamble_ids, *passages, *self.frame.question_ids]

    @property
    def num_context_tokens(self) -> int:
        return len(self.frame.preamble_ids) + sum(len(passage.token_ids) for passage in self.passages)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The context plan's spans."""
        preamble = [Span(kind="exact", num_tokens=len(self.frame.preamble_ids))] if self.frame.preamble_ids else []
        passages = (
            Span(kind="passage", num_tokens=len(passage.token_ids), encode_contexts=(passage.encode_context.hash,))
            for passage in self.passages
        )
        return (*preamble, *passages)

    def plan_fields(
        self, *, recompute_ratio: float, selector: SelectorName = "probe", report_id: str
    ) -> dict[str, Any]:
        """What vLLM's request body holds so that the connector blends this prompt and reports under `report_id`."""
        plan = ContextPlan(spans=self.spans, recompute_ratio=recompute_ratio, selector=selector)
        params = KVBlendParams(report_id=report_id, blend=plan)
        return {"kv_transfer_params": {"kvblend": params.model_dump(mode="json", exclude_none=True)}}

    def check_length(self, *, max_model_len: int, max_tokens: int) -> None:
        """Raise PromptTooLongError where prompt and answer do not fit: by how much, and how many passages would."""
        num_prompt = self.num_context_tokens + len(self.frame.question_ids)
        excess = num_prompt + max_tokens - max_model_len
        if excess <= 0:
            return
        message = (
            f"the prompt's {num_prompt} tokens and {max_tokens} to generate are {excess} more than the model's "
            f"{max_model_len}"
        )
        if self.passages:
            num_fitting, room = (
                0,
                max_model_len - max_tokens - len(self.frame.preamble_ids) - len(self.frame.question_ids),
            )
            for passage in self.passages:
                room -= len(passage.token_ids)
                if room < 0:
                    break
                num_fitting += 1
            message += f"; of its {len(self.passages)} passages the first {num_fitting} would fit"
        raise PromptTooLongError(message, param="prompt")
