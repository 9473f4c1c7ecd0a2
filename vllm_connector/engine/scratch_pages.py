"""Which of a layer's scratch pages are whose."""

from collections.abc import Sequence

from kvblend.core.errors import InvalidRequestError

__all__ = ["ScratchPages", "no_room"]


class ScratchPages:
    """Numbers of scratch pages, from 1 to `num_pages`, of `page_size` tokens, allotted to contexts."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self._num_pages, self._page_size = num_pages, page_size
        self._free = list(range(1, num_pages + 1))

    def reserve(self, num_tokens: int) -> list[int] | None:
        """Pages for a context; None where they must wait until others are free.

        Raises InvalidRequestError where there are not as many.
        """
        count = -(-num_tokens // self._page_size)
        if count > self._num_pages:
            raise InvalidRequestError(
                f"a context of {num_tokens} tokens is over the {self._num_pages * self._page_size} that layers with a "
                f"sliding window have scratch pages for (KVBLEND_SCRATCH_TOKENS)"
            )
        if count > len(self._free):
            return None
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def release(self, pages: Sequence[int]) -> None:
        self._free.extend(pages)


def no_room(num_tokens: int, error: RuntimeError) -> InvalidRequestError:
    """What to tell who started an engine on a device without the memory for its scratch pages."""
    return InvalidRequestError(
        f"scratch pages for {num_tokens} tokens of the layers with a sliding window cannot be had: lower vLLM's "
        f"--gpu-memory-utilization or KVBLEND_SCRATCH_TOKENS: {error}",
        param="KVBLEND_SCRATCH_TOKENS",
    )
