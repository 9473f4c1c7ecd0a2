"""A client of every route. `make sdk` makes the synchronous client of the asynchronous one: change that alone."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack

import httpx
from pydantic import ValidationError

from kvblend.core.calibration import Calibration
from kvblend.core.errors import EngineUnavailableError
from kvblend.core.rest import (
    BlendOptions,
    Collection,
    Document,
    DocumentPassage,
    IngestJob,
    KVCompressed,
    KVLookup,
    KVPair,
    KVStats,
    KVVerifyReport,
    OrderName,
    QueryResponse,
    Readiness,
    SearchMode,
    Source,
)
from kvblend.sdk import routes
from kvblend.sdk.chat import ChatChunk, ChatCompletion
from kvblend.sdk.connection import http_options
from kvblend.sdk.default_url import DEFAULT_URL
from kvblend.sdk.errors import connection_error, status_error
from kvblend.sdk.sse import EventDecoder
from kvblend.sdk.trace_context import trace_headers
from kvblend.sdk.upload import UploadProgress, open_files
from kvblend.sdk.waiting import JobProgress, finished, pauses

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """A kvblend service. `Client` blocks; the methods of `AsyncClient` are awaited, or iterated by `async for`.

    Every method raises what the service answers as an error of `kvblend.core.errors`: `InvalidRequestError`,
    `NotFoundError`, `ConflictError` and so on; and `EngineUnavailableError` where the service or its vLLM does not
    answer. `timeout_s` bounds each wait for the next bytes, not a whole answer. Close it, or use it in a
    `with`.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**http_options(base_url, api_key, timeout_s), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _send(self, call: routes.Call[T], files: Any = None) -> T:
        try:
            response = await self._http.request(
                call.method, call.path, json=call.json, params=call.params, files=files, headers=trace_headers()
            )
        except httpx.TransportError as error:
            raise connection_error(self._http.base_url, error) from error
        if response.status_code in call.answers:
            with suppress(ValidationError):  # a proxy in between answers in its own shape
                return call.read(response.content)
        if not response.is_success:
            raise status_error(response)
        return call.read(response.content)

    async def _stream(self, call: routes.StreamCall[T]) -> AsyncIterator[T]:
        decoder = EventDecoder()
        try:
            async with self._http.stream("POST", call.path, json=call.json, headers=trace_headers()) as response:
                if not response.is_success:
                    await response.aread()
                    raise status_error(response)
                async for text in response.aiter_text():
                    for event in decoder.feed(text):
                        item = call.read(event)
                        if item is None:
                            return
                        yield item
                        if call.last(item):
                            return
            raise EngineUnavailableError(f"the answer of {call.path} broke off")
        except httpx.TransportError as error:
            raise connection_error(self._http.base_url, error) from error

    async def create_collection(
        self,
        name: str,
        *,
        preamble: str | None = None,
        warm_context: str | None = None,
        passage_tokens: int = 256,
        kv_quota_bytes: int | None = None,
        kv_ttl_s: float | None = None,
        order: OrderName | None = None,
        mode: SearchMode | None = None,
    ) -> Collection:
        """Create a collection. What is None takes the service's default, which for the limits of its KV is none; the
        others cannot change later."""
        return await self._send(
            routes.create_collection(
                name=name,
                preamble=preamble,
                warm_context=warm_context,
                passage_tokens=passage_tokens,
                kv_quota_bytes=kv_quota_bytes,
                kv_ttl_s=kv_ttl_s,
                order=order,
                mode=mode,
            )
        )

    async def update_collection(self, name: str, **limits: Unpack[routes.CollectionLimits]) -> Collection:
        """Change what is named: `kv_quota_bytes` and `kv_ttl_s`, limits of a collection's KV, of which None is none;
        `order`, that of its passages in prompts; `mode`, that of its searches."""
        return await self._send(routes.update_collection(name, limits))

    async def rebuild_collection(self, name: str, *, passage_tokens: int | None = None) -> IngestJob:
        """Start to split and embed a collection's documents anew, from what the service keeps of them."""
        return await self._send(routes.rebuild_collection(name, passage_tokens=passage_tokens))

    async def get_collection(self, name: str) -> Collection:
        """Return a collection as it stands."""
        return await self._send(routes.get_collection(name))

    async def list_collections(self) -> list[Collection]:
        """Return all collections."""
        return await self._send(routes.list_collections())

    async def delete_collection(self, name: str) -> None:
        """Delete a collection: its documents, vectors and passage KV."""
        await self._send(routes.delete_collection(name))

    async def add_document(
        self,
        collection: str,
        text: str,
        *,
        id: str | None = None,
        name: str | None = None,
        media_type: Literal["text/plain", "text/markdown", "text/html", "text/csv"] = "text/plain",
        metadata: Mapping[str, str | int | float | bool] | None = None,
    ) -> IngestJob:
        """Start the ingest of one text. Without an id the name is the id; without either, a hash of the text."""
        return await self._send(
            routes.add_document(
                collection, id=id, name=name, text=text, media_type=media_type, metadata=dict(metadata or {})
            )
        )

    async def upload(
        self,
        collection: str,
        paths: Sequence[str | Path] | Mapping[str, str | Path],
        *,
        progress: UploadProgress | None = None,
    ) -> IngestJob:
        """Upload files (txt, md, html, pdf, docx, pptx, xlsx, csv) and start their ingest.

        `progress(bytes_sent, bytes_total)` is called as they go.

        A document is named after its file; `{name: path}` names it otherwise, and the name is its id.

        Raises:
            OSError: a file cannot be read.
        """
        with open_files(paths, progress) as files:
            return await self._send(routes.upload(collection), files)

    async def list_documents(self, collection: str) -> AsyncIterator[Document]:
        """Yield the documents of a collection, asking for more as they are used."""
        after = None
        while True:
            page = await self._send(routes.list_documents(collection, after=after))
            for document in page.documents:
                yield document
            after = page.next_after
            if after is None:
                return

    async def get_document(self, collection: str, document_id: str) -> Document:
        """Return a document as it stands."""
        return await self._send(routes.get_document(collection, document_id))

    async def document_source(self, collection: str, document_id: str) -> bytes:
        """Return a document as it was uploaded."""
        return await self._send(routes.document_source(collection, document_id))

    async def document_passages(self, collection: str, document_id: str) -> AsyncIterator[DocumentPassage]:
        """Yield a document's passages in their order, asking for more as they are used."""
        after: int | None = 0
        while after is not None:
            page = await self._send(routes.document_passages(collection, document_id, after=after))
            for passage in page.passages:
                yield passage
            after = page.next_after

    async def delete_document(self, collection: str, document_id: str) -> None:
        """Delete a document: its text, vectors and passage KV, where nothing else uses it."""
        await self._send(routes.delete_document(collection, document_id))

    async def get_job(self, collection: str, job_id: str) -> IngestJob:
        """Return an ingest job as it stands."""
        return await self._send(routes.get_job(collection, job_id))

    async def wait(
        self, job: IngestJob, *, progress: JobProgress | None = None, timeout_s: float | None = None
    ) -> IngestJob:
        """Wait until an ingest job is done, and return it; `progress(job)` at each look.

        Raises:
            KVBlendError: the job failed.
            TimeoutError: `timeout_s` seconds have passed. The job goes on.
        """
        for pause in pauses(timeout_s):
            job = await self.get_job(job.collection, job.id)
            if progress is not None:
                progress(job)
            if finished(job):
                break
            await asyncio.sleep(pause)
        return job

    async def query(self, collection: str, question: str, **fields: Unpack[routes.QueryFields]) -> QueryResponse:
        """Ask a collection. What is None the service chooses; name one of `recompute_ratio` and `target_kl` at most.

        `top_k` passages (8) are retrieved, and at most `max_tokens` (128) answered, greedily unless `temperature` says
        otherwise. `target_kl` asks for the smallest ratio that is calibrated for such a mean KL (nats) to full prefill.
        `history`: the conversation so far, `{"role": ..., "content": ...}` each; `rewrite`: retrieve for the question
        as vLLM makes it stand alone. `mode` (hybrid, vector or keyword), `filter` of metadata, `min_score`,
        `neighbors`, `rerank` and `rerank_candidates` say how passages are retrieved.
        `report_tokens`: the report's `tokens` tells the fate of every context token. `report_divergence`: its
        `divergence` tells how far each of the answer's first tokens is from full prefill's, which is made for it.
        """
        return await self._send(routes.query(collection, question=question, **fields))

    async def stream_query(
        self, collection: str, question: str, **fields: Unpack[routes.QueryFields]
    ) -> AsyncIterator[routes.QueryEvent]:
        """Ask a collection, as `query` does; yield one SearchResponse, then QueryDeltas, then one QueryResponse."""
        async for item in self._stream(routes.stream_query(collection, question=question, **fields)):
            yield item

    async def search(
        self, collection: str, query: str, *, top_k: int = 8, **retrieval: Unpack[routes.RetrievalFields]
    ) -> list[Source]:
        """Retrieve passages, best first, and answer nothing. `retrieval`: as of `query`."""
        return await self._send(routes.search(collection, query=query, top_k=top_k, **retrieval))

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        blend: BlendOptions | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ChatCompletion:
        """Chat in OpenAI's message format over the passages of `blend`; `extra` holds OpenAI's other fields."""
        return await self._send(routes.chat(messages, model, blend or BlendOptions(), extra or {}))

    async def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        blend: BlendOptions | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[ChatChunk]:
        """Chat as `chat` does; yield the answer in chunks."""
        async for item in self._stream(routes.stream_chat(messages, model, blend or BlendOptions(), extra or {})):
            yield item

    async def calibration(self) -> Calibration:
        """Return the calibration of the served model.

        Raises:
            NotFoundError: it has none.
        """
        return await self._send(routes.calibration())

    async def readiness(self) -> Readiness:
        """Return whether vLLM answers, and what the service says of its model's quality. Where none answers, `status`
        says so, and nothing is raised."""
        return await self._send(routes.readiness())

    async def list_models(self) -> list[str]:
        """Return the names of the models that the service serves."""
        return await self._send(routes.list_models())

    async def kv_stats(self) -> KVStats:
        """Return what the store's tiers hold."""
        return await self._send(routes.kv_stats())

    async def kv_lookup(
        self, collection: str, *, document_id: str | None = None, passage_ids: Sequence[str] | None = None
    ) -> KVLookup:
        """Return every file of the KV of a collection, of one document or of passages, by tier."""
        return await self._send(routes.kv_lookup(routes.selected(collection, document_id, passage_ids)))

    async def kv_pairs(self, collection: str, *, limit: int = 20) -> list[KVPair]:
        """Return the pairs of passages that a collection's prompts bring together most, the heaviest first."""
        return await self._send(routes.kv_pairs(collection, limit))

    async def kv_pin(
        self, collection: str, *, document_id: str | None = None, passage_ids: Sequence[str] | None = None
    ) -> int:
        """Keep KV from eviction until it is unpinned; return the number of files."""
        return await self._send(routes.kv_change("pin", routes.selected(collection, document_id, passage_ids)))

    async def kv_unpin(
        self, collection: str, *, document_id: str | None = None, passage_ids: Sequence[str] | None = None
    ) -> int:
        """Let KV be evicted again; return the number of files."""
        return await self._send(routes.kv_change("unpin", routes.selected(collection, document_id, passage_ids)))

    async def kv_clear(
        self, collection: str, *, document_id: str | None = None, passage_ids: Sequence[str] | None = None
    ) -> int:
        """Delete KV from every tier, and keep the documents; return the number of files."""
        return await self._send(routes.kv_change("clear", routes.selected(collection, document_id, passage_ids)))

    async def kv_move(
        self,
        collection: str,
        to: Literal["faster", "slower"],
        *,
        document_id: str | None = None,
        passage_ids: Sequence[str] | None = None,
    ) -> int:
        """Bring KV to the fastest shared tier, or to the next slower one; return how many files are there now."""
        return await self._send(routes.kv_move(routes.selected(collection, document_id, passage_ids), to))

    async def kv_compress(
        self,
        collection: str,
        codec: Literal["int8", "entropy", "fp8", "int4"] = "entropy",
        *,
        document_id: str | None = None,
        passage_ids: Sequence[str] | None = None,
    ) -> KVCompressed:
        """Encode raw KV by a codec, in place; return how many files, and the bytes that this freed."""
        return await self._send(routes.kv_compress(routes.selected(collection, document_id, passage_ids), codec))

    async def kv_verify(self) -> KVVerifyReport:
        """Read and check every file of the shared tiers; damaged ones are put aside."""
        return await self._send(routes.kv_verify())

    async def kv_sweep(self) -> int:
        """Delete the KV that no collection holds any more; return the number of passages."""
        return await self._send(routes.kv_sweep())
