"""All that a running service holds, put together once at its start and taken apart at its end."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from fastapi import Request

from kvblend.api.blender import Blender
from kvblend.api.collections import Collections
from kvblend.api.completion import KVCompletion
from kvblend.api.cost_fit import CostFit
from kvblend.api.encode_context import default_warm_context
from kvblend.api.encode_room import EncodeRoom
from kvblend.api.encoder import Encoder
from kvblend.api.gate import Gate
from kvblend.api.home_lock import lock_home
from kvblend.api.ingest import Ingest
from kvblend.api.kv_control import KVControl
from kvblend.api.kv_deletions import KVDeletions
from kvblend.api.kv_ledger import DeletionLedger
from kvblend.api.kv_limits import KVLimits
from kvblend.api.live_guard import LiveGuard
from kvblend.api.metrics import Metrics
from kvblend.api.passage_kv import PassageKV
from kvblend.api.plain import PlainAnswers
from kvblend.api.prompt import PromptBuilder
from kvblend.api.replica import Replica, Replicas
from kvblend.api.retrieval import Retrieval
from kvblend.api.served_calibration import ServedCalibration
from kvblend.api.tier_metrics import TierMetrics
from kvblend.core.errors import EngineUnavailableError
from kvblend.core.settings import Settings
from kvblend.retriever import Embedder, Retriever, SplitLimits, SplitPool
from kvblend.store import TieredStore

__all__ = ["Service", "ServiceConfig", "running_service", "service_of"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceConfig:
    """What a service is made of. `engines` are pairs of a vLLM server's URL and its control channel's address;
    `model` is its model's name or folder, for the tokenizer; `embedding_model` likewise."""

    model: str
    embedding_model: str | Path
    engines: Sequence[tuple[str, str]]
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class Service:
    """The parts that routes use."""

    settings: Settings
    prompts: PromptBuilder
    retriever: Retriever
    collections: Collections
    retrieval: Retrieval
    replicas: Replicas
    passage_kv: PassageKV
    calibration: ServedCalibration
    blender: Blender
    plain: PlainAnswers
    ingest: Ingest
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


@contextlib.asynccontextmanager
async def running_service(config: ServiceConfig) -> AsyncIterator[Service]:
    """Start a service; at the end stop its background work and close what it opened.

    Raises KVBlendError where a folder of the settings cannot be used, ConflictError where another service uses it.
    """
    settings = config.settings
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(lock_home(settings.home_path))
        tokenizer = await asyncio.to_thread(_load_tokenizer, config.model)
        prompts = PromptBuilder(tokenizer)
        embedder = Embedder(config.embedding_model)
        retriever = Retriever(settings.home_path / "collections", embedder=embedder, tokenizer=tokenizer)
        stack.callback(retriever.close)
        collections = Collections(
            retriever.catalog, prompts, model=config.model, embedding_model=str(config.embedding_model)
        )
        metrics = Metrics()
        store = TieredStore.from_settings(settings)
        metrics.watch(TierMetrics(store))
        passage_kv = PassageKV(store, deadline_s=settings.remote_deadline)
        stack.push_async_callback(passage_kv.close)
        replicas = Replicas([Replica(url, control, api_key=settings.engine_api_key) for url, control in config.engines])
        replicas.start()
        stack.push_async_callback(replicas.close)
        encoder = Encoder(replicas, passage_kv, metrics)
        stack.push_async_callback(encoder.close)
        costs = CostFit(replicas, encoder, passage_kv, token_ids=prompts.passage_ids(default_warm_context()))
        if settings.cost_model:
            costs.start()
        stack.push_async_callback(costs.close)
        calibration = ServedCalibration(config.model, home=settings.home_path)
        calibration.start(replicas)
        stack.push_async_callback(calibration.close)
        completion = KVCompletion(
            replicas, collections, retriever.catalog, passage_kv, encoder, EncodeRoom(settings.encode, passage_kv)
        )
        ledger = DeletionLedger(settings.home_path / "kv_deletions.sqlite3")
        stack.callback(ledger.close)
        deletions = KVDeletions(ledger, collections, encoder, passage_kv, completion)
        deletions.start()
        stack.push_async_callback(deletions.close)
        splits = SplitPool(
            retriever.tokenizer, SplitLimits(seconds=settings.parse_seconds, memory_bytes=settings.parse_bytes)
        )
        stack.callback(splits.close)
        room = EncodeRoom(settings.encode, passage_kv)
        ingest = Ingest(retriever, splits, collections, encoder, deletions, room, metrics)
        stack.push_async_callback(ingest.close)
        limits = KVLimits(collections, passage_kv)
        limits.start()
        stack.push_async_callback(limits.close)
        completion.start()
        stack.push_async_callback(completion.close)
        guard = LiveGuard(metrics, ratio=settings.guard_ratio)
        guard.start()
        stack.push_async_callback(guard.close)
        warm_up = asyncio.create_task(asyncio.to_thread(embedder.encode_query, "warm up"))
        stack.push_async_callback(asyncio.wait, {warm_up})
        yield Service(
            settings=settings,
            prompts=prompts,
            retriever=retriever,
            collections=collections,
            retrieval=Retrieval(retriever, collections, prompts),
            replicas=replicas,
            calibration=calibration,
            passage_kv=passage_kv,
            blender=Blender(replicas, passage_kv, encoder, Gate(calibration, costs.model), guard, metrics),
            plain=PlainAnswers(replicas, metrics),
            ingest=ingest,
            kv=KVControl(collections, completion, encoder, passage_kv),
            deletions=deletions,
            guard=guard,
            metrics=metrics,
        )


def _load_tokenizer(model: str) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)
