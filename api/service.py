"""All that a running service holds, as its routes use it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from fastapi import Request

from kvblend.api.access.admission import Admission
from kvblend.api.access.key_ring import KeyRing
from kvblend.api.access.rate_limits import RateLimits
from kvblend.api.collections import Collections
from kvblend.api.engine.blender import Blender
from kvblend.api.engine.passthrough import Passthrough
from kvblend.api.engine.plain import PlainAnswers
from kvblend.api.engine.replicas import Replicas
from kvblend.api.ingest.ingest import Ingest
from kvblend.api.kv.control import KVControl
from kvblend.api.kv.deletions import KVDeletions
from kvblend.api.kv.passage_kv import PassageKV
from kvblend.api.metrics import Metrics
from kvblend.api.prompt.builder import PromptBuilder
from kvblend.api.prompt.chat_frames import ChatFrames
from kvblend.api.prompt.drop_in import DropIn
from kvblend.api.prompt.order import PromptOrder
from kvblend.api.prompt.retrieval import Retrieval
from kvblend.api.quality.live_guard import LiveGuard
from kvblend.api.quality.served_calibration import ServedCalibration
from kvblend.api.query_threads import QueryThreads
from kvblend.core.errors import EngineUnavailableError
from kvblend.core.settings import Settings, TracingSettings
from kvblend.retriever import Retriever

__all__ = ["Service", "ServiceConfig", "service_of"]


@dataclass(frozen=True)
class ServiceConfig:
    """What a service is made of. `engines` are pairs of a vLLM server's URL and its control channel's address (of a
    router's URL and those of all its engines, with commas between them); `model` is its model's name or folder, for
    the tokenizer; `embedding_model` likewise."""

    model: str
    embedding_model: str | Path
    engines: Sequence[tuple[str, str]]
    settings: Settings = field(default_factory=Settings)
    tracing: TracingSettings = field(default_factory=TracingSettings)


@dataclass(frozen=True)
class Service:
    """The parts that routes use."""

    settings: Settings
    keys: KeyRing
    rate_limits: RateLimits
    admission: Admission
    query_threads: QueryThreads
    prompts: PromptBuilder
    chat_frames: ChatFrames
    retriever: Retriever
    collections: Collections
    retrieval: Retrieval
    replicas: Replicas
    passage_kv: PassageKV
    calibration: ServedCalibration
    blender: Blender
    plain: PlainAnswers
    passthrough: Passthrough
    ingest: Ingest
    order: PromptOrder
    drop_in: DropIn
    kv: KVControl
    deletions: KVDeletions
    guard: LiveGuard
    metrics: Metrics

    async def max_model_len(self) -> int | None:
        """The model's length; None where no vLLM server answers to say it."""
        try:
            _, facts = await self.replicas.choose()
        except EngineUnavailableError:
            return None
        return facts.max_model_len


def service_of(request: Request) -> Service:
    """The service that answers this request."""
    return cast(Service, request.app.state.service)
