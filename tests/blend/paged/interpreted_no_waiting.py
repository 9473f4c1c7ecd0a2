"""Run in Triton's interpreter by test_interpreted: from a pass's first layer to its last, nothing asks the device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kvblend.blend.benchmark import shapes_for
from kvblend.blend.benchmark.blend import Blend
from kvblend.blend.benchmark.tiers import PinnedTier
from kvblend.blend.benchmark.workload import Workload
from kvblend.triton_kernels import Codec
from kvblend.triton_kernels.launch import Launch

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal")
"""ATen operators that on a GPU make the host wait for a number or a shape."""


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where an operator waits, or indexes by a mask."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
            assert not masks, f"{name} by a mask waits for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def kernels_apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Launches are the device's work: the interpreter's own operators are not looked at."""
    run = Launch.run

    def unwatched(launch: Launch) -> None:
        with torch.utils._python_dispatch._disable_current_modes():
            run(launch)

    with monkeypatch.context() as patched:
        patched.setattr(Launch, "run", unwatched)
        yield


def test_a_whole_blend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer-by-layer load, probe, selection, repair and question: what a CUDA graph can capture."""
    (shape,) = shapes_for(torch.device("cpu"))
    workload = Workload(shape.build(torch.device("cpu")), 64, passage_tokens=32)
    blend = Blend(workload, PinnedTier(workload.passages, codec=Codec("int8", 16)), recompute_ratio=0.2)
    blend.prepare()
    expected = blend.run()
    with kernels_apart(monkeypatch), NoWaiting():  # type: ignore[no-untyped-call]
        again = blend.run()
    torch.testing.assert_close(again, expected, rtol=0, atol=0)


@pytest.mark.parametrize("waits", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero()])
def test_the_watch_sees(waits: Callable[[Tensor], object]) -> None:
    watch = NoWaiting()  # type: ignore[no-untyped-call]
    with pytest.raises(AssertionError, match="waits for the device"), watch:
        waits(torch.ones(3))
