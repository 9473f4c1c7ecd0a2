"""Put tokens behind a context: full prefills, passage KV, questions and answers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvblend.blend.dense_context import DenseContextKV
from kvblend.blend.hf.model import HuggingFaceModel

__all__ = ["PassageEncoder", "extend", "prefill"]


def extend(
    model: HuggingFaceModel, context: DenseContextKV, token_ids: Sequence[int], *, start: int, num_last: int = 1
) -> Tensor:
    """Run `token_ids` at positions from `start` on, and keep their KV in `context`, which has room for it.

    Returns the last `num_last` tokens' logits, fp32 `[num_last, vocabulary]`.
    """
    positions = torch.arange(start, start + len(token_ids), device=model.device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        context.write(layer, positions, k, v)
        return context.attend(layer, q, positions)

    tokens = torch.tensor(token_ids, device=model.device)
    logits = model.logits(tokens, positions, attend, num_last=num_last)
    context.readable[positions] = True
    return logits


def prefill(model: HuggingFaceModel, token_ids: Sequence[int], *, room: int = 0) -> tuple[DenseContextKV, Tensor]:
    """Prefill a prompt; returns its KV, with room for `room` more tokens, and its last logits `[1, vocabulary]`."""
    num_tokens = len(token_ids) + room
    readable = torch.zeros(num_tokens, dtype=torch.bool, device=model.device)
    context = DenseContextKV(model.specs, model.empty_kv(num_tokens), readable)
    return context, extend(model, context, token_ids, start=0)


class PassageEncoder:
    """Computes passage KV behind one encode context, whose own KV is computed once.

    `begun`: the encoder of a context that this one begins with, whose KV is taken over.
    """

    def __init__(
        self, model: HuggingFaceModel, encode_context: Sequence[int], *, begun: "PassageEncoder | None" = None
    ) -> None:
        self._model, self.encode_context = model, tuple(encode_context)
        num_begun = len(begun.encode_context) if begun else 0
        assert begun is None or begun.encode_context == self.encode_context[:num_begun]
        rest = self.encode_context[num_begun:]
        prefix_kv: Tensor = begun.prefix_kv if begun else model.empty_kv(0)
        if rest:
            prefix_kv = torch.cat((prefix_kv, model.empty_kv(len(rest))), dim=2)
            readable = torch.ones(prefix_kv.shape[2], dtype=torch.bool, device=model.device)
            extend(model, DenseContextKV(model.specs, prefix_kv, readable), rest, start=num_begun)
        self.prefix_kv: Tensor = prefix_kv

    @property
    def capture_position(self) -> int:
        """Where the passages' first tokens were when their KV was computed."""
        return len(self.encode_context)

    def encode(self, passage: Sequence[int]) -> Tensor:
        """Passage KV `[layer, k|v, token, kv_head, head_dim]`."""
        data = torch.cat((self.prefix_kv, self._model.empty_kv(len(passage))), dim=2)
        readable = torch.ones(data.shape[2], dtype=torch.bool, device=data.device)
        extend(self._model, DenseContextKV(self._model.specs, data, readable), passage, start=self.capture_position)
        return data[:, :, self.capture_position :].clone()
