"""What a remote tier asks of a store of objects."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any

__all__ = ["RemoteFullError", "RemoteObjects"]


class RemoteFullError(OSError):
    """The store has no room, or takes no object as large."""


class RemoteObjects(ABC):
    """Immutable objects by their file names (`PassageKVKey.file_name`), safe from several threads.

    A call may take as long as the client's own time limits let it: a tier that waits for less abandons it. Every method
    raises OSError where the store cannot be reached, does not answer in time, or refuses.
    """

    name: str
    """The tier's."""
    location: str
    """An address without credentials."""

    @abstractmethod
    def exist(self, names: Collection[str]) -> set[str]:
        """Those that are there."""

    @abstractmethod
    def get(self, name: str) -> Any:
        """The object's bytes, as anything that has a buffer and is the caller's; None where there is none."""

    @abstractmethod
    def put(self, name: str, data: memoryview) -> bool:
        """Keep an object; False where there is one, which stays. Raises RemoteFullError where there is no room."""

    @abstractmethod
    def delete(self, names: Collection[str]) -> int:
        """Delete objects; returns how many there were."""

    def delete_beginning(self, folder: str, beginnings: Collection[str]) -> int:
        """Delete those of one passage's objects whose names begin with one of these; returns how many there were."""
        own = [name for name in self.names_in(folder) if name.startswith(tuple(beginnings))]
        return self.delete(own) if own else 0

    @abstractmethod
    def names_in(self, folder: str) -> set[str]:
        """The names of all objects of one passage's folder."""

    @abstractmethod
    def claim(self, name: str, seconds: float) -> Callable[[], object] | None:
        """Claim a name among all that use the store, for so long at most; returns what gives it back, or None where
        somebody else has it. A claim is no object: it is never listed, and what is deleted leaves it be."""

    @abstractmethod
    def close(self) -> None:
        """Close connections."""
