"""The attention function that transformers calls in our place.

It is registered under one name for the whole process; which model's forward it answers for is a context variable.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

__all__ = ["ATTENTION_NAME", "Answer", "answered_by", "register"]

ATTENTION_NAME = "kvblend"

Answer = Callable[[nn.Module, Tensor, Tensor, Tensor, Mapping[str, Any]], Tensor]
"""(attention module, q [n, heads, head_dim], k [n, kv_heads, head_dim], v like k, model's options) -> out like q."""

_answer: ContextVar[Answer | None] = ContextVar("kvblend_attention", default=None)


def register() -> None:
    """Make the name known to transformers; no mask is built for it, so a forward costs no quadratic memory."""
    AttentionInterface.register(ATTENTION_NAME, _attention)


@contextmanager
def answered_by(answer: Answer) -> Iterator[None]:
    """Within, every attention of a model that uses our name is answered by `answer`."""
    token = _answer.set(answer)
    try:
        yield
    finally:
        _answer.reset(token)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    answer = _answer.get()
    if answer is None:
        raise RuntimeError("this model's attention is kvblend's: run it through HuggingFaceModel")
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    return answer(module, q, k, v, options)[None], None
