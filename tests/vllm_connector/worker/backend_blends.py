"""A tiny Hugging Face model over the caches of vLLM's CUDA backends, blended as the connector blends."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from vllm.v1.kv_cache_layout import KVCacheLayout

from kvblend.blend import Selector
from kvblend.blend.hf import HuggingFaceModel, PassageEncoder, prefill
from kvblend.core.identity import EMPTY_CONTEXT, token_hash
from kvblend.core.plan import ContextPlan, Span
from kvblend.core.report import BlendReport
from kvblend.store import DiskTier, GPUTier, PassageKVKey, Stager, TieredStore, Variant
from kvblend.vllm_connector.engine import caches as engine_caches
from kvblend.vllm_connector.engine.caches import EngineCaches
from kvblend.vllm_connector.engine.device_pages import DevicePages
from kvblend.vllm_connector.engine.layer_cache import LayerCache
from kvblend.vllm_connector.engine.pages import Pages
from kvblend.vllm_connector.metadata import BlendTask
from kvblend.vllm_connector.worker.blend import Blend, Readiness, State
from kvblend.vllm_connector.worker.blends import Blends
from kvblend.vllm_connector.worker.clock import PassClock
from kvblend.vllm_connector.worker.stager import PassageSource
from tests.vllm_connector.engine.backend_caches import allocate_layers
from tests.vllm_connector.one_rank import OneRank
from tests.vllm_connector.worker.dense_pages import DensePages

__all__ = ["BLOCK", "Engine", "Library", "tokens"]

BLOCK, NUM_BLOCKS = 16, 48
FINGERPRINT = "model"


def tokens(start: int, count: int) -> list[int]:
    """Arbitrary token ids."""
    return [(start + index) * 31 % 97 for index in range(count)]


class Library:
    """A store with passages encoded behind a preamble and a warm context, and plans over them."""

    def __init__(self, model: HuggingFaceModel, folder: Path, *, gpu_bytes: int = 0) -> None:
        self._model, self.preamble = model, tokens(3, 20)
        warm = self.preamble + tokens(50, 11)
        gpu = GPUTier("cpu", budget_bytes=gpu_bytes) if gpu_bytes else None
        store = TieredStore([DiskTier(folder, budget_bytes=1 << 24)], gpu=gpu)
        threads = ThreadPoolExecutor(2)
        self.source = PassageSource(store, FINGERPRINT, (0, model.num_kv_heads), threads, deadline_s=1.0)
        self._encoder, self._alone = PassageEncoder(model, warm), PassageEncoder(model, [])
        self.encode_context = token_hash(warm)
        store.put(self.key(EMPTY_CONTEXT, self.preamble), self._alone.encode(self.preamble), capture_position=0)

    def key(self, encode_context: str, passage: Sequence[int]) -> PassageKVKey:
        return PassageKVKey(FINGERPRINT, encode_context, token_hash(passage), *self.source.heads)

    def add(self, passage: Sequence[int]) -> Path:
        """Store a passage's KV; returns its file."""
        key, kv = self.key(self.encode_context, passage), self._encoder.encode(passage)
        self.source.store.put(key, kv, capture_position=self._encoder.capture_position)
        return Path(self.source.store.shared[-1].location, key.file_name)

    def moved(self, passage: Sequence[int], *, to: int) -> Tensor:
        """What `add` stores of a passage, its first token turned to position `to`."""
        kv = self._encoder.encode(passage)
        self._model.rerotate(kv, delta=to - self._encoder.capture_position)
        return kv

    def add_behind_preamble(self, passage: Sequence[int]) -> str:
        """Store a variant of a passage that is exact where it comes first; returns its encode context."""
        encoder = PassageEncoder(self._model, self.preamble)
        context = token_hash(self.preamble)
        self.source.store.put(self.key(context, passage), encoder.encode(passage), capture_position=len(self.preamble))
        return context

    def drop_preamble(self) -> None:
        self.source.store.delete([Variant(FINGERPRINT, EMPTY_CONTEXT, token_hash(self.preamble))])

    def prompt(self, passages: Sequence[Sequence[int]], question: Sequence[int], *, num_fresh: int = 0) -> list[int]:
        """Preamble, passages, some fresh tokens before the last, question."""
        *first, last = passages
        return [*self.preamble, *chain(*first), *tokens(7, num_fresh), *last, *question]

    def plan(self, passages: Sequence[Sequence[int]], ratio: float, *, num_fresh: int = 0) -> ContextPlan:
        spans = [Span(kind="exact", num_tokens=len(self.preamble))]
        contexts = (self.encode_context,)
        spans += [Span(kind="passage", num_tokens=len(own), encode_contexts=contexts) for own in passages[:-1]]
        spans += [Span(kind="fresh", num_tokens=num_fresh)] if num_fresh else []
        spans += [Span(kind="passage", num_tokens=len(passages[-1]), encode_contexts=contexts)]
        return ContextPlan(spans=tuple(spans), recompute_ratio=ratio)


@dataclass(frozen=True)
class SharedSelector:
    """Selects for a request what another engine's blend of it selected, and holds its own choice to that.

    Scores that differ by rounding change places only where they are no farther than `score_tie` apart, of their size:
    a token repaired in one blend alone would hide all else that two blends have in common.
    """

    own: Selector
    name: str
    selected: dict[str, Tensor]
    score_tie: float

    @property
    def needs_scores(self) -> bool:
        return self.own.needs_scores

    def count(self, num_candidates: int, *, recompute_ratio: float) -> int:
        return self.own.count(num_candidates, recompute_ratio=recompute_ratio)

    def select(self, candidates: Tensor, *, recompute_ratio: float, scores: Tensor | None) -> Tensor:
        ours = self.own.select(candidates, recompute_ratio=recompute_ratio, scores=scores)
        shared = self.selected.setdefault(self.name, ours)
        assert scores is not None and len(ours) == len(shared)
        differing = sorted(set(ours.tolist()) ^ set(shared.tolist()))
        distances = (scores[differing] / scores[ours].min() - 1).abs()
        assert bool((distances <= self.score_tie).all()), distances.tolist()
        return shared


