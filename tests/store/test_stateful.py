"""The store against a model of a few ordered lists: whatever is done to it, with and without a GPU tier, both agree."""

import shutil
from collections.abc import Collection
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvblend.core.errors import CorruptPassageKVError, StoreFullError
from kvblend.core.settings import Settings, WritePolicy
from kvblend.store import OpenPassageKV, Stager, StoredPassageKV, TieredStore
from tests.store.gpu.staged_layers import stage
from tests.store.samples import EXTENT_BYTES, FILE_BYTES, make_key, make_kv

NUM_FIT = {"gpu": 2, "cpu": 2, "disk": 3}
TAKEN_BYTES = {"gpu": FILE_BYTES - EXTENT_BYTES, "cpu": FILE_BYTES, "disk": FILE_BYTES}
SHARED = ("cpu", "disk")
NUMBERS = st.integers(0, 6)


def check_and_close(file: OpenPassageKV, number: int) -> None:
    with file:
        if isinstance(file, StoredPassageKV):
            assert torch.equal(file.read(), make_kv(number))
            return
        staged = file.staged()
        assert staged is not None and torch.equal(staged.payload, make_kv(number))


class Model:
    """Which numbers lie in which tier, when each was used last, what is pinned and how much is quarantined.

    The GPU tier may hold what no shared tier does any more: to everyone who asks, that is not there. `write`: the
    store's write policy.
    """

    def __init__(self, write: WritePolicy) -> None:
        self.tiers: dict[str, list[int]] = {"gpu": [], "cpu": [], "disk": []}
        self.quarantined: dict[str, list[int]] = {"gpu": [], "cpu": [], "disk": []}
        self.pinned: set[tuple[str, int]] = set()
        self.uses: dict[tuple[str, int], int] = {}
        self.clock = 0
        self.write = write

    def find_shared(self, number: int) -> str | None:
        return next((tier for tier in SHARED if number in self.tiers[tier]), None)

    def on_host(self) -> list[int]:
        """What is opened from a file."""
        return [number for number in range(7) if self.find(number) in SHARED]

    def find(self, number: int) -> str | None:
        shared = self.find_shared(number)
        return "gpu" if shared is not None and number in self.tiers["gpu"] else shared

    def open(self, *numbers: int) -> dict[int, str]:
        """Where each is found; what is left in the GPU tier alone is dropped, and a hit there is a use below too."""
        found = {number: tier for number in numbers if (tier := self.find(number)) is not None}
        for number in [number for number, own in found.items() if own == "gpu"]:
            self.use("gpu", number)
        for number in numbers:
            shared = self.find_shared(number)
            if found.get(number) == "gpu" and shared is not None:
                self.use(shared, number)
            elif number not in found and number in self.tiers["gpu"]:
                self.remove("gpu", number)
        for tier in SHARED:
            for number in [number for number, own in found.items() if own == tier]:
                self.use(tier, number)
        return found

    def use(self, tier: str, number: int) -> None:
        self.clock += 1
        self.uses[tier, number] = self.clock

    def remove(self, tier: str, number: int) -> None:
        self.tiers[tier].remove(number)
        self.uses.pop((tier, number))
        self.pinned.discard((tier, number))

    def evict_one(self, tier: str, *, held: Collection[int] = ()) -> bool:
        if self.quarantined[tier]:
            self.quarantined[tier].pop(0)
            return True
        free = [number for number in self.tiers[tier] if (tier, number) not in self.pinned and number not in held]
        if not free:
            return False
        victim = min(free, key=lambda number: self.uses[tier, number])
        if tier == "cpu" and victim not in self.tiers["disk"]:
            self.add("disk", victim)
        self.remove(tier, victim)
        return True

    def move_down(self, number: int) -> bool:
        if number not in self.tiers["cpu"] or not self.add("disk", number) or ("cpu", number) in self.pinned:
            return False
        self.remove("cpu", number)
        return True

    def put(self, number: int) -> str | None:
        """The tier where it lasts; None where there is no room."""
        if self.write == "memory":
            return next((tier for tier in SHARED if self.add(tier, number)), None)
        if not self.add("disk", number):
            return None
        self.add("cpu", number)
        return "disk"

    def add(self, tier: str, number: int, *, held: Collection[int] = ()) -> bool:
        if number not in self.tiers[tier]:
            is_full = len(self.tiers[tier]) + len(self.quarantined[tier]) == NUM_FIT[tier]
            if is_full and not self.evict_one(tier, held=held):
                return False
            self.tiers[tier].append(number)
        self.use(tier, number)
        return True


