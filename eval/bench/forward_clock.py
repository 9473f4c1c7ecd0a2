"""How long the engine's own forward of a request takes."""

import time
from typing import Any

import torch
from torch import nn

__all__ = ["ForwardClock"]


class ForwardClock:
    """Times every forward of a model that runs in this process; the last is kept."""

    def __init__(self, model: nn.Module) -> None:
        self._device = next(model.parameters()).device
        self._last: tuple[int, float] | None = None
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end, with_kwargs=True)

    def last_ms(self, num_tokens: int) -> float:
        """Milliseconds of the last forward. Raises RuntimeError where it was not one of `num_tokens` tokens."""
        if self._last is None or self._last[0] != num_tokens:
            raise RuntimeError(f"the last forward is not that of {num_tokens} tokens: {self._last}")
        return self._last[1]

    def _begin(self, model: nn.Module, inputs: Any) -> None:
        self._began = self._now()

    def _end(self, model: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        self._last = named["positions"].shape[-1], (self._now() - self._began) * 1e3

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