class Engine:
    """Caches of one backend in one layout, blocks for requests, and blends over them.

    `paged`: as on CUDA; on CPU the kernels' wrappers run their references, or Triton's interpreter. `pages`: tokens of
    the backend's own pages, where they are smaller than vLLM's blocks. `selected`: what blends have selected by the
    requests' names, shared by engines that are to repair the same (`SharedSelector`). `host_bytes`: of the ring that
    reads go through, as for a GPU.
    """

    def __init__(
        self,
        model: HuggingFaceModel,
        library: Library,
        backend: str,
        layout: KVCacheLayout,
        *,
        paged: bool,
        pages: int | None = None,
        tokens_per_step: int = 40,
        selected: dict[str, Tensor] | None = None,
        score_tie: float = 0.0,
        host_bytes: int | None = None,
        scratch_tokens: int = NUM_BLOCKS * BLOCK,
    ) -> None:
        self._selected, self._score_tie = selected, score_tie
        self._model, self._library = model, library
        windows = [spec.sliding_window for spec in model.specs]
        layers, _ = allocate_layers(
            backend,
            layout,
            windows,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            dtype=model.dtype,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK,
            kernel_block_size=pages,
        )
        self._windows = list(dict.fromkeys(windows))
        groups = [self._windows.index(window) for window in windows]
        with patch.object(engine_caches, "uses_kernel", lambda tensor: paged):
            self.caches = EngineCaches(
                [
                    LayerCache(layer, group, spec, rotary, block_size=BLOCK, keeps_blocks=spec.sliding_window is None)
                    for layer, group, spec, rotary in zip(
                        layers.values(), groups, model.specs, model.rotary_tables, strict=True
                    )
                ]
            )
        self._pages: Pages = DensePages(self.caches, model)
        if paged:
            stager = Stager("cpu", gpu=library.source.store.gpu, window_bytes=1 << 16, host_bytes=host_bytes)
            self._pages = DevicePages(self.caches, stager, scratch_tokens=scratch_tokens)
        self.blends = Blends(model, library.source, PassClock(self.caches.device), OneRank())
        self._tokens_per_step = tokens_per_step
        self._free = torch.randperm(NUM_BLOCKS - 1, generator=torch.Generator().manual_seed(1)).add(1).tolist()

    @property
    def has_windows(self) -> bool:
        return any(window is not None for window in self._windows)

    def add(
        self, name: str, plan: ContextPlan, prompt: list[int], *, start: int = 0, report_tokens: bool = False
    ) -> BlendTask:
        """Take up a blend whose first `start` tokens are an exact local hit, in blocks as vLLM would have them."""
        count = -(-len(prompt) // BLOCK)
        block_ids: list[list[int]] = []
        for window in self._windows:
            ids = [self._free.pop() for _ in range(count)]
            if window is not None:  # vLLM gives back what no token from the context's end on will see
                ids = [0 if (place + 1) * BLOCK <= plan.num_tokens - window else own for place, own in enumerate(ids)]
            block_ids.append(ids)
        task = BlendTask(name, plan, prompt, start, plan.num_tokens, tuple(block_ids), report_tokens)
        if start:
            exact = prefill(self._model, prompt[:start])[0].data
            for layer, (keys, values) in zip(self.caches.layers, exact, strict=True):
                layer.write(block_ids[layer.group], 0, keys, values)
        blend = Blend(task, self.caches, self._pages)
        if self._selected is not None and 0.0 < plan.recompute_ratio < 1.0:
            blend.selector = SharedSelector(blend.selector, name, self._selected, self._score_tie)
        self.blends.add(name, lambda: blend)
        return task

    def step(self) -> None:
        """One step, behind the end of whatever is staged."""
        until = time.monotonic() + 240
        while any(blend.state is State.STAGING and blend.poll()[0] == Readiness.WAITING for blend in self.staging()):
            assert time.monotonic() < until
            time.sleep(0.001)
        self.blends.step(self._tokens_per_step)

    def staging(self) -> list[Blend]:
        return list(self.blends._blends.values())

    def run(self) -> tuple[dict[str, BlendReport], int]:
        """Step until nothing is left; returns the reports and how many steps it took."""
        steps = 0
        while len(self.blends):
            self.step()
            steps += 1
            assert steps < 50 and not self.blends.failed, self.blends.failed
        reports, self.blends.reports = self.blends.reports, {}
        assert self.blends.finished == set(reports)
        self.blends.finished = set()
        return reports, steps

    def read(self, task: BlendTask) -> Tensor:
        """A context's KV in fp32 `[layer, k|v, token, kv_head, head_dim]`; NaN for what lies in no block."""
        count = task.plan.num_tokens
        kv = torch.full(self.caches.kv_shape(count), torch.nan)
        for index, layer in enumerate(self.caches.layers):
            keys, values = layer.read(task.block_ids[layer.group], 0, count)
            kept = torch.tensor(task.block_ids[layer.group])[torch.arange(count) // BLOCK] != 0
            kv[index, 0, kept], kv[index, 1, kept] = keys[kept].float(), values[kept].float()
        return kv
