"""Run in Triton's interpreter by test_interpreted: no step after `DevicePages.warm` launches what is not compiled."""

from pathlib import Path

import pytest
import torch
from vllm.v1.kv_cache_layout import KVCacheLayout

from kvblend.core.plan import EncodeOrder
from kvblend.vllm_connector.engine.device_pages import DevicePages
from kvblend.vllm_connector.metadata import EncodeTask
from kvblend.vllm_connector.worker.encodes import Encode
from tests.blend.paged.paged_models import SHAPE, make_model
from tests.triton_kernels.launched_variants import launched_variants
from tests.vllm_connector.worker.backend_blends import BLOCK, Engine, Library, tokens

PASSAGES, QUESTION = [tokens(100, 21), tokens(200, 33)], tokens(500, 6)
ENCODES = {"gather_quantize_kernel"}
BLENDS = {
    "column_scores_kernel",
    "load_rerotate_kernel",
    "probe_attention_kernel",
    "selective_attention_kernel",
    "write_kv_kernel",
}


@pytest.mark.parametrize(
    ("name", "backend", "layout", "pages"),
    [
        ("Llama", "FlashInfer", KVCacheLayout.LBHNC, 8),
        ("Gemma2", "Triton", KVCacheLayout.LHBNC, None),
    ],
)
def test_steps_after_warming(
    name: str, backend: str, layout: KVCacheLayout, pages: int | None, dtype: str, tmp_path: Path
) -> None:
    """A local hit, a miss, scratch pages where there are windows; encodes in two steps. Warming writes to no page."""
    model = make_model(name, getattr(torch, dtype))
    library = Library(model, tmp_path)
    library.add(PASSAGES[0])
    engine = Engine(model, library, backend, layout, paged=True, pages=pages)
    assert isinstance(engine._pages, DevicePages)
    with launched_variants(runs=True) as warmed:
        engine._pages.warm(SHAPE["num_attention_heads"])
    for layer in engine.caches.layers:
        assert bool(layer.layer.kv_cache[1:].isnan().all()) and not bool(layer.layer.kv_cache[0].any())
    with launched_variants(runs=True) as launched:
        num_groups = 1 + max(layer.group for layer in engine.caches.layers)
        encode = Encode(EncodeOrder(spans=((7, 43),)), engine.caches)
        for start, end in ((0, 30), (30, 45)):
            encode.take(EncodeTask("encode", EncodeOrder(spans=((7, 43),)), [], start, end, ([5, 9, 20],) * num_groups))
        assert {variant.kernel for variant in launched} == ENCODES
        assert launched <= warmed
        for index, start in enumerate((BLOCK, 0)):
            prompt = library.prompt(PASSAGES, QUESTION)
            engine.add(str(index), library.plan(PASSAGES, 0.3), prompt, start=start)
        engine.run()
    assert {variant.kernel for variant in launched} == ENCODES | BLENDS
    assert launched <= warmed
