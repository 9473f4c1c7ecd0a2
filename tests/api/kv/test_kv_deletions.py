"""Deletions of passage KV are finished, whatever happens between the catalog's part and the store's."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from kvblend.api.collections import Collections
from kvblend.api.kv.deletions import KVDeletions
from kvblend.api.kv.ledger import DeletionLedger
from kvblend.api.kv.owners import KVOwners
from kvblend.api.kv.passage_kv import PassageKV
from kvblend.api.metrics import Metrics
from kvblend.api.prompt.neighbours import PassageVariant, StoredVariant, VariantLedger
from kvblend.core.errors import KVBlendError
from kvblend.store import DiskTier, PassageKVKey, TieredStore

ROOT = Path(__file__).resolve().parents[3]
FINGERPRINT = "model-1"
NAMES = [(f"{context:064x}", f"{passage:064x}") for context, passage in ((1, 1), (1, 2), (2, 1), (1, 3))]


class Held(Collections):
    """Collections that hold what a test says."""

    owners = KVOwners("service")

    def __init__(self) -> None:
        self.held: set[tuple[str, str]] = set(NAMES)
        self.gone: set[str] = set()
        """Passages that no collection has any more."""

    def absent(self, name: str, passage_ids: Collection[str]) -> set[str]:
        return set(passage_ids) & self.gone

    def unreferenced(self, names: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        return set(names) - self.held


class Idle:
    """An encoder that encodes nothing, and a completion that is complete."""

    is_complete = True

    def __init__(self) -> None:
        self.encoding: set[tuple[str, str]] = set()

    def is_encoding(self, name: tuple[str, str]) -> bool:
        return name in self.encoding

    async def drop(self, names: object) -> None:
        """Nothing waits."""

    async def fingerprints(self) -> list[str]:
        return [FINGERPRINT]


class Parts:
    def __init__(self, folder: Path) -> None:
        self.folder, self.held, self.idle = folder, Held(), Idle()
        self.store = TieredStore([DiskTier(folder / "kv", budget_bytes=1 << 24)])
        for number, name in enumerate(NAMES):
            key = PassageKVKey(FINGERPRINT, *name, 0, 1)
            owners = ["service/news"] if number != 3 else ["other/news"]
            self.store.put(key, torch.zeros(1, 2, 3, 1, 8), capture_position=0, owners=owners)
        self.reopen()

    def reopen(self) -> None:
        """As a service that starts again."""
        self.ledger = DeletionLedger(self.folder / "ledger.sqlite3")
        kv = PassageKV(self.store)
        self.variants = VariantLedger(self.folder / "variants.sqlite3")
        self.metrics = Metrics()
        self.deletions = KVDeletions(
            self.ledger,
            self.held,
            self.idle,  # type: ignore[arg-type]
            kv,
            self.idle,  # type: ignore[arg-type]
            self.variants,
            self.metrics,
            tenants=lambda: ["default"],
        )

    @property
    def stored(self) -> set[tuple[str, str]]:
        keys = [PassageKVKey(FINGERPRINT, *name, 0, 1) for name in NAMES]
        return {(key.encode_context, key.passage_id) for key in self.store.lookup_many(keys)}


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    parts = Parts(tmp_path)
    yield parts
    parts.ledger.close()
    parts.store.close()


async def test_what_nothing_holds_any_more_is_deleted_and_nothing_else(parts: Parts) -> None:
    async with parts.deletions.of(NAMES[:2]):
        assert parts.ledger.pending() == set(NAMES[:2])
        parts.held.held -= {NAMES[0]}
    assert parts.stored == set(NAMES[1:])
    assert parts.ledger.pending() == set()


async def test_a_variant_goes_with_either_of_its_passages(parts: Parts) -> None:
    """NAMES[2] and [3] are variants of passages 1 and 3, both behind passage 2: held by no document, and kept as long
    as a collection has both passages; what is deleted is named by the document's own KV alone."""
    (_, one), (_, two), (_, three) = NAMES[0], NAMES[1], NAMES[3]
    rows = [StoredVariant("news", PassageVariant(two, name[1]), name[0]) for name in NAMES[2:]]
    parts.variants.add(rows)
    parts.held.held -= set(NAMES[2:])
    assert await parts.deletions.sweep() == 0
    assert parts.stored == set(NAMES)
    async with parts.deletions.of([(NAMES[3][0], three)]):
        parts.held.gone = {three}
    assert parts.stored == set(NAMES[:3])
    async with parts.deletions.of([NAMES[1]]):
        parts.held.held -= {NAMES[1]}
        parts.held.gone = {two, three}
    assert parts.stored == {NAMES[0]}
    assert parts.variants.of_collection("news") == []
    assert one not in parts.held.gone


async def test_a_crash_behind_the_catalogs_part_is_made_good_by_the_next_start(parts: Parts) -> None:
    """As `os._exit` there would leave it: the ledger written, the catalog changed, the store not."""
    with pytest.raises(KVBlendError):
        async with parts.deletions.of(NAMES[:2]):
            parts.held.held -= {NAMES[0]}
            raise KVBlendError("the process is gone")
    assert parts.stored == set(NAMES) and parts.ledger.pending() == set(NAMES[:2])
    assert parts.ledger.count() == 2
    parts.ledger.close()
    parts.reopen()
    await parts.deletions.settle()
    assert parts.stored == set(NAMES[1:]) and parts.ledger.pending() == set()


