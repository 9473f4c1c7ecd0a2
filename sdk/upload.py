"""Files on their way to the service, with progress."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["UploadProgress", "open_files"]

UploadProgress = Callable[[int, int], None]
"""Called with the bytes sent so far and the bytes of all files."""


class _CountedFile(io.BufferedReader):
    """A file that says how much of it each read gave."""

    def __init__(self, path: Path, counted: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self._counted = counted

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._counted(len(data))
        return data


@contextmanager
def open_files(
    paths: Sequence[str | Path] | Mapping[str, str | Path], progress: UploadProgress | None
) -> Iterator[list[tuple[str, tuple[str, BinaryIO]]]]:
    """Open files as the parts of a multipart body, and report progress as they are read.

    A mapping gives each file the name that it goes by; else that is its own.

    Raises:
        OSError: a file cannot be read.
    """
    named = paths.items() if isinstance(paths, Mapping) else ((Path(path).name, path) for path in paths)
    files = [(name, Path(path)) for name, path in named]
    total = sum(path.stat().st_size for _, path in files)
    sent = 0

    def counted(num_bytes: int) -> None:
        nonlocal sent
        sent += num_bytes
        if progress is not None and num_bytes:
            progress(sent, total)

    with ExitStack() as stack:
        yield [("files", (name, stack.enter_context(_CountedFile(path, counted)))) for name, path in files]