class StoreMachine(RuleBasedStateMachine):
    device: str | None = None
    """Where the GPU tier lies; None: there is none."""
    write: WritePolicy = "disk"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.settings = Settings(
            codec="raw",
            gpu_bytes=NUM_FIT["gpu"] * TAKEN_BYTES["gpu"],
            cpu_path=self.folder / "cpu",
            cpu_bytes=NUM_FIT["cpu"] * FILE_BYTES,
            disk_path=self.folder / "disk",
            disk_bytes=NUM_FIT["disk"] * FILE_BYTES,
            write=self.write,
            eviction="lru",
        )
        self.store = TieredStore.from_settings(self.settings, self.device)
        self.stager = Stager("cpu", gpu=self.store.gpu)
        self.model = Model(self.write)

    def teardown(self) -> None:
        self.stager.close()
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(number=NUMBERS)
    def put(self, number: int) -> None:
        try:
            tier = self.store.put(make_key(number), make_kv(number), capture_position=number)
        except StoreFullError:
            assert self.model.put(number) is None
            return
        assert tier == self.model.put(number)

    @rule(numbers=st.lists(NUMBERS, max_size=3, unique=True))
    def open(self, numbers: list[int]) -> None:
        found = self.model.open(*numbers)
        files = self.store.open_many([make_key(number) for number in numbers])
        assert {key: file.tier for key, file in files.items()} == {make_key(n): tier for n, tier in found.items()}
        for number in found:
            check_and_close(files[make_key(number)], number)

    @rule(numbers=st.lists(NUMBERS, max_size=4, unique=True))
    def load(self, numbers: list[int]) -> None:
        """Open and stage several, and keep them: those that lie in the GPU tier, or are to, are open, so they stay."""
        found = self.model.open(*numbers)
        there = [number for number in numbers if number in found]
        opened = self.store.open_many([make_key(number) for number in numbers])
        assert set(opened) == {make_key(number) for number in there}
        staged = stage(self.stager, [opened[make_key(number)] for number in there])
        assert staged.failed == {}
        for place, number in enumerate(there):
            assert torch.equal(staged.kv(place), make_kv(number))
        held = [number for number in there if found[number] == "gpu"]
        for number in there:
            if found[number] != "gpu" and self.device is not None and self.model.add("gpu", number, held=held):
                held.append(number)

    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        """What lay in quarantine of it goes, too."""
        lying = [*(self.model.tiers[tier] for tier in SHARED), *self.model.quarantined.values()]
        num_files = sum(numbers.count(number) for numbers in lying)
        assert self.store.delete([make_key(number).variant]) == num_files
        for tier, numbers in self.model.tiers.items():
            if number in numbers:
                self.model.remove(tier, number)
        for tier, numbers in self.model.quarantined.items():
            self.model.quarantined[tier] = [own for own in numbers if own != number]

    @rule(number=NUMBERS, pinned=st.booleans())
    def pin(self, number: int, pinned: bool) -> None:
        tiers = {(tier, number) for tier in SHARED if number in self.model.tiers[tier]}
        assert self.store.pin([make_key(number).variant], pinned=pinned) == len(tiers)
        self.model.pinned = self.model.pinned | tiers if pinned else self.model.pinned - tiers

    @rule(number=NUMBERS)
    def promote(self, number: int) -> None:
        expected = number in self.model.tiers["cpu"]
        if not expected and number in self.model.tiers["disk"]:
            self.model.use("disk", number)
            expected = self.model.add("cpu", number)
        promoted = self.store.promote_many([make_key(number)]) == {make_key(number)}
        assert promoted == (expected and self.model.find_shared(number) is not None)

    @rule(number=NUMBERS)
    def demote(self, number: int) -> None:
        moved = self.model.move_down(number)
        if moved and number in self.model.tiers["gpu"]:
            self.model.remove("gpu", number)
        assert self.store.move_down([make_key(number)]) == ({make_key(number)} if moved else set())

    @rule(tier=st.sampled_from(sorted(NUM_FIT)))
    def evict(self, tier: str) -> None:
        if tier == "gpu" and self.device is None:
            return
        files = self.model.tiers[tier]
        if not files and not self.model.quarantined[tier]:
            assert self.store.evict(tier, 1) == 0
        elif not self.model.quarantined[tier] and all((tier, number) in self.model.pinned for number in files):
            try:
                self.store.evict(tier, 1)
            except StoreFullError:
                return
            raise AssertionError("everything was pinned")
        else:
            assert self.store.evict(tier, 1) == TAKEN_BYTES[tier]
            self.model.evict_one(tier)

    @precondition(lambda self: self.model.on_host())
    @rule(data=st.data())
    def damage_and_read(self, data: st.DataObject) -> None:
        """Flip one bit of a layer in the fastest copy: its reader sees it and puts it aside."""
        number = data.draw(st.sampled_from(self.model.on_host()))
        offset = data.draw(st.integers(EXTENT_BYTES, FILE_BYTES - 1))
        bit = 1 << data.draw(st.integers(0, 7))
        found = self.model.open(number)[number]
        path = self.folder / found / make_key(number).file_name
        damaged = bytearray(path.read_bytes())
        damaged[offset] ^= bit
        path.write_bytes(damaged)
        file = self.store.open_many([make_key(number)])[make_key(number)]
        assert isinstance(file, StoredPassageKV) and file.tier == found
        with file:
            with pytest.raises(CorruptPassageKVError):
                file.read()
            assert file.quarantine()
        self.model.remove(found, number)
        self.model.quarantined[found].append(number)

    @rule()
    def reopen(self) -> None:
        """Pins last."""
        self.stager.close()
        self.store.close()
        self.store = TieredStore.from_settings(self.settings, self.device)
        self.stager = Stager("cpu", gpu=self.store.gpu)
        for number in list(self.model.tiers["gpu"]):
            self.model.remove("gpu", number)

    @invariant()
    def both_agree(self) -> None:
        found = {make_key(number): tier for number in range(7) if (tier := self.model.find(number)) is not None}
        assert self.store.lookup_many([make_key(number) for number in range(7)]) == found
        for stats in self.store.stats():
            assert stats.num_files == len(self.model.tiers[stats.name])
            assert stats.num_pinned == sum(tier == stats.name for tier, _ in self.model.pinned)

    @invariant()
    def it_is_sound(self) -> None:
        self.store.check_integrity()


class GPUStoreMachine(StoreMachine):
    device = "cpu"


class MemoryStoreMachine(StoreMachine):
    write = "memory"


TestStore = StoreMachine.TestCase
TestStoreWithGPUTier = GPUStoreMachine.TestCase
TestStoreInMemory = MemoryStoreMachine.TestCase
for case in (TestStore, TestStoreWithGPUTier, TestStoreInMemory):
    case.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
