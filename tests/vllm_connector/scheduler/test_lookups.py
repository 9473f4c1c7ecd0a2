"""What the store has of a plan, and where its last stored passage ends."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvblend.core.identity import EMPTY_CONTEXT, token_hash
from kvblend.core.plan import ContextPlan, Span
from kvblend.store import DiskTier, PassageKVKey, TieredStore
from kvblend.vllm_connector.scheduler.lookups import Found, Lookups
from kvblend.vllm_connector.span_keys import place_spans

TOKENS = list(range(100, 200))
LENGTHS = [10, 20, 5, 30, 15]
"""Preamble, passage, fresh, passage, passage."""
CONTEXT, OTHER = token_hash([1, 2]), token_hash([3])
RATIOS = {OTHER: 0.5, CONTEXT: 0.25}
HEADS = [(0, 2), (2, 4)]


def plan() -> ContextPlan:
    contexts, ratios = tuple(RATIOS), tuple(RATIOS.values())
    passages = [
        Span(kind="passage", num_tokens=length, encode_contexts=contexts, recompute_ratios=ratios) for length in LENGTHS
    ]
    exact, fresh = Span(kind="exact", num_tokens=LENGTHS[0]), Span(kind="fresh", num_tokens=LENGTHS[2])
    spans = [exact, passages[1], fresh, *passages[3:]]
    return ContextPlan(spans=tuple(spans), recompute_ratio=0.15)


@pytest.mark.parametrize(
    ("stored", "half_stored", "found"),
    [
        ([0, 1, 3, 4], [], Found(end=80, reused=65, fresh=5, missed=0, missed_behind=0)),
        ([0, 1], [], Found(end=30, reused=20, fresh=0, missed=2, missed_behind=2)),
        ([0, 3], [], Found(end=65, reused=30, fresh=25, missed=2, missed_behind=1)),
        ([0, 1, 3], [4], Found(end=65, reused=50, fresh=5, missed=1, missed_behind=1)),
        ([0], [], Found(end=0, reused=0, fresh=0, missed=3, missed_behind=3)),
    ],
)
@pytest.mark.parametrize("context", [CONTEXT, OTHER], ids=["second choice", "first choice"])
def test_found(tmp_path: Path, context: str, stored: list[int], half_stored: list[int], found: Found) -> None:
    """`half_stored` passages are there of one rank's heads alone, which is not at all."""
    store = TieredStore([DiskTier(tmp_path, budget_bytes=1 << 24)])
    for index in (*stored, *half_stored):
        start = sum(LENGTHS[:index])
        passage = token_hash(TOKENS[start : start + LENGTHS[index]])
        for heads in HEADS if index in stored else HEADS[:1]:
            key = PassageKVKey("model", context if index else EMPTY_CONTEXT, passage, *heads)
            store.put(key, torch.zeros(1, 2, LENGTHS[index], 2, 8), capture_position=0)
    with closing(Lookups(store, "model", HEADS, deadline_s=1.0)) as lookups:
        expected = replace(found, recompute_ratio=RATIOS[context] if found.reused else 0.0)
        assert lookups.begin(place_spans(plan(), TOKENS)).result(timeout=120) == expected
