"""What a folder tier's steps take, however many passages it holds."""

import os
import shutil
import statistics
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvblend.core.identity import EMPTY_CONTEXT, token_hash
from kvblend.eval.bench.call_times import call_times
from kvblend.store import NEVER, CPUTier, DiskTier, PassageKVKey
from kvblend.store.content import TensorContent
from kvblend.store.eviction import LRU
from kvblend.store.folder.index import FolderIndex, IndexedFile

__all__ = ["lookup_rows"]

FILE_BYTES = 8192
BATCH = 6
"""Keys a lookup: passages of a request."""
REPEATS = 300
INODES_A_FILE = 2.1
"""Its own, its passage's folder's, and a share of those above."""


def lookup_rows(cpu_folder: Path, disk_folder: Path, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Rows {tier, num_passages, us_p50, us_p99, touch_ms, stats_ms, evict_ms, delete_ms}, of tiers of so many files.

    The CPU tier, or the disk tier where tmpfs has no room for as many names: a disk takes minutes to make a million.

    `us`: of a passage's lookup, half of them hits, six in a call. `touch_ms`: marking six as used; the others: reading
    the counters, evicting one file, deleting one passage. Medians, but for `us_p99`. All but one of the files are
    stood for by an empty file under their name and a row in the index: nothing of these steps reads what is in them.
    """
    return [_row(cpu_folder, disk_folder, size) for size in sizes]


def _row(cpu_folder: Path, disk_folder: Path, num_passages: int) -> dict[str, Any]:
    cpu_folder.mkdir(parents=True, exist_ok=True)
    has_room = os.statvfs(cpu_folder).f_favail > INODES_A_FILE * num_passages
    kind, parent = (CPUTier, cpu_folder) if has_room else (DiskTier, disk_folder)
    folder = parent / str(num_passages)
    keys = [PassageKVKey("bench", EMPTY_CONTEXT, token_hash([number]), 0, 1) for number in range(num_passages)]
    _fill(folder, keys)
    with closing(kind(folder, budget_bytes=num_passages * FILE_BYTES + FILE_BYTES, policy=LRU())) as tier:
        last = PassageKVKey("bench", EMPTY_CONTEXT, token_hash([num_passages]), 0, 1)
        tier.put(TensorContent(last, torch.zeros(1, 2, 1, 1, 8), capture_position=0), NEVER)
        random = np.random.default_rng(0)
        misses = [PassageKVKey("bench", EMPTY_CONTEXT, token_hash([-1, number]), 0, 1) for number in range(1000)]
        asked = [
            [keys[place] for place in random.integers(num_passages, size=BATCH // 2)]
            + [misses[place] for place in random.integers(len(misses), size=BATCH // 2)]
            for _ in range(REPEATS)
        ]
        lookups = [
            seconds / BATCH * 1e6 for seconds in call_times([_bound(tier.lookup_many, own, NEVER) for own in asked])
        ]
        victims = iter(keys[len(keys) // 2 :])
        row = {
            "tier": tier.name,
            "num_passages": num_passages,
            "us_p50": float(np.percentile(lookups, 50)),
            "us_p99": float(np.percentile(lookups, 99)),
            "touch_ms": _median_ms([_bound(tier.touch_many, own) for own in asked[:50]]),
            "stats_ms": _median_ms([tier.stats] * 50),
            "evict_ms": _median_ms([_bound(tier.evict, 1)] * 20),
            "delete_ms": _median_ms([_bound(tier.delete, [next(victims).variant], NEVER) for _ in range(20)]),
        }
    shutil.rmtree(folder)
    return row


def _fill(folder: Path, keys: Sequence[PassageKVKey]) -> None:
    """Names without files' bytes, and the rows that a tier would have of them."""
    for key in keys:
        path = folder / key.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    index = FolderIndex(folder, LRU(), lambda _: None)
    with index.transaction() as inside:
        for number, key in enumerate(keys):
            inside.add(IndexedFile(key.file_name, "whole", FILE_BYTES, number), cost=1.0)
        inside.clean = True
    index.close()


def _bound(work: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: work(*arguments)


def _median_ms(works: Sequence[Callable[[], object]]) -> float:
    return statistics.median(call_times(works)) * 1e3
