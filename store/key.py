"""What names a passage KV, and the file name that stands for it."""

import re
from dataclasses import dataclass
from typing import Self

from kvblend.core.errors import InvalidRequestError

__all__ = ["FILE_ENDING", "FORMAT_VERSION", "PassageKVKey", "Variant"]

FORMAT_VERSION = 2
"""Part of the file name, so that a file of another version is a miss and not a corrupt file."""
FILE_ENDING = f".v{FORMAT_VERSION}.kv"

MAX_HEADS = 1 << 20

FINGERPRINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
TOKEN_HASH = re.compile(r"[0-9a-f]{64}")
FILE_NAME = re.compile(
    rf"(?P<fingerprint>{FINGERPRINT.pattern})/[0-9a-f]{{2}}/(?P<passage>{TOKEN_HASH.pattern})/"
    rf"(?P<context>{TOKEN_HASH.pattern})\.h(?P<start>\d{{1,7}})-(?P<end>\d{{1,7}})\.v{FORMAT_VERSION}\.kv",
    re.ASCII,
)


@dataclass(frozen=True, order=True)
class Variant:
    """One passage's KV of one model, behind one encode context: all head ranges of it.

    `model_fingerprint` is 1 to 128 letters, digits, `_`, `.` and `-`, the first a letter or digit;
    `encode_context` and `passage_id` are token hashes (`core.identity.token_hash`).

    Raises InvalidRequestError where a field is none of that: nothing that is named lies outside its tier.
    """

    model_fingerprint: str
    encode_context: str
    passage_id: str

    def __post_init__(self) -> None:
        check_fingerprint(self.model_fingerprint)
        check_token_hash("encode_context", self.encode_context)
        check_token_hash("passage_id", self.passage_id)

    @property
    def folder(self) -> str:
        """The folder of every variant of this passage, relative to the tier's."""
        return passage_folder(self.model_fingerprint, self.passage_id)

    @property
    def name(self) -> str:
        """What the names of its files begin with, relative to the tier's folder."""
        return f"{self.folder}/{self.encode_context}"

    @property
    def name_in_format_1(self) -> str:
        """The same of files of format 1, whose folders were those of encode contexts."""
        return f"{self.model_fingerprint}/{self.encode_context}/{self.passage_id[:2]}/{self.passage_id}"


@dataclass(frozen=True, order=True)
class PassageKVKey:
    """The KV heads [head_start, head_end) of a variant: one file.

    Raises InvalidRequestError where a field is no `Variant`'s or the range is none.
    """

    model_fingerprint: str
    encode_context: str
    passage_id: str
    head_start: int
    head_end: int

    def __post_init__(self) -> None:
        _ = self.variant
        if not 0 <= self.head_start < self.head_end <= MAX_HEADS:
            raise InvalidRequestError(
                f"head range [{self.head_start}, {self.head_end}) is not within [0, {MAX_HEADS}), or is empty",
                param="head_end",
            )

    @property
    def variant(self) -> Variant:
        return Variant(self.model_fingerprint, self.encode_context, self.passage_id)

    @property
    def file_name(self) -> str:
        """The file's name, relative to the tier's folder, parts joined by `/`."""
        folder = passage_folder(self.model_fingerprint, self.passage_id)
        return f"{folder}/{self.encode_context}.h{self.head_start}-{self.head_end}{FILE_ENDING}"

    @classmethod
    def from_file_name(cls, file_name: str) -> Self | None:
        """Parse `file_name` back; None where it is no name that a key has."""
        match = FILE_NAME.fullmatch(file_name)
        if match is None or int(match["end"]) > MAX_HEADS or int(match["start"]) >= int(match["end"]):
            return None
        key = cls(match["fingerprint"], match["context"], match["passage"], int(match["start"]), int(match["end"]))
        return key if key.file_name == file_name else None


def passage_folder(model_fingerprint: str, passage_id: str) -> str:
    """The folder of every variant of a passage, relative to its tier's: 256 folders of passages a model."""
    return f"{model_fingerprint}/{passage_id[:2]}/{passage_id}"


def check_fingerprint(value: str) -> None:
    """Raise InvalidRequestError where it is no model fingerprint."""
    if not FINGERPRINT.fullmatch(value):
        raise InvalidRequestError(
            f"model fingerprint {value!r} is not 1 to 128 letters, digits, '_', '.' and '-'", param="model_fingerprint"
        )


def check_token_hash(param: str, value: str) -> None:
    """Raise InvalidRequestError where it is no token hash."""
    if not TOKEN_HASH.fullmatch(value):
        raise InvalidRequestError(f"{param} {value!r} is not 64 lower-case hex digits", param=param)
