"""A Hugging Face decoder as a `BlendModel`, without per-model code."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from kvblend.blend.flops import ModelFlops
from kvblend.blend.hf.attention_function import ATTENTION_NAME, answered_by, register
from kvblend.blend.hf.rotary_tables import choose_table, possible_tables
from kvblend.blend.model import Attend
from kvblend.blend.rotary import RotaryTable, rerotate_layers, rotation_tolerance
from kvblend.core.errors import UnsupportedModelError
from kvblend.triton_kernels import AttentionSpec

__all__ = ["HuggingFaceModel"]

TRIED_TOKENS = 8
TRIED_DELTA = 512
MAX_POSITIONS = 32768


class HuggingFaceModel:
    """A causal language model of transformers whose attention is answered from outside; batch of one.

    What a layer's attention does (scale, sliding window, soft cap) is read from what the model passes to it, and where
    its keys turn from trying. The model is taken over: run it only through this object from then on.
    Raises UnsupportedModelError where attention is of a kind that blending does not know, or keys cannot be moved.
    """

    def __init__(self, model: Any) -> None:
        register()
        model.set_attn_implementation(ATTENTION_NAME)
        if hasattr(model, "set_experts_implementation"):  # from transformers 5 on
            model.set_experts_implementation("eager")  # the others' work is not seen by the FLOP counter
        self._model = model.eval()
        self.config = model.config.get_text_config()
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.num_layers: int = self.config.num_hidden_layers
        self._look()

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Self:
        """Load a model folder or hub name."""
        return cls(AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device))

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer, by the model's generation settings."""
        ends = self._model.generation_config.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> None:
        with torch.no_grad(), answered_by(self._answer(attend)):
            self._model.base_model(input_ids=token_ids[None], position_ids=positions[None], use_cache=False)

    def logits(self, token_ids: Tensor, positions: Tensor, attend: Attend, *, num_last: int) -> Tensor:
        """Run the model as `forward` does; returns the last logits, fp32 `[num_last, vocabulary]`."""
        assert num_last > 0
        with torch.no_grad(), answered_by(self._answer(attend)):
            output = self._model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=num_last
            )
        logits: Tensor = output.logits[0, -num_last:].float()
        return logits

    def reduce_scores(self, scores: Tensor) -> Tensor:
        return scores

    def rerotate(self, kv: Tensor, *, delta: int) -> None:
        """Move passage KV `[layer, k|v, token, kv_head, head_dim]` by `delta` positions, in place."""
        rerotate_layers(kv, self.rotary_tables, delta=delta)

    def empty_kv(self, num_tokens: int) -> Tensor:
        """Zeros `[layer, k|v, token, kv_head, head_dim]` of the model's dtype, on its device."""
        shape = (self.num_layers, 2, num_tokens, self.num_kv_heads, self.head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    @staticmethod
    def _answer(attend: Attend) -> Any:
        def answer(module: Any, q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> Tensor:
            return attend(module.layer_idx, q, k, v)

        return answer

    def _look(self) -> None:
        """Read specs, shapes, work and rotary tables off forwards whose attention gives zeros."""
        seen, marks = self._try(1, 0)
        if [layer for layer, *_ in seen] != list(range(self.num_layers)):
            raise UnsupportedModelError(f"{type(self._model).__name__} does not ask for one attention a layer")
        shapes = {(tuple(k.shape), tuple(v.shape), q.shape[1]) for _, q, k, v, _ in seen}
        if len(shapes) > 1 or seen[0][2].shape != seen[0][3].shape:
            raise UnsupportedModelError("keys and values differ in shape, or from layer to layer")
        self.num_kv_heads, self.head_dim = seen[0][2].shape[1:]
        self.specs = [self._spec(options) for *_, options in seen]
        qkv = marks[0]
        self.flops = ModelFlops(
            qkv=qkv,
            rest=(*(end - start - qkv for start, end in pairwise(marks[:-2])), marks[-2] - marks[-3]),
            head=marks[-1] - marks[-2],
            attention_per_key=4 * self.head_dim * seen[0][1].shape[1],
            windows=tuple(spec.sliding_window for spec in self.specs),
        )
        num_positions = min(MAX_POSITIONS, self.config.max_position_embeddings)
        delta = min(TRIED_DELTA, num_positions - TRIED_TOKENS)
        tables = possible_tables(self._model, num_positions=num_positions)
        before, after = self._try(TRIED_TOKENS, 0)[0], self._try(TRIED_TOKENS, delta)[0]
        tolerance = rotation_tolerance(self.dtype)
        self.rotary_tables: list[RotaryTable | None] = []
        """Each layer's; None where its keys do not turn."""
        for (_, _, k, v, _), (_, _, moved_k, moved_v, _) in zip(before, after, strict=True):
            choose_table([None], v, moved_v, delta=delta, tolerance=tolerance)
            self.rotary_tables.append(choose_table(tables, k, moved_k, delta=delta, tolerance=tolerance))

    def _try(self, num_tokens: int, first: int) -> tuple[list[tuple[int, Tensor, Tensor, Tensor, Any]], list[int]]:
        """What each attention was asked, and the FLOPs done by then, by the end of the layers, and with the head."""
        seen: list[tuple[int, Tensor, Tensor, Tensor, Any]] = []
        marks: list[int] = []
        token_ids = torch.arange(1, num_tokens + 1, device=self.device)[None]
        positions = torch.arange(first, first + num_tokens, device=self.device)[None]
        with FlopCounterMode(display=False) as counter, torch.no_grad():

            def answer(module: Any, q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> Tensor:
                seen.append((int(module.layer_idx), q, k.clone(), v.clone(), dict(options)))
                marks.append(counter.get_total_flops())
                return torch.zeros_like(q)

            with answered_by(answer):
                body = self._model.base_model(input_ids=token_ids, position_ids=positions, use_cache=False)
                marks.append(counter.get_total_flops())
                self._model.get_output_embeddings()(body.last_hidden_state[:, -1:])
                marks.append(counter.get_total_flops())
        return seen, marks

    @staticmethod
    def _spec(options: Mapping[str, Any]) -> AttentionSpec:
        if options.get("s_aux") is not None:
            raise UnsupportedModelError("attention with learned sinks")
        return AttentionSpec(float(options["scaling"]), options.get("sliding_window"), options.get("softcap"))
