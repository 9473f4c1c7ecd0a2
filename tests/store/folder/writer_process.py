"""A process that puts, opens, moves and deletes passages at random in a store that others use too.

    python -m tests.store.folder.writer_process crash FOLDER LEAST_KILLS SEED
    python -m tests.store.folder.writer_process churn FOLDER NUM_KILLS SEED
    python -m tests.store.folder.writer_process share FOLDER NUM_STEPS SEED

`crash` forks one writer after another, kills each at a random moment, and checks after each that every put
that had returned is there and that no file is torn. It prints how many puts returned and how many dead
writers' files lay about. `churn` does the same to one that also deletes, moves and evicts: what was put is there, what
was deleted is not, and the counts are right. `share` checks only that whatever it opens is right. The exit status is 0
if all is well.
"""

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from kvblend.core.errors import StoreFullError
from kvblend.core.settings import Settings
from kvblend.store import StoredPassageKV, TieredStore
from tests.store.samples import make_key, make_kv

SHAPE = (8, 2, 32, 2, 64)
FILE_BYTES = (1 + 8 * 8) * 4096
NUM_SHARED = 14
NUM_CHURNED = 12
CHURN = ["put", "put", "delete", "promote", "demote", "evict"]
READY = (1 << 32) - 1


def make_settings(folder: Path, *, disk_files: int) -> Settings:
    """Room for three files in the CPU tier, so that most puts move one down."""
    return Settings(
        codec="raw",
        cpu_path=folder / "cpu",
        cpu_bytes=3 * FILE_BYTES,
        disk_path=folder / "disk",
        disk_bytes=disk_files * FILE_BYTES,
        write="memory",
    )


def is_right(store: TieredStore, number: int) -> bool | None:
    """None for a miss."""
    file = store.open_many([make_key(number)]).get(make_key(number))
    if file is None:
        return None
    assert isinstance(file, StoredPassageKV)
    with file:
        return torch.equal(file.read(), make_kv(number, shape=SHAPE, dtype=torch.float32))


def write_for_ever(settings: Settings, first: int, acknowledge: int) -> None:
    store = TieredStore.from_settings(settings)
    os.write(acknowledge, READY.to_bytes(4, "little"))
    number = first
    while True:
        store.put(make_key(number), make_kv(number, shape=SHAPE), capture_position=0)
        os.write(acknowledge, number.to_bytes(4, "little"))
        number += 1


def crash(folder: Path, num_kills: int, chance: random.Random) -> None:
    settings = make_settings(folder, disk_files=10_000)
    num_left = 0
    committed: list[int] = []
    with TieredStore.from_settings(settings) as store:
        for kill in range(8 * num_kills):
            # On a busy disk few writers get something done, or few are struck while they write: then there are more.
            if kill >= num_kills and len(committed) >= num_kills // 2 and num_left >= num_kills // 6:
                break
            reader, acknowledge = os.pipe()
            pid = os.fork()
            if pid == 0:
                write_for_ever(settings, kill * 1000, acknowledge)
            os.close(acknowledge)
            assert os.read(reader, 4) == READY.to_bytes(4, "little")
            time.sleep(chance.uniform(0, 0.03))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            with os.fdopen(reader, "rb") as pipe:
                data = pipe.read()
            new = [int.from_bytes(data[start : start + 4], "little") for start in range(0, len(data), 4)]
            committed += new
            report = store.verify()
            num_left += report.num_temporary_removed
            assert report.quarantined == (), report.quarantined
            for number in new + chance.sample(committed, min(5, len(committed))):
                assert is_right(store, number), f"passage {number} was put and is lost after kill {kill}"
        store.check_integrity()
        for number in committed:
            assert is_right(store, number), f"passage {number} was put and is lost"
    print(len(committed), num_left)


def churn_for_ever(settings: Settings, acknowledge: int, chance: random.Random) -> None:
    """Each step is told before it begins and after it has ended."""
    store = TieredStore.from_settings(settings)
    os.write(acknowledge, READY.to_bytes(4, "little"))
    while True:
        number, action = chance.randrange(NUM_CHURNED), chance.choice(CHURN)
        step = (CHURN.index(action) << 16 | number).to_bytes(4, "little")
        os.write(acknowledge, step)
        key = make_key(number)
        if action == "put":
            store.put(key, make_kv(number, shape=SHAPE), capture_position=0)
        elif action == "delete":
            store.delete([key.variant])
        elif action == "promote":
            store.promote_many([key])
        elif action == "demote":
            store.move_down([key])
        elif action == "evict":
            store.evict("cpu", FILE_BYTES)
        os.write(acknowledge, step)


def churn(folder: Path, num_kills: int, chance: random.Random) -> None:
    """The disk tier holds all there is, so that nothing is dropped but by a delete."""
    settings = make_settings(folder, disk_files=2 * NUM_CHURNED)
    there: dict[int, bool] = {}
    num_steps = 0
    with TieredStore.from_settings(settings) as store:
        for _ in range(num_kills):
            reader, acknowledge = os.pipe()
            seed = chance.randrange(1 << 30)
            pid = os.fork()
            if pid == 0:
                churn_for_ever(settings, acknowledge, random.Random(seed))
            os.close(acknowledge)
            assert os.read(reader, 4) == READY.to_bytes(4, "little")
            time.sleep(chance.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            with os.fdopen(reader, "rb") as pipe:
                data = pipe.read()
            steps = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
            num_steps += len(steps) // 2
            for step in steps[: len(steps) // 2 * 2 : 2]:
                if CHURN[step >> 16] in ("put", "delete"):
                    there[step & 0xFFFF] = CHURN[step >> 16] == "put"
            if len(steps) % 2 and CHURN[steps[-1] >> 16] in ("put", "delete"):  # struck within it: nobody knows
                there.pop(steps[-1] & 0xFFFF, None)
            report = store.verify()
            assert report.quarantined == (), report.quarantined
            for number, expected in there.items():
                right = is_right(store, number)
                assert right is (True if expected else None), (number, expected, right)
        store.check_integrity()
    print(num_steps)


def share(folder: Path, num_steps: int, chance: random.Random) -> None:
    """Twice as many passages as fit in both tiers: every step may evict what the other process is reading."""
    num_hits = 0
    with TieredStore.from_settings(make_settings(folder, disk_files=4)) as store:
        for _ in range(num_steps):
            number = chance.randrange(NUM_SHARED)
            key = make_key(number)
            action = chance.choice(["put", "put", "open", "open", "open", "promote", "demote", "delete", "pin"])
            if action == "put":
                store.put(key, make_kv(number, shape=SHAPE), capture_position=0)
            elif action == "open":
                right = is_right(store, number)
                assert right is not False
                num_hits += right is True
            elif action == "promote":
                store.promote_many([key])
            elif action == "demote":
                store.move_down([key])
            elif action == "delete":
                store.delete([key.variant])
            elif store.pin([key.variant]):
                with suppress(StoreFullError):
                    store.put(make_key(number + 1), make_kv(number + 1, shape=SHAPE), capture_position=0)
                store.pin([key.variant], pinned=False)
    print(num_hits)


if __name__ == "__main__":
    mode, folder, count, seed = sys.argv[1:]
    torch.set_num_threads(1)
    {"crash": crash, "churn": churn, "share": share}[mode](Path(folder), int(count), random.Random(int(seed)))
