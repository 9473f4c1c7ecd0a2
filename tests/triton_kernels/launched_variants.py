"""Which variants of kernels are launched."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from kvblend.triton_kernels.launch import Launch
from kvblend.triton_kernels.variant import Variant, variant_of

__all__ = ["launched_variants"]


@contextmanager
def launched_variants(*, runs: bool = False) -> Iterator[set[Variant]]:
    """Those of the block's launches, which are done only where it `runs` them; an empty one is none."""
    run, seen = Launch.run, set[Variant]()

    def note(launch: Launch) -> None:
        if all(launch.grid):
            seen.add(variant_of(launch))
        if runs:
            run(launch)

    with patch.object(Launch, "run", note):
        yield seen
