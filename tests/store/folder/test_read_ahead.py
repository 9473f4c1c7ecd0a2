"""Layers read before they are asked for are what they are without that, whoever asks, and take bounded room."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

import pytest
import torch

from kvblend.core.errors import CorruptPassageKVError
from kvblend.core.settings import CodecName
from kvblend.store import CPUTier, DiskTier, PassageKVFile, ReadAhead, StoredPassageKV, TieredStore
from kvblend.store.buffers import empty_extents
from tests.store.samples import make_key, make_kv

NUM_LAYERS, LENGTHS = 9, (40, 700, 3)
"""A layer of the second takes several times as much as all others together."""


@contextmanager
def opened(folder: Path, codec: CodecName, *, disk: bool = True) -> Iterator[list[StoredPassageKV]]:
    tier = (DiskTier if disk else CPUTier)(folder, budget_bytes=1 << 26)
    with TieredStore([tier], codec=codec) as store, ExitStack() as closing:
        keys = [make_key(number) for number in range(len(LENGTHS))]
        for number, (key, length) in enumerate(zip(keys, LENGTHS, strict=True)):
            store.put(key, make_kv(number, shape=(NUM_LAYERS, 2, length, 2, 8)), capture_position=1)
        files = store.open_many(keys)
        yield [closing.enter_context(files[key]) for key in keys]  # type: ignore[misc]


def staged(file: StoredPassageKV, layer: int, ahead: ReadAhead | None = None, place: int = 0) -> bytes:
    memory = empty_extents(1, file.header.staged_extent_bytes)[0]
    if ahead is None:
        file.read_staged(layer, memory)
    else:
        ahead.read_staged(place, layer, memory)
    return memory[: file.header.staged_bytes].numpy().tobytes()


def items() -> list[tuple[int, int]]:
    """(layer, file) in the order in which they are asked for."""
    return list(product(range(NUM_LAYERS), range(len(LENGTHS))))


def all_staged(files: Sequence[StoredPassageKV], ahead: ReadAhead | None, *, num_threads: int = 1) -> list[bytes]:
    with ThreadPoolExecutor(num_threads) as threads:
        return list(threads.map(lambda item: staged(files[item[1]], item[0], ahead, item[1]), items()))


@pytest.mark.parametrize("max_bytes", [1, 20_000, 100_000, 1 << 25])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_read_ahead(tmp_path: Path, max_bytes: int, num_threads: int) -> None:
    """Reference: each layer read when it is asked for. Ours: read before."""
    with opened(tmp_path, "entropy") as files:
        expected = all_staged(files, None)
        with ReadAhead(files, max_bytes=max_bytes) as ahead:
            assert (ahead._room < max_bytes) == (max_bytes > 1), "nothing was begun before it was asked for"
            assert ahead._room >= 0
            assert all_staged(files, ahead, num_threads=num_threads) == expected
            assert (ahead._room, ahead._begun, list(ahead._coming)) == (max_bytes, {}, [])


@pytest.mark.parametrize(("codec", "disk"), [("raw", True), ("int8", True), ("entropy", False)])
def test_what_waits_for_no_disk_or_is_not_packed_is_read_when_it_is_asked_for(
    tmp_path: Path, codec: CodecName, disk: bool
) -> None:
    with opened(tmp_path, codec, disk=disk) as files, ReadAhead(files) as ahead:
        assert not ahead._begun and not ahead._coming
        assert all_staged(files, ahead) == all_staged(files, None)


@pytest.mark.parametrize("max_bytes", [1, 20_000, 1 << 25])
def test_a_layer_that_is_corrupt_fails_alone(tmp_path: Path, max_bytes: int) -> None:
    """The layers before it are whole, the other files too, and no more is read of its own."""
    with opened(tmp_path, "entropy") as files:
        expected = all_staged(files, None)
        bad = files[1]
        assert isinstance(bad, PassageKVFile)
        content = bytearray(bad.path.read_bytes())
        content[-bad.header.payload_bytes + bad.header.extent_start(4)] ^= 1
        bad.path.chmod(0o600)
        bad.path.write_bytes(content)
        with ReadAhead(files, max_bytes=max_bytes) as ahead:
            for (layer, place), own in zip(items(), expected, strict=True):
                if (layer, place) == (4, 1):
                    with pytest.raises(CorruptPassageKVError, match=r"layer 4 .*fails its checksum"):
                        staged(bad, layer, ahead, place)
                    assert not [part for part in ahead._coming if part.place == 1]
                elif place != 1 or layer < 4:
                    assert staged(files[place], layer, ahead, place) == own


def test_a_file_that_is_cut_short_fails(tmp_path: Path) -> None:
    with opened(tmp_path, "entropy") as files:
        bad = files[0]
        assert isinstance(bad, PassageKVFile)
        bad.path.chmod(0o600)
        with bad.path.open("r+b") as file:
            file.truncate(8192)
        with ReadAhead(files) as ahead, pytest.raises(CorruptPassageKVError, match="ends at byte"):
            for layer in range(NUM_LAYERS):
                staged(bad, layer, ahead)


def test_no_read_is_under_way_when_it_is_left(tmp_path: Path) -> None:
    """A file's descriptor may be another's once it is closed."""
    with opened(tmp_path, "entropy") as files:
        for _ in range(20):
            with ReadAhead(files) as ahead:
                reads = {part.read for part in ahead._begun.values()}
                staged(files[0], 0, ahead)
            assert len(reads) >= 3 and all(read is not None and read.done() for read in reads)


def test_memory_that_is_read_to_may_be_written_in_any_thread(tmp_path: Path) -> None:
    """Within an engine's inference mode, too."""
    with opened(tmp_path, "entropy") as files, torch.inference_mode():
        expected = all_staged(files, None)
        with ReadAhead(files) as ahead:
            assert all_staged(files, ahead, num_threads=2) == expected
