"""Every setting that kvblend reads from the environment (prefix `KVBLEND_`). Rows: docs/settings.md."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["STORED_SHARE", "CodecName", "EncodePolicy", "EvictionName", "Settings", "WritePolicy"]

GIB = 1 << 30
WritePolicy = Literal["memory", "disk", "remote"]
EncodePolicy = Literal["eager", "lazy"] | Annotated[int, Field(ge=0)]
CodecName = Literal["raw", "fp8", "int8", "int4", "entropy"]
STORED_SHARE: dict[CodecName, float] = {"raw": 1.0, "fp8": 0.532, "int8": 0.505, "int4": 0.282, "entropy": 0.26}
"""Stored bytes over those of the numbers in 16 bits, as measured (docs/store.md)."""
EvictionName = Literal["lru", "s3-fifo", "cost-aware"]


class Settings(BaseSettings):
    """Where things lie and how much they may take. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="KVBLEND_", frozen=True, extra="ignore")

    home: Path = Path("~/.kvblend")
    """Catalogs, indexes, fetched models and, unless `disk_path` says otherwise, the disk tier."""

    gpu_bytes: Annotated[int, Field(ge=0)] = 0
    """The GPU tier's byte budget on each worker's device, beside what vLLM takes there. 0 switches the tier off."""

    cpu_path: Path = Path("/dev/shm/kvblend")
    """The CPU tier's folder: on tmpfs."""

    cpu_bytes: Annotated[int, Field(ge=0)] = 4 * GIB
    """The CPU tier's byte budget; what is free on its file system bounds it too. 0 switches the tier off."""

    disk_path: Path | None = None
    """The disk tier's folder; None is `home`/kv."""

    disk_bytes: Annotated[int, Field(ge=0)] = 64 * GIB
    """The disk tier's byte budget. 0 switches the tier off."""

    write: WritePolicy = "disk"
    """Where a passage KV must lie before it counts as stored: `memory` (the fastest tier that has room), `disk` (the
    slowest of the CPU and disk tiers, with a copy in the faster one) or `remote` (a remote tier, too)."""

    encode: EncodePolicy = "eager"
    """When an ingest's passages are encoded: `eager`, at once; `lazy`, at their first use; a number: at once until so
    many bytes of KV are stored."""

    codec: CodecName = "entropy"
    """How new passage KV is stored (docs/store.md). What is stored otherwise is read all the same."""

    eviction: EvictionName = "s3-fifo"
    """What tiers give up first (docs/store.md)."""

    remote: str | None = None
    """URLs of remote tiers, nearest first, with spaces between them: `redis://`, `rediss://`, `s3://`, `mooncake://`,
    `nixl://`."""

    remote_username: str | None = None
    """Of a Redis or Valkey server. S3 takes the provider's own variables."""

    remote_password: SecretStr | None = None
    """Its password."""

    remote_deadline: Annotated[float, Field(gt=0.0)] = 0.2
    """Seconds that remote tiers may cost a request, for its lookup and again for its fetch."""

    peer_address: str | None = None
    """`host:port` where this host's folders are served to peers. None: they are not."""

    peer_token: SecretStr | None = None
    """What peers show each other that they know."""

    control: str = "ipc:///tmp/kvblend/control.sock"
    """ZeroMQ address of the connector's control channel."""

    api_key: str | None = None
    """Where set, the service answers only requests that carry it as a bearer token."""

    engine_api_key: SecretStr | None = None
    """What the service shows vLLM as a bearer token; a vLLM that it starts takes no other."""

    recompute_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.15
    """Recompute ratio of a request that names none, where the model is not calibrated."""

    cost_model: bool = True
    """Time a few requests at the service's start, and prefill prompts whose blend would take as long."""

    max_document_bytes: Annotated[int, Field(ge=1)] = 32 << 20
    """A larger document is refused."""

    parse_seconds: Annotated[float, Field(gt=0.0)] = 30.0
    """CPU seconds that a document may take to be parsed and split, and 5 more for each of its MiB."""

    parse_bytes: Annotated[int, Field(ge=64 << 20)] = 2 * GIB
    """Memory that this may take."""

    guard_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of blended answers that are also prefilled in full while their vLLM server is idle. 0: none."""

    loading: Literal["auto", "always"] = "auto"
    """`auto`: a tier from which passages of late took longer to load than to compute is passed over. `always`: none."""

    repair_tokens_per_step: Annotated[int, Field(ge=16)] = 512
    """The most context tokens that the connector repairs in one engine step beside other requests. In a step that has
    none it repairs as many of one blend as vLLM would prefill in a step (`--max-num-batched-tokens`)."""

    scratch_tokens: Annotated[int, Field(ge=1)] = 16384
    """Of a model with sliding windows: tokens of all contexts that are blended at a time. A longer one is prefilled."""

    @property
    def home_path(self) -> Path:
        return self.home.expanduser()

    @property
    def disk_tier_path(self) -> Path:
        return (self.disk_path or self.home / "kv").expanduser()
