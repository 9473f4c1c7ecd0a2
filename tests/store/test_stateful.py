"""The store against a model of a few ordered lists: whatever is done to it, with and without a GPU tier, both agree."""

import shutil
from collections.abc import Collection
from pathlib import Path
from tempfile import mkdtemp

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvblend.core.errors import CorruptPassageKVError, StoreFullError
from kvblend.core.settings import Settings
from kvblend.store import GPUTier, Stager, TieredStore
from tests.store.gpu.staged_layers import stage
from tests.store.samples import EXTENT_BYTES, FILE_BYTES, make_key, make_kv

NUM_FIT = {"gpu": 2, "cpu": 2, "disk": 3}
TAKEN_BYTES = {"gpu": FILE_BYTES - EXTENT_BYTES, "cpu": FILE_BYTES, "disk": FILE_BYTES}
SHARED = ("cpu", "disk")
NUMBERS = st.integers(0, 6)


class Model:
    """Which numbers lie in which tier, when each was used last, what is pinned and how much is quarantined.

    The GPU tier may hold what no shared tier does any more: to everyone who asks, that is not there.
    """

    def __init__(self) -> None:
        self.tiers: dict[str, list[int]] = {"gpu": [], "cpu": [], "disk": []}
        self.quarantined = {"gpu": 0, "cpu": 0, "disk": 0}
        self.pinned: dict[int, str] = {}
        self.uses: dict[tuple[str, int], int] = {}
        self.clock = 0

    def find_shared(self, number: int) -> str | None:
        return next((tier for tier in SHARED if number in self.tiers[tier]), None)

    def find(self, number: int) -> str | None:
        shared = self.find_shared(number)
        return "gpu" if shared is not None and number in self.tiers["gpu"] else shared

    def open(self, number: int) -> str | None:
        """Where it is found; what is left in the GPU tier alone is dropped, and a hit there is a use below too."""
        found, shared = self.find(number), self.find_shared(number)
        if found is None and number in self.tiers["gpu"]:
            self.remove("gpu", number)
        for tier in {found, shared if found == "gpu" else found} - {None}:
            assert tier is not None
            self.use(tier, number)
        return found

    def use(self, tier: str, number: int, *, at: int | None = None) -> None:
        self.clock += 1
        at = self.clock if at is None else at
        self.uses[tier, number] = max(at, self.uses.get((tier, number), 0))

    def is_pinned(self, tier: str, number: int) -> bool:
        return self.pinned.get(number) == tier

    def remove(self, tier: str, number: int) -> None:
        self.tiers[tier].remove(number)
        self.uses.pop((tier, number))
        if self.is_pinned(tier, number):
            self.pinned.pop(number)

    def evict_one(self, tier: str, *, held: Collection[int] = ()) -> bool:
        if self.quarantined[tier]:
            self.quarantined[tier] -= 1
            return True
        unpinned = [number for number in self.tiers[tier] if not self.is_pinned(tier, number) and number not in held]
        if not unpinned:
            return False
        victim = min(unpinned, key=lambda number: self.uses[tier, number])
        self.move_down(tier, victim)
        if victim in self.tiers[tier]:
            self.remove(tier, victim)
        return True

    def move_down(self, tier: str, number: int) -> bool:
        if tier != "cpu" or not self.add("disk", number, at=self.uses["cpu", number]):
            return False
        self.remove("cpu", number)
        return True

    def add(self, tier: str, number: int, *, at: int | None = None, held: Collection[int] = ()) -> bool:
        if number not in self.tiers[tier]:
            is_full = len(self.tiers[tier]) + self.quarantined[tier] == NUM_FIT[tier]
            if is_full and not self.evict_one(tier, held=held):
                return False
            self.tiers[tier].append(number)
        self.use(tier, number, at=at)
        return True


