"""The store against a model of two ordered dictionaries: whatever is done to it, both agree."""

import shutil
from pathlib import Path
from tempfile import mkdtemp

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvblend.core.errors import CorruptPassageKVError, StoreFullError
from kvblend.core.settings import Settings
from kvblend.store import TieredStore
from tests.store.samples import FILE_BYTES, make_key, make_kv

NUM_FIT = {"cpu": 2, "disk": 3}
NUMBERS = st.integers(0, 6)


class Model:
    """Which numbers lie in which tier, when each was used last, what is pinned and how much is quarantined."""

    def __init__(self) -> None:
        self.tiers: dict[str, list[int]] = {"cpu": [], "disk": []}
        self.quarantined = {"cpu": 0, "disk": 0}
        self.pinned: dict[int, str] = {}
        self.uses: dict[tuple[str, int], int] = {}
        self.clock = 0

    def find(self, number: int) -> str | None:
        return next((tier for tier, numbers in self.tiers.items() if number in numbers), None)

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

    def evict_one(self, tier: str) -> bool:
        if self.quarantined[tier]:
            self.quarantined[tier] -= 1
            return True
        unpinned = [number for number in self.tiers[tier] if not self.is_pinned(tier, number)]
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

    def add(self, tier: str, number: int, *, at: int | None = None) -> bool:
        if number not in self.tiers[tier]:
            if len(self.tiers[tier]) + self.quarantined[tier] == NUM_FIT[tier] and not self.evict_one(tier):
                return False
            self.tiers[tier].append(number)
        self.use(tier, number, at=at)
        return True


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.settings = Settings(
            cpu_path=self.folder / "cpu",
            cpu_bytes=NUM_FIT["cpu"] * FILE_BYTES,
            disk_path=self.folder / "disk",
            disk_bytes=NUM_FIT["disk"] * FILE_BYTES,
        )
        self.store = TieredStore.from_settings(self.settings)
        self.model = Model()

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(number=NUMBERS)
    def put(self, number: int) -> None:
        found = self.model.find(number)
        try:
            tier = self.store.put(make_key(number), make_kv(number), capture_position=number)
        except StoreFullError:
            assert found is None
            assert not any(self.model.add(tier, number) for tier in NUM_FIT)
            return
        if found is not None:
            assert tier == found
            self.model.use(found, number)
        else:
            assert tier == next(tier for tier in NUM_FIT if self.model.add(tier, number))

    @rule(number=NUMBERS)
    def open(self, number: int) -> None:
        found = self.model.find(number)
        file = self.store.open(make_key(number))
        if file is None:
            assert found is None
            return
        with file:
            assert file.tier == found
            assert torch.equal(file.read(), make_kv(number))
        self.model.use(file.tier, number)

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
        found = self.model.find(number)
        assert self.store.pin(make_key(number)) == (number in self.model.pinned or found is not None)
        if number not in self.model.pinned and found is not None:
            self.model.pinned[number] = found

    @rule(number=NUMBERS)
    def unpin(self, number: int) -> None:
        assert self.store.unpin(make_key(number)) == (self.model.pinned.pop(number, None) is not None)

    @rule(number=NUMBERS)
    def promote(self, number: int) -> None:
        expected = self.model.find(number) == "disk"
        if expected:
            self.model.use("disk", number)
            expected = self.model.add("cpu", number)
        assert self.store.promote(make_key(number)) == expected

    @rule(number=NUMBERS)
    def demote(self, number: int) -> None:
        found = self.model.find(number)
        expected = found == "cpu" and not self.model.is_pinned("cpu", number) and self.model.move_down("cpu", number)
        assert self.store.demote(make_key(number)) == expected

    @rule(tier=st.sampled_from(sorted(NUM_FIT)))
    def evict(self, tier: str) -> None:
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
            assert self.store.evict(tier, 1) == FILE_BYTES
            self.model.evict_one(tier)

    @precondition(lambda self: any(self.model.tiers.values()))
    @rule(data=st.data())
    def damage_and_read(self, data: st.DataObject) -> None:
        """Flip one bit of a layer in the fastest copy: its reader sees it and puts it aside."""
        number = data.draw(st.sampled_from(sorted({number for tier in self.model.tiers.values() for number in tier})))
        found = self.model.find(number)
        assert found is not None
        path = self.folder / found / make_key(number).file_name
        damaged = bytearray(path.read_bytes())
        damaged[data.draw(st.integers(4096, FILE_BYTES - 1))] ^= 1 << data.draw(st.integers(0, 7))
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
        self.model.quarantined[found] += 1

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = TieredStore.from_settings(self.settings)
        self.model.pinned.clear()

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


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
