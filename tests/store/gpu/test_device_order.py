"""Memory on a device is neither read before it is written nor written while it is read, however late the device is.

On a CPU a copy is done when it returns; the simulated GPU runs its streams in any order that events allow. Where there
is an NVIDIA GPU these tests run on it too, its stream kept busy.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from kvblend.store import CPUTier, GPUTier, Stager, TieredStore
from kvblend.store.content import TensorContent
from kvblend.store.gpu import host_ring
from kvblend.store.gpu.arena import Arena
from kvblend.store.gpu.device_stream import SideStream
from kvblend.triton_kernels import StagedPassage
from tests.store.gpu.simulated_cuda import Machine, simulated_cuda
from tests.store.samples import make_key, make_kv
from tests.store.tier_contract import opened

DEVICES = ["cpu", *(f"simulated {seed}" for seed in range(5)), *(["cuda"] if torch.cuda.is_available() else [])]
NUM_PASSAGES = 6
SHAPE = (6, 2, 64, 2, 32)
PAYLOAD_BYTES = torch.Size(SHAPE).numel() * 4


class Device:
    """What a test does with a device, beside the store."""

    def __init__(self, name: str, machine: Machine | None = None) -> None:
        self.name, self._machine = name, machine
        self._taken: list[torch.Tensor] = []

    def put(self, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers that the device has some milliseconds later."""
        there = torch.empty(numbers.shape, dtype=numbers.dtype, device=self.name)
        self.keep_busy()
        return there.copy_(numbers, non_blocking=True)

    def take(self, numbers: torch.Tensor) -> None:
        """Copy on the device what is there when the current stream gets to it, in some milliseconds."""
        self.keep_busy()
        self._taken.append(torch.empty(numbers.shape, dtype=numbers.dtype, device=self.name))
        self._taken[-1].copy_(numbers, non_blocking=True)

    def keep_busy(self) -> None:
        if self.name == "cuda" and self._machine is None:
            torch.cuda._sleep(5_000_000)  # type: ignore[no-untyped-call]

    @contextmanager
    def another_stream(self) -> Iterator[None]:
        """Compute on another stream than the tests' own, which waits for nothing."""
        if self.name == "cpu":
            yield
            return
        with torch.cuda.stream(torch.cuda.Stream(self.name)):  # type: ignore[no-untyped-call]
            yield

    def taken(self) -> torch.Tensor:
        return torch.stack([numbers.cpu() for numbers in self._taken])

    def synchronize(self) -> None:
        """Wait for every stream."""
        if self._machine is not None:
            self._machine.finish()
        elif self.name == "cuda":
            torch.cuda.synchronize()

    def reuse(self, memory: torch.Tensor) -> None:
        """Let the next allocation of that size have this memory, as torch's allocator would."""
        if self._machine is not None:
            self._machine.free.append(memory.view(-1))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    if not request.param.startswith("simulated"):
        yield Device(request.param)
        return
    with pytest.MonkeyPatch.context() as patch, simulated_cuda(patch, seed=int(request.param.split()[1])) as machine:
        yield Device("cuda", machine)


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[CPUTier]:
    """On the host, NUM_PASSAGES passages."""
    tier = CPUTier(tmp_path / "cpu", budget_bytes=2 * NUM_PASSAGES * PAYLOAD_BYTES)
    for number in range(NUM_PASSAGES):
        tier.put(TensorContent(make_key(number), make_kv(number, shape=SHAPE), capture_position=0))
    yield tier
    tier.close()


def all_passages() -> torch.Tensor:
    return torch.stack([make_kv(number, shape=SHAPE) for number in range(NUM_PASSAGES)])


def use_stagings(device: Device, tier: CPUTier, *, window_bytes: int) -> torch.Tensor:
    """Each passage in a staging of its own, in memory that the one before has used."""

    def prepare(passages: tuple[StagedPassage, ...]) -> Callable[[int], object]:
        (passage,) = passages
        return lambda layer: device.take(passage.payload[layer % passage.num_layers])

    with Stager(device.name, host_bytes=PAYLOAD_BYTES // 2, window_bytes=window_bytes) as stager:
        for number in range(NUM_PASSAGES):
            with opened(tier, number) as file:
                assert stager.stage([file], prepare) == {}
    return device.taken().view(NUM_PASSAGES, *SHAPE)


@pytest.mark.parametrize("window_bytes", [1, PAYLOAD_BYTES // 2, PAYLOAD_BYTES])
def test_what_is_staged_is_used_after_it_came_and_overwritten_after_it_was_used(
    device: Device, tier: CPUTier, window_bytes: int
) -> None:
    assert torch.equal(use_stagings(device, tier, window_bytes=window_bytes), all_passages())


def use_arena(device: Device, tier: CPUTier, *, num_fit: int) -> torch.Tensor:
    """Each passage staged into an arena with room for few, used there twice, closed, and overwritten."""
    gpu = GPUTier(device.name, budget_bytes=num_fit * PAYLOAD_BYTES)
    store = TieredStore([tier], gpu=gpu)
    with Stager(device.name, gpu=gpu, host_bytes=PAYLOAD_BYTES // 2) as stager:
        for number in range(NUM_PASSAGES):
            with opened(tier, number) as file:
                if number % 2:
                    with pytest.raises(RuntimeError, match="abandoned"):  # midway: nobody finds it
                        stager.stage([file], lambda passages: abandon)
                    continue
                assert stager.stage([file], lambda passages: lambda layer: None) == {}
            for _ in range(2):
                resident = store.open_many([make_key(number)])[make_key(number)]
                assert resident.tier == "gpu"
                with device.another_stream(), resident:
                    staged = resident.staged()
                    assert staged is not None
                    device.take(staged.payload)
    device.synchronize()
    taken = device.taken()
    gpu.check_integrity()
    return taken


def abandon(layer: int) -> None:
    if layer == 1:
        raise RuntimeError("abandoned")


def expected_of_arena() -> torch.Tensor:
    return all_passages()[::2].repeat_interleave(2, dim=0)


@pytest.mark.parametrize("num_fit", [1, 2])
def test_the_arena_is_read_after_it_was_written_and_written_after_it_was_read(
    device: Device, tier: CPUTier, num_fit: int
) -> None:
    assert torch.equal(use_arena(device, tier, num_fit=num_fit), expected_of_arena())


@pytest.mark.parametrize(
    "forgotten", ["the end", "the order of a stream", "reads of the arena", "reuse of host memory"]
)
def test_the_simulated_gpu_sees_what_is_not_waited_for(forgotten: str, tier: CPUTier) -> None:
    """The negative control: with any one wait left out, some order of the same work gives wrong numbers."""
    for seed in range(30):
        with pytest.MonkeyPatch.context() as patch, simulated_cuda(patch, seed=seed) as machine:
            device = Device("cuda", machine)
            if forgotten == "the end":
                patch.setattr(SideStream, "event", lambda stream: None)
            elif forgotten == "the order of a stream":
                patch.setattr(SideStream, "use", lambda stream: nullcontext())
            elif forgotten == "reuse of host memory":
                patch.setattr(host_ring, "has_passed", lambda event: True)
            else:
                patch.setattr(Arena, "note_read", lambda arena: None)
                if not torch.equal(use_arena(device, tier, num_fit=1), expected_of_arena()):
                    return
                continue
            if not torch.equal(use_stagings(device, tier, window_bytes=1), all_passages()):
                return
    raise AssertionError(f"nothing went wrong without the wait for {forgotten}")
