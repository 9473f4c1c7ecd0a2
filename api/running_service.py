"""A service put together once at its start, and taken apart at its end."""

import asyncio
import contextlib
import fcntl
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from kvblend.api.access.admission import Admission
from kvblend.api.access.key_ring import KeyRing
from kvblend.api.access.rate_limits import RateLimits
from kvblend.api.access.shares import Shares
from kvblend.api.access.tenant_kv import TenantKV
from kvblend.api.collections import Collections
from kvblend.api.engine.blender import Blender
from kvblend.api.engine.passthrough import Passthrough
from kvblend.api.engine.plain import PlainAnswers
from kvblend.api.engine.replicas import Replica, Replicas
from kvblend.api.ingest.document_writer import DocumentWriter
from kvblend.api.ingest.ingest import Ingest
from kvblend.api.ingest.jobs import Jobs
from kvblend.api.ingest.journal import IngestJournal
from kvblend.api.ingest.tenant_jobs import TenantJobs
from kvblend.api.kv.completion import KVCompletion
from kvblend.api.kv.control import KVControl
from kvblend.api.kv.deletions import KVDeletions
from kvblend.api.kv.encode_context import default_warm_context
from kvblend.api.kv.encode_room import EncodeRoom
from kvblend.api.kv.encoder import Encoder
from kvblend.api.kv.ledger import DeletionLedger
from kvblend.api.kv.limits import KVLimits
from kvblend.api.kv.passage_kv import PassageKV
from kvblend.api.kv.variant_encodes import VariantEncodes
from kvblend.api.metrics import Metrics
from kvblend.api.prompt.builder import PromptBuilder
from kvblend.api.prompt.chat_frames import ChatFrames
from kvblend.api.prompt.drop_in import DropIn
from kvblend.api.prompt.neighbours import PairLedger, VariantLedger
from kvblend.api.prompt.order import PromptOrder
from kvblend.api.prompt.retrieval import Retrieval
from kvblend.api.quality.cost_fit import CostFit
from kvblend.api.quality.gate import Gate
from kvblend.api.quality.live_guard import LiveGuard
from kvblend.api.quality.served_calibration import ServedCalibration
from kvblend.api.query_threads import QueryThreads
from kvblend.api.retrieval_models import open_embedder, open_reranker
from kvblend.api.service import Service, ServiceConfig
from kvblend.api.tier_metrics import TierMetrics
from kvblend.api.tracing import Tracing
from kvblend.core.errors import ConflictError, EngineUnavailableError
from kvblend.retriever import (
    EmbeddingModel,
    PassageMatcher,
    RemoteEmbedder,
    RemoteReranker,
    Retriever,
    SplitLimits,
    SplitPool,
)
from kvblend.store import TieredStore

