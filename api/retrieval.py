"""Find the passages of a prompt: retrieved from a collection, or supplied by the caller."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from kvblend.api.blend_prompt import PromptPassage
from kvblend.api.collections import Collections, OpenCollection
from kvblend.api.prompt import Frame, PromptBuilder
from kvblend.core.identity import token_hash
from kvblend.core.rest import BlendOptions, Source, SuppliedDocument
from kvblend.retriever import Retriever

__all__ = ["Retrieval", "Retrieved"]

DEFAULT_TOP_K = 8


@dataclass(frozen=True)
class Retrieved:
    """Passages for a prompt, and the collection whose preamble it begins with."""

    collection: OpenCollection
    sources: list[Source]
    passages: list[PromptPassage]

    def frame(self, rendered: Frame) -> Frame:
        """The rendered frame with the collection's own preamble tokens, which are those that its KV was made behind."""
        return Frame(self.collection.encode_context.preamble_ids, rendered.question_ids)


class Retrieval:
    """Retrieves in threads: embedding, searching and tokenizing block."""

    def __init__(self, retriever: Retriever, collections: Collections, prompts: PromptBuilder) -> None:
        self._retriever = retriever
        self._collections = collections
        self._prompts = prompts

    async def search(self, collection: str, query: str, *, top_k: int = DEFAULT_TOP_K) -> Retrieved:
        """The passages of a collection nearest to the query, best first. Raises NotFoundError, ConflictError."""
        return await asyncio.to_thread(self._search, collection, query, top_k)

    async def context(self, options: BlendOptions, *, query: str) -> Retrieved:
        """The documents that a caller supplied, as passages; where there are none, what its collection has."""
        if not options.documents and options.collection is not None:
            return await self.search(options.collection, query)
        return await asyncio.to_thread(self._supplied, options.documents, options.collection)

    def _search(self, name: str, query: str, top_k: int) -> Retrieved:
        collection = self._collections.open(name)
        hits = self._retriever.search(name, query, top_k=top_k)
        sources = [
            Source(
                document_id=hit.document_id,
                document_name=hit.document_name,
                passage_id=hit.passage_id,
                text=hit.text,
                score=hit.score,
                metadata=hit.metadata,
            )
            for hit in hits
        ]
        passages = [PromptPassage(tuple(hit.token_ids), collection.encode_context, collection.owner) for hit in hits]
        return Retrieved(collection, sources, passages)

    def _supplied(self, documents: Sequence[SuppliedDocument | str], name: str | None) -> Retrieved:
        collection = self._collections.default if name is None else self._collections.open(name)
        sources, passages = [], []
        for item in documents:
            document = SuppliedDocument(text=item) if isinstance(item, str) else item
            token_ids = self._prompts.passage_ids(document.text)
            passages.append(PromptPassage(token_ids, collection.encode_context))
            sources.append(
                Source(
                    document_id=document.id,
                    passage_id=token_hash(token_ids),
                    text=document.text,
                    metadata=document.metadata,
                )
            )
        return Retrieved(collection, sources, passages)