class StoreMachine(RuleBasedStateMachine):
    device: str | None = None
    """Where the GPU tier lies; None: there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.settings = Settings(
            gpu_bytes=NUM_FIT["gpu"] * TAKEN_BYTES["gpu"],
            cpu_path=self.folder / "cpu",
            cpu_bytes=NUM_FIT["cpu"] * FILE_BYTES,
            disk_path=self.folder / "disk",
            disk_bytes=NUM_FIT["disk"] * FILE_BYTES,
        )
        self.store = TieredStore.from_settings(self.settings, self.device)
        self.stager = Stager("cpu", gpu=self.store.gpu)
        self.model = Model()

    def teardown(self) -> None:
        self.stager.close()
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(number=NUMBERS)
    def put(self, number: int) -> None:
        found = self.model.open(number)
        try:
            tier = self.store.put(make_key(number), make_kv(number), capture_position=number)
        except StoreFullError:
            assert found is None
            assert not any(self.model.add(tier, number) for tier in SHARED)
            return
        assert tier == (found or next(tier for tier in SHARED if self.model.add(tier, number)))

    @rule(number=NUMBERS)
    def open(self, number: int) -> None:
        found = self.model.open(number)
        file = self.store.open(make_key(number))
        if file is None:
            assert found is None
            return
        with file:
            assert file.tier == found
            assert torch.equal(file.read(), make_kv(number))

    @rule(numbers=st.lists(NUMBERS, max_size=4, unique=True))
    def load(self, numbers: list[int]) -> None:
        """Open and stage several, and keep them: those that lie in the GPU tier, or are to, are open, so they stay."""
        found = {number: self.model.open(number) for number in numbers}
        there = [number for number in numbers if found[number] is not None]
        opened = [self.store.open(make_key(number)) for number in numbers]
        files = [file for file in opened if file is not None]
        assert [(file.header.key, file.tier) for file in files] == [(make_key(n), found[n]) for n in there]
        staged = stage(self.stager, files)
        assert staged.failed == {}
        for place, number in enumerate(there):
            assert torch.equal(staged.kv(place), make_kv(number))
        held = [number for number in there if found[number] == "gpu"]
        for number in there:
            if found[number] != "gpu" and self.device is not None and self.model.add("gpu", number, held=held):
                held.append(number)

    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        key = make_key(number)
        num_files = sum(number in numbers for numbers in self.model.tiers.values())
        assert num_files == self.store.delete(
            model_fingerprint=key.model_fingerprint, encode_context=key.encode_context, passage_id=key.passage_id
        )
        for tier, numbers in self.model.tiers.items():
            if number in numbers:
                self.model.remove(tier, number)

    @rule(number=NUMBERS)
    def pin(self, number: int) -> None:
        found = self.model.find_shared(number)
        assert self.store.pin(make_key(number)) == (number in self.model.pinned or found is not None)
        if number not in self.model.pinned and found is not None:
            self.model.pinned[number] = found

    @rule(number=NUMBERS)
    def unpin(self, number: int) -> None:
        assert self.store.unpin(make_key(number)) == (self.model.pinned.pop(number, None) is not None)

    @rule(number=NUMBERS)
    def promote(self, number: int) -> None:
        found, faster = self.model.find(number), {"disk": "cpu"}
        if self.device is not None:
            faster["cpu"] = "gpu"
        expected = found is not None and found in faster
        if expected:
            assert found is not None
            self.model.use(found, number)
            expected = self.model.add(faster[found], number)
        assert self.store.promote(make_key(number)) == expected

    @rule(number=NUMBERS)
    def demote(self, number: int) -> None:
        found = self.model.find(number)
        if number in self.model.tiers["gpu"]:
            self.model.remove("gpu", number)
            assert self.store.demote(make_key(number)) == (found is not None)
            return
        expected = found == "cpu" and not self.model.is_pinned("cpu", number) and self.model.move_down("cpu", number)
        assert self.store.demote(make_key(number)) == expected

    @rule(tier=st.sampled_from(sorted(NUM_FIT)))
    def evict(self, tier: str) -> None:
        if tier == "gpu" and self.device is None:
            return
        files = self.model.tiers[tier]
        if not files and not self.model.quarantined[tier]:
            assert self.store.evict(tier, 1) == 0
        elif not self.model.quarantined[tier] and all(self.model.is_pinned(tier, number) for number in files):
            try:
                self.store.evict(tier, 1)
            except StoreFullError:
                return
            raise AssertionError("everything was pinned")
        else:
            assert self.store.evict(tier, 1) == TAKEN_BYTES[tier]
            self.model.evict_one(tier)

    @precondition(lambda self: any(self.model.tiers[tier] for tier in SHARED))
    @rule(data=st.data())
    def damage_and_read(self, data: st.DataObject) -> None:
        """Flip one bit of a layer in the fastest copy: its reader sees it and puts it aside."""
        number = data.draw(st.sampled_from(sorted({number for tier in SHARED for number in self.model.tiers[tier]})))
        offset = data.draw(st.integers(EXTENT_BYTES, FILE_BYTES - 1))
        bit = 1 << data.draw(st.integers(0, 7))
        found = self.model.open(number)
        assert found is not None
        if found == "gpu":
            gpu = self.store.tiers[0]
            assert isinstance(gpu, GPUTier)
            gpu._listed[make_key(number)].extents.view(-1)[offset - EXTENT_BYTES] ^= bit
        else:
            path = self.folder / found / make_key(number).file_name
            damaged = bytearray(path.read_bytes())
            damaged[offset] ^= bit
            path.write_bytes(damaged)
        file = self.store.open(make_key(number))
        assert file is not None and file.tier == found
        with file:
            try:
                file.read()
            except CorruptPassageKVError:
                self.store.quarantine(file)
            else:
                raise AssertionError("damage went unseen")
        self.model.remove(found, number)
        self.model.quarantined[found] += found != "gpu"

    @rule()
    def reopen(self) -> None:
        self.stager.close()
        self.store.close()
        self.store = TieredStore.from_settings(self.settings, self.device)
        self.stager = Stager("cpu", gpu=self.store.gpu)
        self.model.pinned.clear()
        for number in list(self.model.tiers["gpu"]):
            self.model.remove("gpu", number)

    @invariant()
    def both_agree(self) -> None:
        for number in range(7):
            assert self.store.lookup(make_key(number)) == self.model.find(number)
        for stats in self.store.stats():
            assert stats.num_files == len(self.model.tiers[stats.name])
            assert stats.num_pinned == sum(tier == stats.name for tier in self.model.pinned.values())

    @invariant()
    def it_is_sound(self) -> None:
        self.store.check_integrity()


class GPUStoreMachine(StoreMachine):
    device = "cpu"


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestStoreWithGPUTier = GPUStoreMachine.TestCase
TestStoreWithGPUTier.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
