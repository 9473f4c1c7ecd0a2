"""Find the passages of a prompt: retrieved from a collection, or supplied by the caller."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from kvblend.api.collections import Collections
from kvblend.api.open_collection import OpenCollection
from kvblend.api.prompt.blend_prompt import BlendPrompt, DocumentRef, PromptPassage
from kvblend.api.prompt.builder import Frame, PromptBuilder
from kvblend.api.query_threads import QueryThreads
from kvblend.api.request_context import step
from kvblend.core.collection_name import DEFAULT_TENANT, collection_key, tenant_of
from kvblend.core.errors import ConflictError, NotFoundError
from kvblend.core.identity import token_hash
from kvblend.core.rest import BlendOptions, RetrievalChoices, Source, SuppliedDocument
from kvblend.retriever import Retriever

__all__ = ["Retrieval", "Retrieved"]


@dataclass(frozen=True)
class Retrieved:
    """Passages for a prompt, and the collection whose preamble it begins with."""

    collection: OpenCollection
    sources: list[Source]
    passages: list[PromptPassage]

    def frame(self, rendered: Frame) -> Frame:
        """The rendered frame with the collection's own preamble tokens, which are those that its KV was made behind."""
        return Frame(self.collection.encode_context.preamble_ids, rendered.question_ids)

    def prompt(self, frame: Frame) -> BlendPrompt:
        """The passages within a frame."""
        collection = self.collection
        return BlendPrompt(frame, self.passages, collection.encode_context.salt, collection.tenant_owner)


class Retrieval:
    """Retrieves in threads: embedding, searching and tokenizing block."""

    def __init__(
        self, retriever: Retriever, collections: Collections, prompts: PromptBuilder, threads: QueryThreads
    ) -> None:
        self._retriever = retriever
        self._collections = collections
        self._prompts = prompts
        self._threads = threads

    async def search(self, collection: str, query: str, choices: RetrievalChoices) -> Retrieved:
        """The passages of a collection that answer a query best, best first. Raises NotFoundError, ConflictError."""
        with step("kvblend.retrieve"):
            return await self._threads.run(self._search, collection, query, choices)

    async def context(self, options: BlendOptions, *, query: str, tenant: str = DEFAULT_TENANT) -> Retrieved:
        """The documents that a tenant's caller supplied, as passages; where there are none, what its collection has.

        Where no collection is named, it is the one that holds most of the documents as passages, if one does.
        """
        name = None if options.collection is None else collection_key(tenant, options.collection)
        if not options.documents and name is not None:
            return await self.search(name, query, options)
        with step("kvblend.retrieve"):
            return await self._threads.run(self._supplied, options.documents, name, tenant)

    def _search(self, name: str, query: str, choices: RetrievalChoices) -> Retrieved:
        collection = self._collections.open(name)
        hits = self._retriever.search(
            name,
            query,
            top_k=choices.top_k,
            mode=choices.mode or collection.mode,
            filter=choices.filter,
            min_score=choices.min_score,
            neighbors=choices.neighbors,
            rerank_candidates=choices.rerank_candidates if choices.rerank else 0,
        )
        sources = [
            Source(
                document_id=hit.document_id,
                document_name=hit.document_name,
                passage_id=hit.passage_id,
                text=hit.text,
                score=hit.score,
                metadata=hit.metadata,
                neighbor=hit.is_neighbor,
            )
            for hit in hits
        ]
        passages = [_ingested(collection, hit.token_ids, hit.contexts, hit.document_id, hit.position) for hit in hits]
        return Retrieved(collection, sources, passages)

    def _supplied(self, documents: Sequence[SuppliedDocument | str], name: str | None, tenant: str) -> Retrieved:
        """Passages of a caller's own. What of them is ingested has the KV that it has there."""
        supplied = [SuppliedDocument(text=item) if isinstance(item, str) else item for item in documents]
        tokens = [self._prompts.passage_ids(document.text) for document in supplied]
        ids = [token_hash(token_ids) for token_ids in tokens]
        held = self._retriever.catalog.find_passages(set(ids))
        collection = self._holding_most(held, tenant) if name is None else self._collections.open(name)
        found = held.get(collection.name, {})
        context = collection.encode_context
        sources, passages = [], []
        for document, token_ids, passage_id in zip(supplied, tokens, ids, strict=True):
            place = found.get(passage_id)
            passages.append(
                PromptPassage.behind(
                    context, token_ids, kind=collection.kind(context.hash), owner=collection.tenant_owner
                )
                if place is None
                else _ingested(collection, token_ids, place.contexts, place.document.id, place.position)
            )
            sources.append(
                Source(
                    document_id=document.id or (place and place.document.id),
                    document_name=place and place.document.name,
                    passage_id=passage_id,
                    text=document.text,
                    metadata=document.metadata,
                )
            )
        return Retrieved(collection, sources, passages)

    def _holding_most(self, held: Mapping[str, Collection[object]], tenant: str) -> OpenCollection:
        """Of a tenant's collections that hold something and that the served model can use, the one that holds most."""
        own = [name for name in held if tenant_of(name) == tenant]
        for name in sorted(own, key=lambda each: -len(held[each])):
            with suppress(ConflictError, NotFoundError):
                return self._collections.open(name)
        return self._collections.default(tenant)


def _ingested(
    collection: OpenCollection, token_ids: tuple[int, ...], stored: Sequence[str], document_id: str, position: int
) -> PromptPassage:
    contexts = collection.contexts(stored)
    return PromptPassage(
        token_ids,
        contexts,
        tuple(collection.kind(context) for context in contexts),
        DocumentRef(collection.name, document_id),
        collection.owner,
        position,
    )
