"""API keys in YAML, of a file or of the environment: who has which tenant and role, and what a tenant may take."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from kvblend.api.access.caller import Role
from kvblend.core.collection_name import DEFAULT_TENANT, TenantName
from kvblend.core.errors import InvalidRequestError
from kvblend.core.rest.collections import QuotaBytes

__all__ = ["KeyEntry", "KeyFile", "TenantEntry", "key_digest", "parse_keys", "read_key_file"]

MAX_BYTES = 16 << 20


def key_digest(key: str) -> bytes:
    """SHA-256 of a key, as keys are compared and stored."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeyEntry(_Entry):
    """One key: in plain, or as the hex digits of its SHA-256."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")]
    tenant: TenantName = DEFAULT_TENANT
    role: Role
    key: Annotated[str | None, Field(min_length=16, max_length=512, repr=False)] = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError(f"key {self.name!r}: give one of key and sha256")
        return self

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.sha256) if self.sha256 is not None else key_digest(self.key or "")


class TenantEntry(_Entry):
    """What a tenant may take; None is no limit, of `max_requests` and `max_jobs` the share that all tenants have.

    `max_requests`: answers at a time, and as many lookups beside them. `kv_quota_bytes`: its KV in any one tier.
    """

    requests_per_minute: Annotated[int, Field(ge=1, le=10**9)] | None = None
    max_requests: Annotated[int, Field(ge=1, le=10**9)] | None = None
    max_jobs: Annotated[int, Field(ge=1, le=10**9)] | None = None
    kv_quota_bytes: QuotaBytes | None = None


class KeyFile(_Entry):
    keys: Annotated[tuple[KeyEntry, ...], Field(min_length=1)]
    tenants: dict[TenantName, TenantEntry] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what, values in (("name", [key.name for key in self.keys]), ("key", [key.digest for key in self.keys])):
            value, count = Counter(values).most_common(1)[0]
            if count > 1:
                names = [key.name for key in self.keys if value in (key.name, key.digest)]
                raise ValueError(f"keys {' and '.join(map(repr, names))} have the same {what}")
        return self


def read_key_file(path: Path) -> KeyFile:
    """The file's keys and tenants.

    Raises InvalidRequestError that says what is wrong with it, and no key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES)
    except OSError as error:
        raise InvalidRequestError(f"the key file {path} cannot be read: {error.strerror}", param="keys") from error
    return parse_keys(content, source=f"the key file {path}")


def parse_keys(content: bytes | str, *, source: str) -> KeyFile:
    """Keys and tenants as YAML has them. Raises InvalidRequestError that says what is wrong with `source`, and no
    key."""
    try:
        return KeyFile.model_validate(yaml.safe_load(content))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        raise InvalidRequestError(f"{source} is not YAML{where}: {reason}", param="keys") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"{part}: " for part in [".".join(str(part) for part in first["loc"])] if part)
        raise InvalidRequestError(f"{source}: {where}{first['msg']}", param="keys") from None
