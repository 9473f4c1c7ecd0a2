"""vLLM's loaded model as blending needs it: any subset of tokens, attention answered by us."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce
from vllm.forward_context import create_forward_context, override_forward_context

from kvblend.blend import Attend, AttentionSpec, RotaryTable, rerotate_layers, rotation_tolerance
from kvblend.core.errors import UnsupportedModelError
from kvblend.vllm_connector.engine.flops import model_flops
from kvblend.vllm_connector.engine.ranks import Ranks

__all__ = ["EngineModel"]

PROBE_POSITIONS = 8
PROBE_DELTA = 37


class _Answers:
    """The attention of one forward. An error is kept until the forward has ended: other ranks are in it too."""

    def __init__(self, attend: Attend) -> None:
        self._attend = attend
        self.failure: Exception | None = None

    def __call__(self, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.failure is None:
            try:
                return self._attend(index, query, key, value)
            except Exception as error:
                self.failure = error
        return torch.zeros_like(query)

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure


class _StandIn:
    """Takes an attention layer's place in a private forward context."""

    def __init__(self, layer: Any, index: int, attend: Attend) -> None:
        self.kv_cache, self.impl = layer.kv_cache, self
        self._index, self._attend = index, attend

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Any,
        metadata: Any,
        output: Tensor,
        **_: Any,
    ) -> Tensor:
        output.copy_(self._attend(self._index, query, key, value))
        return output

    def do_kv_cache_update(self, *_: Any) -> None:
        """Our attend keeps keys and values where it wants them."""


class EngineModel:
    """Runs vLLM's model in a private forward context; no per-model code.

    On construction it checks, on the model itself, that rotating layer i's key from position p by d gives its key at
    p + d, and that values do not depend on the position. Raises UnsupportedModelError where they do.

    Attention is looked up by name when the model runs, so a model that vLLM has compiled asks us all the same. Where an
    answer raises, the forward is gone through with zeros and then raises, on every rank.
    """

    def __init__(self, model: nn.Module, layer_names: Sequence[str], vllm_config: Any, ranks: Ranks) -> None:
        self._model, self._config, self._ranks = model, vllm_config, ranks
        self._names = list(layer_names)
        context = vllm_config.compilation_config.static_forward_context
        self._layers = [context[name] for name in self._names]
        self.specs = [self._spec(layer) for layer in self._layers]
        windows = [spec.sliding_window for spec in self.specs]
        self.flops = model_flops(model, self._names, windows, vllm_config.model_config)
        tables: dict[int, RotaryTable] = {}
        self.rotary_tables = [self._table(name, tables) for name in self._names]
        """Each layer's; None where its keys do not turn."""
        self._runs_compiled = False  # vLLM's own first forward compiles the model, as it would without us
        self._check_rotation()
        self._runs_compiled = next(model.parameters()).device.type == "cpu"
        """On CUDA it is not tried yet."""

    @property
    def num_layers(self) -> int:
        return len(self._names)

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> None:
        context = create_forward_context(None, self._config, slot_mapping={}, skip_compiled=not self._runs_compiled)
        answers = _Answers(attend)
        stand_ins = {
            name: _StandIn(layer, index, answers)
            for index, (name, layer) in enumerate(zip(self._names, self._layers, strict=True))
        }
        context.no_compile_layers = {**context.no_compile_layers, **stand_ins}
        with torch.inference_mode(), override_forward_context(context):
            # of vLLM's own dtypes: what it has compiled checks none
            self._model(input_ids=token_ids.int(), positions=positions.long())
        self._ranks.attempt(answers.check)

    def reduce_scores(self, scores: Tensor) -> Tensor:
        if get_tensor_model_parallel_world_size() == 1:
            return scores
        reduced: Tensor = tensor_model_parallel_all_reduce(scores)
        return reduced

    def rerotate(self, kv: Tensor, *, delta: int) -> None:
        """Move passage KV `[layer, k|v, token, kv_head, head_dim]` by `delta` positions, in place."""
        rerotate_layers(kv, self.rotary_tables, delta=delta)

    @staticmethod
    def _spec(layer: Any) -> AttentionSpec:
        impl = layer.impl
        window = layer.sliding_window if layer.sliding_window and layer.sliding_window > 0 else None
        return AttentionSpec(float(impl.scale), window, getattr(impl, "logits_soft_cap", None) or None)

    def _table(self, name: str, tables: dict[int, RotaryTable]) -> RotaryTable | None:
        rotary = getattr(self._model.get_submodule(name.rpartition(".")[0]), "rotary_emb", None)
        if rotary is None:
            return None
        if id(rotary) not in tables:
            compute = getattr(rotary, "_compute_cos_sin_cache", None)
            cache = compute() if compute is not None else rotary.cos_sin_cache
            device = next(self._model.parameters()).device
            tables[id(rotary)] = RotaryTable.from_cache(cache.to(device), interleaved=not rotary.is_neox_style)
        return tables[id(rotary)]

    def _check_rotation(self) -> None:
        keys: list[list[Tensor]] = []
        device = next(self._model.parameters()).device
        token_ids = torch.arange(1, PROBE_POSITIONS + 1, device=device)
        for first in (0, PROBE_DELTA):
            seen: list[Tensor] = []

            def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(torch.stack((k, v)).clone())
                return torch.zeros_like(q)

            self.forward(token_ids, torch.arange(first, first + PROBE_POSITIONS, device=device), attend)
            keys.append(seen)
        if len(keys[0]) != self.num_layers:
            raise UnsupportedModelError(
                f"the model asked for {len(keys[0])} attentions and has {self.num_layers} layers"
            )
        before, after = torch.stack(keys[0]), torch.stack(keys[1])
        self.rerotate(before, delta=PROBE_DELTA)
        tolerance = rotation_tolerance(before.dtype)
        for part, values in (("keys", 0), ("values", 1)):
            deviation = (before[:, values].float() - after[:, values].float()).norm()
            if not deviation <= tolerance * after[:, values].float().norm():
                raise UnsupportedModelError(
                    f"{part} of {type(self._model).__name__} do not follow its rotary embedding: they cannot be moved"
                )
