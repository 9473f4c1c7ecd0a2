"""No speed from a wrong result: a whole blend against full prefill and against a dense one."""

import torch
from torch import Tensor

from kvblend.blend.benchmark.blend import Blend
from kvblend.blend.benchmark.flash import full_prefill
from kvblend.blend.benchmark.tiers import DeviceTier
from kvblend.blend.benchmark.workload import Workload
from kvblend.blend.dense_context import DenseContextKV
from kvblend.blend.hf import HuggingFaceModel, extend, prefill
from kvblend.blend.passes import Rows, probe, repair

__all__ = ["check_against_dense", "check_against_full_prefill", "check_tier", "deviation"]


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm of `theirs`."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def check_against_full_prefill(model: HuggingFaceModel, *, num_context: int, passage_tokens: int) -> float:
    """At recompute ratio 1.0: returns the deviation of a blend's logits from those of full prefill.

    Raises AssertionError where it is above four times what two exact attentions differ by in the model's dtype (2.5% in
    bf16 through 24 layers, where full reuse is off by 70%), or where full reuse would pass as well.
    """
    workload = Workload(model, num_context, passage_tokens=passage_tokens)
    full = full_prefill(model, workload.token_ids, workload.positions)
    other = prefill(model, workload.token_ids.tolist())[1]
    bound = max(4 * deviation(other, full), 1e-5 if model.dtype == torch.float32 else 1e-2)
    found = {}
    for ratio in (1.0, 0.0):
        blend = Blend(workload, DeviceTier(workload.passages), recompute_ratio=ratio)
        blend.prepare()
        found[ratio] = deviation(blend.run(), full)
    assert found[1.0] <= bound < found[0.0], f"ratio 1.0 is off by {found[1.0]}, 0.0 by {found[0.0]}; bound {bound}"
    return found[1.0]


def check_tier(blend: Blend, workload: Workload, *, bound: float) -> float:
    """Hold what `blend` loads from its tier to the passages as they were encoded, in the first and the last layer.

    Returns the largest deviation of keys or values. Raises AssertionError where it is above `bound`.
    """
    reference = Blend(workload, DeviceTier(workload.passages), recompute_ratio=0.0)
    ends = [workload.caches.layers[0], workload.caches.layers[-1]]
    views = [view for cache in ends for view in (cache.keys, cache.values)]
    loaded = []
    for source in (reference, blend):
        for view in views:
            view.zero_()
        source.prepare()
        source.load()
        loaded.append([view.clone() for view in views])
    error = max(deviation(ours, theirs) for theirs, ours in zip(*loaded, strict=True))
    assert error <= bound, f"a tier gives KV that is off by {error}, more than {bound}"
    return error


def check_against_dense(
    model: HuggingFaceModel, *, num_context: int, passage_tokens: int, recompute_ratio: float
) -> float:
    """A whole blend of a model of few layers against the same over dense KV, by PyTorch's attention with masks.

    Returns the larger deviation of scores and logits. Raises AssertionError where it is beyond the dtype's rounding.
    """
    workload = Workload(model, num_context, passage_tokens=passage_tokens)
    blend = Blend(workload, DeviceTier(workload.passages), recompute_ratio=recompute_ratio)
    blend.prepare()
    logits = blend.run()
    selected = blend.selected
    assert selected is not None
    parts = []
    for index, passage in enumerate(workload.passages):
        parts.append(passage.payload.clone())
        model.rerotate(parts[-1], delta=index * passage_tokens)
    data = torch.cat((*parts, model.empty_kv(len(workload.token_ids) - num_context)), dim=2)
    readable = torch.ones(data.shape[2], dtype=torch.bool, device=data.device)
    whole = DenseContextKV(model.specs, data, readable)
    context = DenseContextKV(model.specs, data[:, :, :num_context], readable[:num_context])
    question = workload.positions[num_context:]
    scores = probe(model, [Rows(context, workload.token_ids[num_context:], question)])[0]
    agreed = scores[selected].sum() / scores.topk(len(selected)).values.sum()
    repair(model, [Rows(context, workload.token_ids[selected], selected)])
    expected = extend(model, whole, workload.token_ids[num_context:].tolist(), start=num_context)
    error = max(deviation(logits, expected), 1.0 - float(agreed))
    bound = 1e-4 if model.dtype == torch.float32 else 5e-2
    assert error <= bound, f"a blend of {num_context} tokens is off by {error}, more than {bound}"
    return error
