"""Several processes on one store, and processes that die in the middle of a write."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kvblend.store import TieredStore
from kvblend.store.content import TensorContent
from kvblend.store.eviction import policy_of
from kvblend.store.folder.folder_space import FolderSpace, Temporary
from tests.store.folder.writer_process import make_settings
from tests.store.samples import make_key, make_kv

ROOT = Path(__file__).resolve().parents[3]


TMPFS = "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder for both tiers, under the one that the test names."""
    with TemporaryDirectory(prefix="kvblend-", dir=request.param) as name:
        yield Path(name)


def start(mode: str, folder: Path, count: int, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store.folder.writer_process", mode, str(folder), str(count), str(seed)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("folder", "num_kills"), [(TMPFS, 55), (None, 15)], indirect=["folder"], ids=["tmpfs", "disk"])
def test_a_writer_killed_at_any_moment_loses_and_tears_nothing(folder: Path, num_kills: int) -> None:
    """On tmpfs, where much happens between two kills, and on a real disk."""
    process = start("crash", folder, num_kills, 1)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    num_committed, num_left = map(int, output.split())
    # The control: kills did strike writers in the middle of a write, and writers did get something done.
    assert num_left >= num_kills // 6
    assert num_committed >= num_kills // 2
    assert "Warning" not in errors


@pytest.mark.parametrize("folder", [TMPFS], indirect=True, ids=["tmpfs"])
def test_a_process_killed_while_it_puts_deletes_moves_and_evicts_leaves_the_store_right(folder: Path) -> None:
    """150 times: with the kills above more than 200."""
    process = start("churn", folder, 150, 1)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert int(output) > 150, "hardly anything was done between the kills"


@pytest.mark.parametrize("folder", [TMPFS], indirect=True, ids=["tmpfs"])
def test_processes_share_a_store_that_is_too_small_for_them(folder: Path) -> None:
    processes = [start("share", folder, 250, seed) for seed in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (output, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
        assert int(output) > 20  # hits, each of them right
        assert "checksum" not in errors
    with TieredStore.from_settings(make_settings(folder, disk_files=4)) as store:
        store.check_integrity()
        assert sum(tier.num_files for tier in store.stats()) > 0


def test_what_a_killed_writer_left_goes_at_the_next_opening_beside_others(tmp_path: Path) -> None:
    """Negative control: what a living writer is at stays."""
    header = TensorContent(make_key(1), make_kv(1), capture_position=0).header

    def opened() -> FolderSpace:
        return FolderSpace(tmp_path, budget_bytes=1 << 20, durable=False, policy=policy_of("lru"))

    def write(space: FolderSpace, name: str) -> Temporary:
        with space.change() as index:
            return space.create(index, tmp_path / name, header, 4096)

    others = opened()
    living = write(others, "living.kv")
    child = os.fork()
    if child == 0:
        write(opened(), "dead.kv")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.glob(".dead.kv.*"))) == 1
    later = opened()
    assert list(tmp_path.glob(".*.tmp")) == [living.path]
    os.close(living.fd)
    later.close()
    others.close()
