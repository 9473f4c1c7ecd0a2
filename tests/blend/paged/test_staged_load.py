"""From passage KV files to paged blocks, through the store's staging."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvblend.blend.paged import PagedContextKV, PassageLoad, PlacedPassage
from kvblend.store import NEVER, CPUTier, GPUTier, Stager
from kvblend.store.content import TensorContent
from kvblend.triton_kernels import StagedPassage
from tests.blend.paged.paged_models import make_model, read_paged, tables_of, vacant_caches
from tests.store.samples import make_key

NUM_LAYERS, CAPTURED_AT = 3, 9


@pytest.mark.parametrize(("num_fit", "window_bytes"), [(0, 1), (1, 1), (0, 1 << 20), (2, 0)])
def test_layers_come_through_a_window_or_the_gpu_tier(num_fit: int, window_bytes: int, tmp_path: Path) -> None:
    """Reference: the KV as it was put, turned. Ours: two rows for three layers, all rows, or room in the GPU tier."""
    model = make_model("Llama")
    kv = torch.randn(2, NUM_LAYERS, 2, 30, model.num_kv_heads, model.head_dim)
    tier = CPUTier(tmp_path, budget_bytes=1 << 24)
    for number in range(2):
        key = make_key(number, num_heads=model.num_kv_heads)
        tier.put(TensorContent(key, kv[number], capture_position=CAPTURED_AT))
    keys = [make_key(number, num_heads=model.num_kv_heads) for number in range(2)]
    there = tier.fetch_many(keys, NEVER)
    files = [there[key] for key in keys]
    gpu = GPUTier("cpu", budget_bytes=num_fit * files[0].header.payload_bytes)
    context = PagedContextKV(vacant_caches(model, "joined", 16), tables_of([70])[0], num_tokens=70)
    windowed = 2 - num_fit if window_bytes == 1 else 0

    def prepare(passages: tuple[StagedPassage, ...]) -> Callable[[int], object]:
        placed = [
            PlacedPassage(
                staged,
                context,
                start,
                start - CAPTURED_AT,
                num_rows=None if staged.num_layers == NUM_LAYERS else staged.num_layers,
            )
            for staged, start in zip(passages, (5, 40), strict=True)
        ]
        assert [passage.num_rows for passage in placed] == [None] * (2 - windowed) + [2] * windowed
        return PassageLoad(placed).layer

    with Stager("cpu", gpu=gpu, window_bytes=window_bytes) as stager:
        assert stager.stage(files, prepare) == {}
    assert gpu.stats().num_files == num_fit
    loaded = read_paged(context, 70)
    for number, start in enumerate((5, 40)):
        model.rerotate(kv[number], delta=start - CAPTURED_AT)
        torch.testing.assert_close(loaded[:, :, start : start + 30], kv[number], rtol=1e-4, atol=1e-5)
    tier.close()
