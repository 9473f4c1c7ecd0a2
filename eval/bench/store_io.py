"""How fast tiers put and get a passage KV, each beside its floor in the same run."""

import os
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kvblend.core.identity import EMPTY_CONTEXT, token_hash
from kvblend.eval.bench.call_times import call_times
from kvblend.eval.bench.memcpy import memcpy_ms
from kvblend.store import NEVER, CPUTier, DiskTier, PassageKVKey, Tier
from kvblend.store.buffers import byte_view, empty_extents
from kvblend.store.codecs import CodecSpec, codec_spec
from kvblend.store.content import TensorContent

__all__ = ["CODECS", "io_rows", "sample_kv", "tier_rows"]

NUM_LAYERS, NUM_HEADS, HEAD_DIM = 32, 8, 128
"""Of an 8B model: 128 KiB a token in bf16."""
CODECS = tuple(codec_spec(name, HEAD_DIM) for name in ("raw", "int8", "int4", "entropy"))
NUM_FILES = 12
DISK_THREADS = 4


def io_rows(
    cpu_folder: Path, disk_folder: Path, sizes: Sequence[int], codecs: Sequence[CodecSpec] = CODECS
) -> Iterator[dict[str, Any]]:
    """Rows {tier, codec, op, num_bytes, gb_per_s_p50, floor_gb_per_s}; `num_bytes` are of the numbers in bf16.

    `get` is opening, reading, checking and decoding into memory that was touched before. The floors: of the CPU tier,
    a copy of as many bytes; of the disk tier, O_DIRECT reads by as many threads, and an O_DIRECT write with fsync.
    """
    for num_bytes in sizes:
        kv = sample_kv(num_bytes)
        budget = 4 * NUM_FILES * kv.nbytes
        memcpy = kv.nbytes / memcpy_ms(kv.nbytes, torch.device("cpu")) / 1e6
        for codec in codecs:
            cpu = CPUTier(cpu_folder / f"cpu-{codec.name}-{num_bytes}", budget_bytes=budget)
            disk = DiskTier(disk_folder / f"disk-{codec.name}-{num_bytes}", budget_bytes=budget)
            floors = {"put": _write_floor(disk_folder, kv.nbytes), "get": _read_floor(disk_folder, kv.nbytes)}
            yield from tier_rows(cpu, kv, codec, {"put": memcpy, "get": memcpy})
            yield from tier_rows(disk, kv, codec, floors)
            cpu.close()
            disk.close()


def sample_kv(num_bytes: int) -> torch.Tensor:  # [num_layers, 2, num_tokens, num_kv_heads, head_dim], bf16
    """A passage's KV of about so many bytes: of whole tokens."""
    tokens = max(1, num_bytes // (NUM_LAYERS * 2 * NUM_HEADS * HEAD_DIM * 2))
    return torch.randn(NUM_LAYERS, 2, tokens, NUM_HEADS, HEAD_DIM).bfloat16()


def tier_rows(tier: Tier, kv: torch.Tensor, codec: CodecSpec, floors: dict[str, float]) -> Iterator[dict[str, Any]]:
    """The rows of one tier, which keeps nothing of it."""
    keys = [PassageKVKey("bench", EMPTY_CONTEXT, token_hash([number]), 0, NUM_HEADS) for number in range(NUM_FILES)]
    contents = [TensorContent(key, kv, capture_position=0, codec=codec) for key in keys]
    out = torch.zeros_like(kv)

    def get(key: PassageKVKey) -> None:
        with tier.fetch_many([key], NEVER)[key] as file:
            file.read(out)

    def put_all() -> list[float]:
        return call_times([partial(tier.put, own, NEVER) for own in contents])

    def get_all() -> list[float]:
        return call_times([partial(get, key) for key in keys])

    put_all(), get_all()  # threads, connections and memory are as they are later on
    tier.delete([key.variant for key in keys], NEVER)
    seconds = {"put": put_all(), "get": get_all()}
    if codec.name == "raw" and not torch.equal(out, kv):
        raise AssertionError(f"the {tier.name} tier gave other numbers than it was given")
    for op, times in seconds.items():
        yield {
            "tier": tier.name,
            "codec": codec.name,
            "op": op,
            "num_bytes": kv.nbytes,
            "gb_per_s_p50": kv.nbytes / statistics.median(times) / 1e9,
            "floor_gb_per_s": floors[op],
        }
    tier.delete([key.variant for key in keys], NEVER)


def _write_floor(folder: Path, num_bytes: int) -> float:
    """GB/s of a file written past the page cache and synced."""
    data = byte_view(empty_extents(1, num_bytes)[0].zero_())
    path = folder / "floor"

    def write() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
        try:
            os.pwrite(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)

    return num_bytes / statistics.median(call_times([write] * NUM_FILES)) / 1e9


def _read_floor(folder: Path, num_bytes: int) -> float:
    """GB/s of the file that `_write_floor` left, read past the page cache by several threads."""
    memory = empty_extents(DISK_THREADS, -(-num_bytes // DISK_THREADS // 4096) * 4096)
    part = memory.shape[1]
    with ThreadPoolExecutor(DISK_THREADS) as threads:

        def read() -> None:
            fd = os.open(folder / "floor", os.O_RDONLY | os.O_DIRECT)
            try:
                list(threads.map(lambda row: os.preadv(fd, [byte_view(memory[row])], row * part), range(DISK_THREADS)))
            finally:
                os.close(fd)

        seconds = statistics.median(call_times([read] * NUM_FILES))
    (folder / "floor").unlink()
    return num_bytes / seconds / 1e9