__all__ = ["running_service"]

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def running_service(config: ServiceConfig, tracing: Tracing | None = None) -> AsyncIterator[Service]:
    """Start a service; at the end stop its background work and close what it opened. `tracing`: of its requests.

    Raises KVBlendError where a folder of the settings cannot be used, ConflictError where another service uses it.
    """
    settings = config.settings
    in_environment = None if settings.api_keys is None else settings.api_keys.get_secret_value()
    keys = KeyRing(settings.keys, text=in_environment, api_key=settings.api_key)
    shares = Shares(keys, share=settings.tenant_share)

    def tenant_quota(tenant: str) -> int | None:
        return keys.limits(tenant).kv_quota_bytes

    async with contextlib.AsyncExitStack() as stack:
        if tracing is not None:
            stack.push_async_callback(asyncio.to_thread, tracing.close)
        stack.enter_context(_lock_home(settings.home_path))
        tokenizer = await asyncio.to_thread(_load_tokenizer, config.model)
        prompts = PromptBuilder(tokenizer)
        embedder, reranker = open_embedder(config.embedding_model, settings), open_reranker(settings)
        for remote in (embedder, reranker):
            if isinstance(remote, RemoteEmbedder | RemoteReranker):
                stack.callback(remote.close)
        retriever = Retriever(
            settings.home_path / "collections", embedder=embedder, tokenizer=tokenizer, reranker=reranker
        )
        stack.callback(retriever.close)
        query_threads = QueryThreads()
        stack.callback(query_threads.close)
        collections = Collections(
            retriever.catalog,
            prompts,
            model=config.model,
            embedding_model=embedder.name,
            share_tenants=settings.share_tenants,
            tenant_quota=tenant_quota,
        )
        metrics = Metrics(lambda: keys.tenants)
        store = TieredStore.from_settings(settings)
        metrics.watch(TierMetrics(store))
        metrics.watch(TenantKV(store, collections.owners))
        passage_kv = PassageKV(store, deadline_s=settings.remote_deadline)
        stack.push_async_callback(passage_kv.close)
        each_replica = [
            Replica(url, control, api_key=settings.engine_api_key, timeout_s=settings.engine_timeout)
            for url, control in config.engines
        ]
        for replica in each_replica:
            if tracing is not None:
                replica.engine.watch(tracing)
            metrics.breaker(f"vLLM at {replica.engine.url}", replica)
        for tier in store.remotes:
            metrics.breaker(str(tier), tier)
        replicas = Replicas(each_replica)
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
        variants = VariantLedger(settings.home_path / "kv_variants.sqlite3")
        stack.callback(variants.close)
        pairs = PairLedger(settings.home_path / "passage_pairs.sqlite3")
        stack.callback(pairs.close)
        deletions = KVDeletions(
            ledger, collections, encoder, passage_kv, completion, variants, metrics, tenants=lambda: keys.tenants
        )
        metrics.pending_deletions(ledger.count)
        deletions.start()
        stack.push_async_callback(deletions.close)
        splits = SplitPool(
            retriever.tokenizer, SplitLimits(seconds=settings.parse_seconds, memory_bytes=settings.parse_bytes)
        )
        stack.callback(splits.close)
        room = EncodeRoom(settings.encode, passage_kv)
        writer = DocumentWriter(retriever, splits, collections, encoder, deletions, room, pairs)
        journal = IngestJournal(settings.home_path / "ingest.sqlite3")
        stack.callback(journal.close)
        jobs = Jobs(journal)
        metrics.watch(TenantJobs(jobs.unfinished, lambda: keys.tenants))
        ingest = Ingest(
            writer, retriever, collections, deletions, pairs, metrics, jobs, shares, max_jobs=settings.max_jobs
        )
        stack.push_async_callback(ingest.close)
        guard = LiveGuard(metrics, ratio=settings.guard_ratio)
        variant_encodes = VariantEncodes(
            replicas,
            collections,
            retriever.catalog,
            passage_kv,
            encoder,
            deletions,
            pairs,
            variants,
            metrics,
            guard,
            share=settings.variants,
        )
        variant_encodes.start()
        stack.push_async_callback(variant_encodes.close)
        order = PromptOrder(replicas, passage_kv, pairs, metrics, query_threads)
        stack.push_async_callback(order.close)
        drop_in = DropIn(PassageMatcher(retriever.catalog), collections, prompts, query_threads, is_on=settings.drop_in)
        drop_in.start()
        stack.push_async_callback(drop_in.close)
        limits = KVLimits(collections, passage_kv, tenant_quota=tenant_quota)
        limits.start()
        stack.push_async_callback(limits.close)
        completion.start(deletions)
        stack.push_async_callback(completion.close)
        guard.start()
        stack.push_async_callback(guard.close)
        warm_up = asyncio.create_task(asyncio.to_thread(_warm_up, embedder))
        stack.push_async_callback(asyncio.wait, {warm_up})
        await ingest.take_up()
        yield Service(
            settings=settings,
            keys=keys,
            rate_limits=RateLimits(lambda tenant: keys.limits(tenant).requests_per_minute),
            admission=Admission(settings.max_requests, shares),
            query_threads=query_threads,
            prompts=prompts,
            chat_frames=ChatFrames(replicas, prompts, query_threads),
            retriever=retriever,
            collections=collections,
            retrieval=Retrieval(retriever, collections, prompts, query_threads),
            replicas=replicas,
            calibration=calibration,
            passage_kv=passage_kv,
            blender=Blender(
                replicas, collections, passage_kv, encoder, Gate(calibration, costs.model), guard, metrics, prompts
            ),
            plain=PlainAnswers(replicas, metrics),
            passthrough=Passthrough(replicas, metrics),
            ingest=ingest,
            order=order,
            drop_in=drop_in,
            kv=KVControl(collections, completion, encoder, passage_kv, variants, pairs),
            deletions=deletions,
            guard=guard,
            metrics=metrics,
        )


def _warm_up(embedder: EmbeddingModel) -> None:
    with contextlib.suppress(EngineUnavailableError):  # whoever asks first says so
        embedder.encode_query("warm up")


def _load_tokenizer(model: str) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@contextlib.contextmanager
def _lock_home(home: Path) -> Iterator[None]:
    """Hold the folder, made where it is not there: two services on one catalog and index would undo each other's work.
    Raises ConflictError where another one holds it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "service.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(f"another kvblend service uses {home}; give this one another KVBLEND_HOME") from error
        yield
