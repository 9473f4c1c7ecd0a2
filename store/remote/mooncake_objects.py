"""Objects in a Mooncake store: the memory of its members, which a master gives out."""

from collections.abc import Callable, Collection, Sequence

from kvblend.store.buffers import byte_view, empty_extents
from kvblend.store.remote.mooncake_claims import MooncakeClaims
from kvblend.store.remote.mooncake_client import NO_KEY, NO_ROOM, MooncakeClient
from kvblend.store.remote.mooncake_names import MooncakeNames
from kvblend.store.remote.objects import RemoteFullError, RemoteObjects

__all__ = ["MooncakeObjects"]


class MooncakeObjects(RemoteObjects):
    """An object is Mooncake's under `kvblend/<its name>`. The store lists nothing: see `MooncakeNames`.

    What a member of the store holds is lost with it, and what is not used is evicted by the master: both are misses.
    Calls to a member that is stopped, or to a master that is, take 30 seconds; none holds the interpreter.
    """

    name = "mooncake"

    def __init__(self, client: MooncakeClient) -> None:
        self.location = f"mooncake://{client.master}"
        self._client, self._names, self._claims = client, MooncakeNames(client), MooncakeClaims(client)

    def exist(self, names: Collection[str]) -> set[str]:
        return self._there(list(names))

    def get(self, name: str) -> memoryview | None:
        with self._client.call() as store:
            if (held := store.get_buffer(_key(name))) is not None:
                own = byte_view(empty_extents(1, held.size())[0])
                own[:] = memoryview(held).cast("B")  # copied: its memory is what later calls pass through
                return own
        self._there([name])  # the store says the same of what is not there and of what it cannot reach
        return None

    def put(self, name: str, data: memoryview) -> bool:
        if len(data) > self._client.buffer_bytes:
            raise RemoteFullError(f"{len(data)} bytes are over the {self._client.buffer_bytes} of `buffer`")
        if self._there([name]):  # a second put would say that all is well, and keep the first
            return False
        self._names.add(name)
        with self._client.call() as store:
            code = store.put(_key(name), data, self._client.placement())
        if code == NO_ROOM:
            raise RemoteFullError("no member of the store has room")
        self._client.check(code, "put")
        return True

    def delete(self, names: Collection[str]) -> int:
        with self._client.call() as store:
            codes = [store.remove(_key(name), force=True) for name in names]
        for code in codes:
            self._client.check(code, "remove", allowed=(NO_KEY,))
        for folder in {name.rsplit("/", 1)[0] for name in names}:
            self._tidy(folder)
        return codes.count(0)

    def delete_beginning(self, folder: str, beginnings: Collection[str]) -> int:
        """By the master's own look at all its keys: also what the names do not list.

        By force, though it may be read at this moment: what is read is checked.
        """
        pattern = "|".join(f"^{_key(beginning)}" for beginning in beginnings).replace(".", r"\.")
        with self._client.call() as store:
            count: int = store.remove_by_regex(pattern, force=True)
        self._client.check(min(count, 0), "remove_by_regex")
        self._tidy(folder)
        return count

    def names_in(self, folder: str) -> set[str]:
        return self._there(sorted(self._names.of(folder)))

    def claim(self, name: str, seconds: float) -> Callable[[], object] | None:
        return self._claims.take(name, seconds)

    def close(self) -> None:
        self._client.close()

    def _tidy(self, folder: str) -> None:
        if not self.names_in(folder):
            self._names.drop(folder)

    def _there(self, names: Sequence[str]) -> set[str]:
        return set(self._client.exist({_key(name): name for name in names}))


def _key(name: str) -> str:
    return f"kvblend/{name}"
