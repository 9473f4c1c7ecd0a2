"""What the two halves of the connector say to each other in an engine step."""

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from kvblend.core.plan import ContextPlan, EncodeOrder
from kvblend.core.report import BlendReport
from kvblend.vllm_connector.log_ids import log_ids
from kvblend.vllm_connector.timed_step import TimedStep

__all__ = ["BlendTask", "EncodeTask", "StepMetadata", "StepResults"]


@dataclass(frozen=True)
class BlendTask:
    """Fill context tokens `[start, num_tokens)`; those before `start` are a local prefix hit.

    The plan may go on behind `num_tokens`, with spans that vLLM prefills. `block_ids`: the request's blocks by KV cache
    group; 0 is the null block. `trace_id`: of the request's trace, where it has one.
    """

    request_id: str
    plan: ContextPlan
    token_ids: list[int]
    start: int
    num_tokens: int
    block_ids: tuple[list[int], ...]
    report_tokens: bool = False
    trace_id: str | None = None

    @property
    def log_ids(self) -> dict[str, str]:
        return log_ids(self.request_id, self.trace_id)


@dataclass(frozen=True)
class EncodeTask:
    """Keep what this step computes of an encode order: prompt tokens `[computed_start, computed_end)`."""

    request_id: str
    order: EncodeOrder
    token_ids: list[int]
    computed_start: int
    computed_end: int
    block_ids: tuple[list[int], ...]


@dataclass
class StepMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """Scheduler half to worker half.

    `refused` blends come to nothing, for a reason: their requests wait to be told. `dropped` requests are gone: forget
    them. `num_scheduled_tokens`: of all requests, in this step's forward.
    """

    blends: list[BlendTask] = field(default_factory=list)
    encodes: list[EncodeTask] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    num_scheduled_tokens: int = 0


@dataclass
class StepResults(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """Worker half to scheduler half, by request id.

    `failed` says why a blend came to nothing: vLLM prefills the request. An encode's value has each rank's outcome so
    far, None or why it failed: ranks end their writes in different steps. `steps`: those of a traced request's
    blend.
    """

    reports: dict[str, BlendReport] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    encoded: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    steps: dict[str, list[TimedStep]] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "StepResults":
        """Join the ranks' results: the first rank's report stands for all, every rank's encodes are counted."""
        assert isinstance(other, StepResults)
        encoded = dict(self.encoded)
        for request_id, outcomes in other.encoded.items():
            encoded[request_id] = encoded.get(request_id, ()) + outcomes
        return StepResults(
            {**other.reports, **self.reports},
            {**other.failed, **self.failed},
            encoded,
            {**other.steps, **self.steps},
        )
