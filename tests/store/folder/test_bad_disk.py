"""A store on a file system that is full, or can only be read, which is a real one in a mount namespace of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


def may_mount() -> bool:
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(
            [*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True, check=False
        ).returncode
    )


@pytest.mark.skipif(not may_mount(), reason="a file system cannot be mounted here, even in a namespace of its own")
@pytest.mark.parametrize("case", ["disk_full", "tmpfs_full"])
def test_a_store_on_a_file_system_that_is_full(case: str, tmp_path: Path) -> None:
    """What was committed is read, what is refused says why and leaves nothing, and it recovers when the disk does."""
    run([*UNSHARE, sys.executable], case, tmp_path)


def test_a_store_in_a_folder_that_can_only_be_read(tmp_path: Path) -> None:
    run([sys.executable], "read_only", tmp_path)


def run(python: list[str], case: str, folder: Path) -> None:
    done = subprocess.run(
        [*python, "-m", "tests.store.folder.bad_disk", case, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