async def test_what_a_caller_is_about_to_let_go_of_is_not_settled_before(parts: Parts) -> None:
    """Else the ledger would forget it, held still, and a crash after the catalog's part would leave it behind."""
    async with parts.deletions.of(NAMES[:1]):
        await parts.deletions.settle()
        assert parts.ledger.pending() == set(NAMES[:1])
        parts.held.held -= {NAMES[0]}
    assert parts.stored == set(NAMES[1:])


async def test_a_tier_that_does_not_answer_is_asked_again(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def dead(*_: object) -> int:
        raise OSError("the redis tier is not asked now")

    parts.held.held -= {NAMES[0]}
    with monkeypatch.context() as patch:
        patch.setattr(parts.store, "delete", dead)
        async with parts.deletions.of(NAMES[:1]):
            pass
        for _ in range(3):
            await parts.deletions.settle()
        assert parts.ledger.pending() == set(NAMES[:1])
    await parts.deletions.settle()
    assert parts.stored == set(NAMES[1:]) and parts.ledger.pending() == set()
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [message.split(":")[0] for message in said] == [
        "the KV of 1 deleted passages is not gone from every tier",
        "the KV of all deleted passages is gone from every tier",
    ]


async def test_a_sweep_finds_what_no_collection_holds_of_this_service_alone(parts: Parts) -> None:
    parts.held.held = {NAMES[1]}
    parts.idle.encoding = {NAMES[2]}
    assert await parts.deletions.sweep() == 1
    assert parts.stored == {NAMES[1], NAMES[2], NAMES[3]}, "the last one is another service's"
    parts.idle.encoding = set()
    assert await parts.deletions.sweep() == 1 and await parts.deletions.sweep() == 0
    assert "kvblend_swept_passages_total 2.0" in parts.metrics.text().decode()
    assert parts.stored == {NAMES[1], NAMES[3]}


async def test_it_settles_and_sweeps_by_itself(parts: Parts) -> None:
    parts.held.held = {NAMES[1]}
    parts.ledger.add(NAMES[:1])
    parts.deletions.start()
    for _ in range(2400):
        if parts.stored == {NAMES[1], NAMES[3]}:
            break
        await asyncio.sleep(0.05)
    assert parts.stored == {NAMES[1], NAMES[3]}
    await parts.deletions.close()


async def test_what_is_taken_up_while_it_is_deleted_waits_until_it_is_gone(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else KV that is seen, and reused, by the ingest that takes it up would be gone a moment later."""
    deleting, go_on = threading.Event(), threading.Event()
    delete = parts.store.delete

    def slow(*args: Any) -> int:
        deleting.set()
        assert go_on.wait(240)
        return delete(*args)

    monkeypatch.setattr(parts.store, "delete", slow)
    parts.held.held -= {NAMES[0]}
    parts.ledger.add(NAMES[:1])
    settling = asyncio.create_task(parts.deletions.settle())
    assert await asyncio.to_thread(deleting.wait, 240)

    async def take_up() -> bool:
        async with parts.deletions.of(NAMES[:2]):
            parts.held.held |= {NAMES[0]}
            return NAMES[0] in parts.stored

    taking_up = asyncio.create_task(take_up())
    await asyncio.sleep(0.2)
    assert not taking_up.done(), "it went on while its KV was about to be deleted"
    async with parts.deletions.of(NAMES[1:2]):
        pass  # others do not wait
    go_on.set()
    await settling
    assert await taking_up is False, "it saw KV that was deleted afterwards"
    assert parts.ledger.pending() == set()


async def test_what_is_taken_up_before_it_is_looked_at_is_kept(parts: Parts) -> None:
    parts.held.held -= {NAMES[0]}
    parts.ledger.add(NAMES[:1])
    async with parts.deletions.of(NAMES[:1]):
        await parts.deletions.settle()
        parts.held.held |= {NAMES[0]}
    assert parts.stored == set(NAMES)


DIES = """
import asyncio, os, pathlib, sys
from tests.api.kv.test_kv_deletions import NAMES, Parts

async def main():
    parts = Parts(pathlib.Path(sys.argv[1]))
    async with parts.deletions.of(NAMES[:2]):
        parts.held.held -= {NAMES[0]}  # the catalog's part is done
        os._exit(9)

asyncio.run(main())
"""


async def test_a_process_that_dies_behind_the_catalogs_part_leaves_it_to_the_next(tmp_path: Path) -> None:
    died = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", DIES, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        timeout=240,
        check=False,
    )
    assert died.returncode == 9
    parts = Parts(tmp_path)
    parts.held.held -= {NAMES[0]}
    assert parts.ledger.pending() == set(NAMES[:2]) and parts.stored == set(NAMES)
    await parts.deletions.settle()
    assert parts.stored == set(NAMES[1:]) and parts.ledger.pending() == set()
    parts.ledger.close()
    parts.store.close()
