"""What names a passage KV, and the file name that stands for it."""

import re
from dataclasses import dataclass
from typing import Self

from kvblend.core.errors import InvalidRequestError

__all__ = ["FORMAT_VERSION", "PassageKVKey"]

FORMAT_VERSION = 1
"""Part of the file name, so that a file of another version is a miss and not a corrupt file."""

MAX_HEADS = 1 << 20

FINGERPRINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
TOKEN_HASH = re.compile(r"[0-9a-f]{64}")
FILE_NAME = re.compile(
    rf"(?P<fingerprint>{FINGERPRINT.pattern})/(?P<context>{TOKEN_HASH.pattern})/[0-9a-f]{{2}}/"
    rf"(?P<passage>{TOKEN_HASH.pattern})\.h(?P<start>\d{{1,7}})-(?P<end>\d{{1,7}})\.v{FORMAT_VERSION}\.kv",
    re.ASCII,
)


@dataclass(frozen=True)
class PassageKVKey:
    """One passage's KV of one model, behind one encode context, for the KV heads [head_start, head_end).

    `model_fingerprint` is 1 to 128 letters, digits, `_`, `.` and `-`, the first a letter or digit;
    `encode_context` and `passage_id` are token hashes (`core.identity.token_hash`).

    Raises InvalidRequestError where a field is none of that: no key names a path outside its tier.
    """

    model_fingerprint: str
    encode_context: str
    passage_id: str
    head_start: int
    head_end: int

    def __post_init__(self) -> None:
        if not FINGERPRINT.fullmatch(self.model_fingerprint):
            raise InvalidRequestError(
                f"model fingerprint {self.model_fingerprint!r} is not 1 to 128 letters, digits, '_', '.' and '-'",
                param="model_fingerprint",
            )
        for param, value in (("encode_context", self.encode_context), ("passage_id", self.passage_id)):
            if not TOKEN_HASH.fullmatch(value):
                raise InvalidRequestError(f"{param} {value!r} is not 64 lower-case hex digits", param=param)
        if not 0 <= self.head_start < self.head_end <= MAX_HEADS:
            raise InvalidRequestError(
                f"head range [{self.head_start}, {self.head_end}) is not within [0, {MAX_HEADS}), or is empty",
                param="head_end",
            )

    @property
    def folder(self) -> str:
        """The folder of every head range of this passage KV, relative to the tier's."""
        return f"{self.model_fingerprint}/{self.encode_context}/{self.passage_id[:2]}"

    @property
    def file_name(self) -> str:
        """The file's name, relative to the tier's folder, parts joined by `/`."""
        return f"{self.folder}/{self.passage_id}.h{self.head_start}-{self.head_end}.v{FORMAT_VERSION}.kv"

    @classmethod
    def from_file_name(cls, file_name: str) -> Self | None:
        """Parse `file_name` back; None where it is no name that a key has."""
        match = FILE_NAME.fullmatch(file_name)
        if match is None or int(match["end"]) > MAX_HEADS or int(match["start"]) >= int(match["end"]):
            return None
        key = cls(match["fingerprint"], match["context"], match["passage"], int(match["start"]), int(match["end"]))
        return key if key.file_name == file_name else None
