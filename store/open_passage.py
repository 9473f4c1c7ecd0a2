"""A passage KV that a tier has opened."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from kvblend.store.format import PassageKVHeader
from kvblend.triton_kernels import StagedPassage

__all__ = ["OpenPassageKV"]


class OpenPassageKV(ABC):
    """One passage KV, held open: it stays whole until `close`, whatever its tier does meanwhile.

    Use it as a context manager. `header` was checked before this was opened. `tier` is the name of the tier that it was
    opened from.
    """

    header: PassageKVHeader
    tier: str

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes that it takes in its tier."""

    @abstractmethod
    def quarantine(self) -> bool:
        """Put it aside, since a layer failed its check: its key is a miss from now on. Logs one warning.

        False, and nothing is done, where it is no longer what lies under its key.
        """

    @abstractmethod
    def close(self) -> None:
        """Let it go. Idempotent."""

    def staged(self) -> StagedPassage | None:
        """What the kernels take, where it lies in device memory already; None where it must be read.

        It may be used until `close`, on the stream that is current in this thread, and is not checked again.
        """
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
