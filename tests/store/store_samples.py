"""Short words for what tests do to a store."""

from pathlib import Path

from kvblend.store import OpenPassageKV, PassageKVKey, StoredPassageKV, TieredStore
from tests.store.samples import make_key, make_kv

__all__ = ["delete", "demote", "flip", "opened", "path_in", "pin", "promote", "put", "read", "where"]


def put(store: TieredStore, *numbers: int) -> list[str]:
    return [store.put(make_key(number), make_kv(number), capture_position=0) for number in numbers]


def where(store: TieredStore, *numbers: int) -> list[str | None]:
    return [store.lookup_many([make_key(number)]).get(make_key(number)) for number in numbers]


def opened(store: TieredStore, number: int) -> OpenPassageKV | None:
    return store.open_many([make_key(number)]).get(make_key(number))


def read(store: TieredStore, number: int) -> StoredPassageKV:
    """An open file that is not on a device; the caller closes it."""
    file = opened(store, number)
    assert isinstance(file, StoredPassageKV)
    return file


def promote(store: TieredStore, number: int) -> bool:
    return store.promote_many([make_key(number)]) == {make_key(number)}


def demote(store: TieredStore, number: int) -> bool:
    return store.move_down([make_key(number)]) == {make_key(number)}


def pin(store: TieredStore, number: int, *, pinned: bool = True) -> int:
    return store.pin([make_key(number).variant], pinned=pinned)


def delete(store: TieredStore, number: int) -> int:
    return store.delete([make_key(number).variant])


def path_in(store: TieredStore, tier: str, key: PassageKVKey) -> Path:
    return Path(next(each.location for each in store.bounded if each.name == tier)) / key.file_name


def flip(path: Path, offset: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 16
    path.write_bytes(damaged)
