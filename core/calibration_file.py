"""Where a model's calibration lies, and how it is read and written.

<model folder>/kvblend-calibration.json         a model in a folder that can be written
<home>/calibrations/<model fingerprint>.json    any other
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from kvblend.core.calibration import Calibration
from kvblend.core.durable_file import replace_file

__all__ = ["CALIBRATION_FILE", "calibration_version", "read_calibration", "write_calibration"]

logger = logging.getLogger(__name__)

CALIBRATION_FILE = "kvblend-calibration.json"


def write_calibration(calibration: Calibration, *, model: str, home: Path) -> Path:
    """Write a calibration beside the model, or under `home` where that is a hub name or cannot be written.

    The file appears whole, by a rename, in place of an older one. Returns its path. Raises OSError where neither
    place can be written.
    """
    text = calibration.model_dump_json(indent=2) + "\n"
    folder = Path(model)
    if folder.is_dir():
        try:
            replace_file(folder / CALIBRATION_FILE, text)
            return folder / CALIBRATION_FILE
        except OSError as error:
            logger.info("the calibration goes to %s: %s", home, error)
    path = _path_in(home, calibration.model_fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)
    return path


def read_calibration(model: str, *, model_fingerprint: str, home: Path) -> Calibration | None:
    """Read the calibration of the model with this fingerprint; None where there is none.

    A file of another model, dtype or version, or one that is malformed, is passed over with a warning.
    """
    for path in _places(model, model_fingerprint, home):
        for calibration in _read(path):
            if calibration.model_fingerprint == model_fingerprint:
                return calibration
            logger.warning(
                "%s is not used: it was measured on another model or dtype than the one that is served (%s in %s, "
                "fingerprint %s; served is fingerprint %s)",
                path,
                calibration.model,
                calibration.dtype,
                calibration.model_fingerprint[:12],
                model_fingerprint[:12],
            )
    return None


def calibration_version(model: str, *, model_fingerprint: str, home: Path) -> tuple[int, ...]:
    """What tells whether `read_calibration` would read the files that it read before: their inodes and times."""
    version: list[int] = []
    for path in _places(model, model_fingerprint, home):
        try:
            status = path.stat()
            version += status.st_ino, status.st_mtime_ns
        except OSError:
            version += 0, 0
    return tuple(version)


def _places(model: str, model_fingerprint: str, home: Path) -> tuple[Path, Path]:
    return Path(model) / CALIBRATION_FILE, _path_in(home, model_fingerprint)


def _path_in(home: Path, model_fingerprint: str) -> Path:
    return home / "calibrations" / f"{model_fingerprint}.json"


def _read(path: Path) -> Iterator[Calibration]:
    """The file's calibration; nothing where there is no file or it cannot be used."""
    try:
        yield Calibration.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        logger.warning("%s cannot be read: %s", path, error)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        logger.warning("%s is not used: %s%s", path, f"{where}: " if where else "", first["msg"])
