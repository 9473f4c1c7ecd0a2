"""Every setting that kvblend reads from the environment (prefix `KVBLEND_`)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = [
    "STORED_SHARE",
    "CodecName",
    "EncodePolicy",
    "EvictionName",
    "LogFormat",
    "Settings",
    "TracingSettings",
    "WritePolicy",
]

GIB = 1 << 30
WritePolicy = Literal["memory", "disk", "remote"]
EncodePolicy = Literal["eager", "lazy"] | Annotated[int, Field(ge=0)]
CodecName = Literal["raw", "fp8", "int8", "int4", "entropy"]
STORED_SHARE: dict[CodecName, float] = {"raw": 1.0, "fp8": 0.532, "int8": 0.505, "int4": 0.282, "entropy": 0.26}
"""Stored bytes over those of the numbers in 16 bits, as measured (docs/store.md)."""
OpenRoutes = Annotated[str, Field(pattern=r"^((docs|metrics|readyz) ?)*$")]
CORS_ORIGINS = r"^(\*|https?://[^/ *]+( https?://[^/ *]+)*)$"
LogFormat = Literal["text", "json"]
EvictionName = Literal["lru", "s3-fifo", "cost-aware"]


class Settings(BaseSettings):
    """Where things lie and how much they may take. Sizes are in bytes, times in seconds.

    What stands below a field is its row in docs/settings.md, which `make reference` makes of it: links are that page's.
    """

    model_config = SettingsConfigDict(env_prefix="KVBLEND_", frozen=True, extra="ignore")

    home: Path = Path("~/.kvblend")
    """Catalogs, indexes, fetched models and, unless `KVBLEND_DISK_PATH` says otherwise, the disk tier."""

    gpu_bytes: Annotated[int, Field(ge=0)] = 0
    """The GPU tier's byte budget on each worker's device, beside what vLLM takes there (`--gpu-memory-utilization`). 0
    switches the tier off."""

    cpu_path: Path = Path("/dev/shm/kvblend")
    """The CPU tier's folder, on tmpfs."""

    cpu_bytes: Annotated[int, Field(ge=0)] = 4 * GIB
    """The CPU tier's byte budget; what is free on its file system bounds it too. 0 switches the tier off."""

    disk_path: Path | None = None
    """The disk tier's folder."""

    disk_bytes: Annotated[int, Field(ge=0)] = 64 * GIB
    """The disk tier's byte budget. 0 switches the tier off."""

    write: WritePolicy = "disk"
    """Where a passage KV must lie before it counts as stored. `disk`: in the slowest of the CPU and disk tiers, with a
    copy in the faster one. `memory`: in the fastest that has room; what it evicts moves down, and what is in memory
    alone is lost with the machine. `remote`: in a remote tier, too."""

    encode: EncodePolicy = "eager"
    """When an ingest's passages are encoded. `eager`: at once, as many as the tier in which they last can hold. `lazy`:
    at their first use. A number: at once until so many bytes of KV are stored."""

    codec: CodecName = "entropy"
    """How new passage KV is stored: `raw`, `fp8`, `int8`, `int4` or `entropy`: [what each costs](store.md#codecs). What
    is stored otherwise is read all the same."""

    eviction: EvictionName = "s3-fifo"
    """What tiers give up first: `s3-fifo`, `lru` or `cost-aware`: [hit rates](store.md#what-goes-first)."""

    remote: str | None = None
    """URLs of [remote tiers](store.md#remote-tiers), nearest first, with spaces between them: `redis://host:port/db`,
    `rediss://...` (TLS; `?ssl_ca_certs=<path>`), `s3://bucket/prefix`, `mooncake://host:port`,
    [`nixl://host:port,host:port`](store.md#peers)."""

    remote_username: str | None = None
    """Of a Redis or Valkey server; never in its URL. S3 takes the provider's own variables."""

    remote_password: SecretStr | None = None
    """Its password."""

    remote_deadline: Annotated[float, Field(gt=0.0)] = 0.2
    """Seconds that remote tiers may cost a request, for its lookup and again for its fetch. What has not come by then
    is recomputed."""

    peer_address: str | None = None
    """`host:port` where this host's CPU and disk tiers are served to [peers](store.md#peers). Off where it is not
    set."""

    peer_token: SecretStr | None = None
    """What peers show each other that they know, the same for all; it is not sent. An address that other hosts can
    reach needs one."""

    control: str = "ipc:///tmp/kvblend/control.sock"
    """ZeroMQ address of the connector's control channel. The service and its vLLM need the same, and no other engine on
    the host: a second one is refused. Data parallel ranks above 0 have `.dp1` and so on behind it (a TCP address: the
    port plus the rank). An engine at `tcp://*:55555` has all of its host's addresses, IPv6 among them. Of a service in
    front of a router: those of all engines behind it, with commas between them."""

    url: str | None = None
    """Where `kvblend query` and the other commands of a client find the service, if not at `http://127.0.0.1:8000`."""

    api_key: str | None = None
    """Where set, the service answers only requests that carry it as a bearer token, or a key of `KVBLEND_KEYS`; it is
    an admin's of the default tenant. The commands of a client send it."""

    keys: Path | None = None
    """A YAML file of API keys, each with a tenant and a role: [who may do what](access.md). It is read anew when it
    changes."""

    api_keys: SecretStr | None = None
    """Such keys in the variable itself, in place of a file: the same YAML, or JSON. They change with a restart."""

    cors_origins: Annotated[str, Field(pattern=CORS_ORIGINS)] | None = None
    """Whose pages in a browser may call the service, as `https://app.example.com http://localhost:3000`; `*`:
    anybody's. They send a key as others do, no cookies. Where it is not set, only [the console](console.md) may."""

    open_routes: OpenRoutes | None = None
    """Which of `docs`, `metrics` and `readyz` need no key, with spaces between them; empty: none of them. Where it is
    not set, all of them; with `KVBLEND_KEYS` or `KVBLEND_API_KEYS` all but `metrics`, which count every tenant's
    requests."""

    share_tenants: bool = False
    """New collections of all tenants share the KV of passages that are the same: [access.md](access.md#tenants)."""

    max_requests: Annotated[int, Field(ge=1)] = 256
    """Answers under way at a time, a streamed one until its last event: one more is refused with 429. Likewise as many
    searches, tokenizations and renderings beside them."""

    max_jobs: Annotated[int, Field(ge=1)] = 1024
    """Ingest jobs that wait or run at a time: one more is refused with 429."""

    tenant_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    """Where several tenants have keys, the share of these places, of jobs and of the room for documents that wait, that
    one of them may hold at a time: the rest is the others'. A tenant's own bounds [stand in the key
    file](access.md#how-much-at-a-time). `1`: one may hold all."""

    engine_api_key: SecretStr | None = None
    """What the service shows vLLM as a bearer token (vLLM's `--api-key`); the vLLM that `kvblend serve` starts takes no
    other."""

    engine_admin: bool = False
    """`1`: vLLM's administrative routes (sleep, caches, LoRA, weights, profiling and whatever else is not among [those
    that pass through](api.md#everything-vllm-speaks)) pass through the service, too. Otherwise they are a 404."""

    engine_timeout: Annotated[float, Field(gt=0.0)] = 600.0
    """Seconds for which vLLM may send nothing of an answer: before its first token, between two, and for the whole of
    one that is not streamed. Then the request ends with a 504, and vLLM is told to stop."""
    embedding_url: str | None = None
    """An OpenAI-compatible server that embeds passages and questions, as `http://host:port/v1` (vLLM with an embedding
    model is one). Without it a sentence-transformers model of the service's own does."""

    embedding_model: str | None = None
    """Its model's name."""

    embedding_api_key: SecretStr | None = None
    """What it takes as a bearer token."""

    reranker: str | None = None
    """What [reranks](retrieval.md#reranked) where a request asks for it: a sentence-transformers CrossEncoder's folder
    or name, or the whole URL of a `/rerank` route as Jina, Cohere and vLLM have it."""

    reranker_model: str | None = None
    """The model of such a route, where it takes one."""

    reranker_api_key: SecretStr | None = None
    """What it takes as a bearer token."""

    recompute_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.15
    """Recompute ratio of a request that names none, where the model is not calibrated."""

    drop_in: bool = True
    """Prompts of plain OpenAI requests in which text of ingested passages stands, as LangChain pastes it in, are
    [blended too](drop_in.md). `0`: only requests that name documents or a collection are."""

    variants: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of the slowest tier that the most valuable variants may take: KV of passages behind one another, of those
    that prompts bring together most, encoded while vLLM is idle. One that is no longer among them stays until it is
    evicted. `0`: none is encoded."""

    cost_model: bool = True
    """The service times a few requests at its start, and prefills a prompt whose blend would take as long. `0`: every
    prompt with stored passages is blended."""

    max_document_bytes: Annotated[int, Field(ge=1)] = 32 << 20
    """A larger document is refused."""

    parse_seconds: Annotated[float, Field(gt=0.0)] = 30.0
    """CPU seconds that a document may take to be parsed and split, and 5 more for each of its MiB. One that takes more
    ends its own parse: its job says so."""

    parse_bytes: Annotated[int, Field(ge=64 << 20)] = 2 * GIB
    """Memory that this may take."""

    guard_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of blended answers whose context is also prefilled in full while their vLLM server is idle, to measure how
    far they diverge. 0 switches the live guard off."""

    loading: Literal["auto", "always"] = "auto"
    """`auto`: passages are computed anew where loading them from their tier has taken a quarter longer of late; one
    blend in 30 s tries the tier again, and what was passed over is copied to the CPU tier meanwhile. The report's
    `passages` say `passed_over`. `always`: whatever is stored is loaded."""

    repair_tokens_per_step: Annotated[int, Field(ge=16)] = 512
    """The most context tokens that the connector repairs in one engine step beside other requests; in a step that has
    none it repairs as many of one blend as vLLM would prefill in a step."""

    scratch_tokens: Annotated[int, Field(ge=1)] = 16384
    """Only for a model with sliding windows, whose layers' blends need pages beside the engine's: how many tokens they
    hold, of all contexts that are blended at a time (at most `--max-model-len`). They are allocated at start, beside
    vLLM's memory. A longer context is prefilled."""

    log_format: LogFormat = "text"
    """`json`: each line of the service's and of vLLM's log is a JSON object, with the
    [ids of its request and trace](operations.md#logs)."""

    @property
    def routes_without_key(self) -> frozenset[str]:
        """Which of the routes that `open_routes` names need no key."""
        default = "docs metrics readyz" if self.keys is None and self.api_keys is None else "docs readyz"
        return frozenset((default if self.open_routes is None else self.open_routes).split())

    @property
    def home_path(self) -> Path:
        return self.home.expanduser()

    @property
    def disk_tier_path(self) -> Path:
        return (self.disk_path or self.home / "kv").expanduser()


class TracingSettings(BaseSettings):
    """OpenTelemetry's own variables, as far as kvblend itself goes by them: where spans are sent, by which protocol,
    and in whose name."""

    model_config = SettingsConfigDict(env_prefix="OTEL_", frozen=True, extra="ignore")

    exporter_otlp_endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+")] | None = None
    exporter_otlp_protocol: Literal["grpc", "http/protobuf"] = "http/protobuf"
    service_name: str | None = None

    @property
    def traces_endpoint(self) -> str | None:
        """Where the spans go: by HTTP a path of the endpoint's."""
        if self.exporter_otlp_endpoint is None or self.exporter_otlp_protocol == "grpc":
            return self.exporter_otlp_endpoint
        return f"{self.exporter_otlp_endpoint.rstrip('/')}/v1/traces"
