"""Memory on a device is neither read before it is written nor written while it is read, however late the device is.

On a CPU a copy is done when it returns. With an NVIDIA GPU these tests run on it too, and keep its stream busy, so that
whatever does not wait reads or writes too early.
"""

from pathlib import Path

import pytest
import torch

from kvblend.store import CPUTier, GPUTier, Stager, TieredStore
from kvblend.store.content import TensorContent
from tests.store import test_gpu_tier
from tests.store.samples import make_key, make_kv
from tests.store.tier_contract import opened

devices = pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
SHAPE = (6, 2, 64, 2, 64)
PAYLOAD_BYTES = torch.Size(SHAPE).numel() * 4


class TestGPUTierOnCUDA(test_gpu_tier.TestGPUTier):
    __test__ = torch.cuda.is_available()
    device = "cuda"


def keep_busy(device: str) -> None:
    """Give the current stream some milliseconds of work before all that follows."""
    if device == "cuda":
        torch.cuda._sleep(5_000_000)  # type: ignore[no-untyped-call]


def make_host_tier(folder: Path, *, num_passages: int) -> CPUTier:
    tier = CPUTier(folder / "cpu", budget_bytes=2 * num_passages * PAYLOAD_BYTES)
    with TieredStore([tier]) as store:
        for number in range(num_passages):
            store.put(make_key(number), make_kv(number, shape=SHAPE), capture_position=0)
    return CPUTier(folder / "cpu", budget_bytes=2 * num_passages * PAYLOAD_BYTES)


@devices
def test_what_is_staged_is_used_after_it_came_and_its_memory_after_it_was_used(device: str, tmp_path: Path) -> None:
    """Eight stagings, each in memory that the one before gave back while the device still had to read it."""
    tier = make_host_tier(tmp_path, num_passages=8)
    used = []
    with Stager(device, host_bytes=PAYLOAD_BYTES // 2) as stager:
        for number in range(8):
            with stager.stage([opened(tier, number)]) as staging:
                keep_busy(device)
                for layer in range(staging.num_layers):
                    assert staging.ready(layer) == frozenset()
                    used.append(staging.passages[0].payload[layer].clone())
    expected = torch.stack([layer for number in range(8) for layer in make_kv(number, shape=SHAPE)])
    assert torch.equal(torch.stack(used).cpu(), expected)
    tier.close()


@devices
def test_a_staging_that_is_closed_midway_gives_back_memory_that_nothing_writes_to(device: str, tmp_path: Path) -> None:
    tier = make_host_tier(tmp_path, num_passages=1)
    with Stager(device) as stager:
        for number in range(8):
            keep_busy(device)
            with stager.stage([opened(tier, 0)]) as staging:
                staging.ready(0)
            mine = torch.full(SHAPE, float(number), device=device)  # where the staging was
            torch.empty(0, device=device).cpu()
            assert bool((mine == number).all())
    tier.close()


@devices
def test_a_window_is_written_after_it_was_used(device: str, tmp_path: Path) -> None:
    """Two rows for six layers, each used by a device that is late."""
    tier = make_host_tier(tmp_path, num_passages=1)
    used = []
    with Stager(device, window_bytes=1) as stager, stager.stage([opened(tier, 0)]) as staging:
        assert staging.passages[0].num_layers == 2
        for layer in range(staging.num_layers):
            staging.ready(layer)
            keep_busy(device)
            used.append(staging.passages[0].payload[layer % 2].clone())
    assert torch.equal(torch.stack(used).cpu(), make_kv(0, shape=SHAPE))
    tier.close()


@devices
def test_the_arena_is_written_after_it_was_read(device: str, tmp_path: Path) -> None:
    """Room for one passage: each is read by a device that is late, closed, and overwritten by the next."""
    tier = make_host_tier(tmp_path, num_passages=8)
    gpu = GPUTier(device, budget_bytes=PAYLOAD_BYTES)
    store = TieredStore([tier], gpu=gpu)
    used = []
    with Stager(device, gpu=gpu) as stager:
        for number in range(8):
            with stager.stage([opened(tier, number)]) as staging:
                assert staging.keep() == 1
            with opened(gpu, number) as copy:
                staged = copy.staged()
                assert staged is not None
                keep_busy(device)
                used.append(staged.payload.clone())
    expected = torch.stack([make_kv(number, shape=SHAPE) for number in range(8)])
    assert torch.equal(torch.stack(used).cpu(), expected)
    gpu.check_integrity()
    store.close()


@devices
def test_what_is_put_is_read_after_it_was_computed(device: str) -> None:
    gpu = GPUTier(device, budget_bytes=8 * PAYLOAD_BYTES)
    for number in range(8):
        kv = torch.zeros(SHAPE, device=device)
        keep_busy(device)
        kv += make_kv(number, shape=SHAPE).to(device)
        gpu.put(TensorContent(make_key(number), kv, capture_position=0))
    for number in range(8):
        with opened(gpu, number) as file:
            assert torch.equal(file.read(), make_kv(number, shape=SHAPE))
