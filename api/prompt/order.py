"""Put a prompt's passages where their KV fits, and name the KV that fits best at each place."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import islice, pairwise

from kvblend.api.engine.replicas import Replicas
from kvblend.api.kv.document_windows import LEAD_TOKENS
from kvblend.api.kv.passage_kv import KVName, PassageKV
from kvblend.api.kv.variant_name import variant_context
from kvblend.api.metrics import Metrics
from kvblend.api.prompt.blend_prompt import DocumentRef, PromptPassage
from kvblend.api.prompt.neighbours import (
    Neighbours,
    PairLedger,
    PassageVariant,
    PlannedOrder,
    Ranked,
    candidate_variants,
    plan_order,
    stored_neighbours,
)
from kvblend.api.prompt.retrieval import Retrieved
from kvblend.api.query_threads import QueryThreads
from kvblend.api.request_context import step
from kvblend.core.calibration import EncodeKind
from kvblend.core.plan import MAX_ENCODE_CONTEXTS
from kvblend.core.rest import OrderName, Reuse

__all__ = ["PromptOrder"]

MAX_PLANNED = 16
"""Passages of which every pair is looked up; of more retrieved ones, the best. What follows them is only in the way."""

Pair = tuple[str, str]


class PromptOrder:
    """Orders what was retrieved by the store's word on what fits, and counts the pairs that prompts have.

    Which variants exist the store is asked by name. Only passages of a collection's documents have any: a text that a
    caller supplies never stands in front of KV that is kept.
    """

    def __init__(
        self, replicas: Replicas, passage_kv: PassageKV, pairs: PairLedger, metrics: Metrics, threads: QueryThreads
    ) -> None:
        self._replicas, self._passage_kv, self._pairs, self._metrics = replicas, passage_kv, pairs, metrics
        self._threads = threads
        self._noting: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        await asyncio.gather(*self._noting)

    async def arrange(self, retrieved: Retrieved, order: OrderName | None, *, reuse: Reuse = "blend") -> Retrieved:
        """Order passages by the request's rule, or the collection's. Sources stay as they were retrieved, and say the
        place of each. Raises EngineUnavailableError."""
        if not retrieved.passages:
            return retrieved
        with step("kvblend.order"):
            return await self._arranged(retrieved, order or retrieved.collection.order, reuse)

    async def _arranged(self, retrieved: Retrieved, name: OrderName, reuse: Reuse) -> Retrieved:
        passages = retrieved.passages
        candidates = await self._threads.run(self._candidates, retrieved, name)
        stored = await self._stored(passages, candidates.values())
        variants = {variant for variant, kv_name in candidates.items() if kv_name in stored}
        follows = _document_pairs(retrieved)
        own = {passage.passage_id for passage in passages if passage.names[0] in stored}
        any_kv = {passage_id for _, passage_id in stored}
        planned = await self._threads.run(
            plan_order,
            [_ranked(passage, passage.passage_id in any_kv) for passage in passages],
            stored_neighbours(
                [passage.passage_id for passage in passages],
                variants,
                follows={pair for pair in follows if pair[1] in own},
            ),
            order=name,
        )
        contexts = {variant: candidates[variant][0] for variant in variants}
        arranged = _behind_best([passages[number] for number in planned.order], contexts, follows)
        if reuse == "blend":
            self._count(retrieved, arranged, follows, planned, name)
        places = {number: place for place, number in enumerate(planned.order)}
        sources = [
            source.model_copy(update={"place": places[number]}) for number, source in enumerate(retrieved.sources)
        ]
        return replace(retrieved, sources=sources, passages=arranged)

    def _candidates(self, retrieved: Retrieved, name: OrderName) -> dict[PassageVariant, KVName]:
        """The variants that a prompt in this order could use: of `fit` all pairs, of the others the neighbours."""
        passages = [passage for passage in retrieved.passages if isinstance(passage.source, DocumentRef)]
        if len(passages) < len(retrieved.passages):
            return {}
        if name == "fit":
            wanted = candidate_variants([passage.passage_id for passage in passages[:MAX_PLANNED]])
        else:
            numbers = plan_order([_ranked(passage, True) for passage in passages], Neighbours(), order=name).order
            ids = [passages[number].passage_id for number in numbers]
            wanted = [PassageVariant(before, passage) for before, passage in pairwise(["", *ids])]
        tokens = {passage.passage_id: passage.token_ids for passage in passages}
        encode_context = retrieved.collection.encode_context
        contexts = {
            before: variant_context(before, encode_context, tokens) for before in {each.before for each in wanted}
        }
        return {variant: (contexts[variant.before], variant.passage) for variant in wanted}

    async def _stored(self, passages: Sequence[PromptPassage], candidates: Iterable[KVName]) -> set[KVName]:
        """What lies near the engines of the passages' own KV and of the candidates: dozens of names, of which most are
        of nothing. What lies farther away counts as missing until its first use has brought it near."""
        _, facts = await self._replicas.choose()
        if facts.info is None:
            return set()
        names = sorted({name for passage in passages for name in passage.names}.union(candidates))
        if self._passage_kv.is_near(facts.info):
            return await self._passage_kv.nearby(facts.info, names)
        return await self._replicas.held(names)

    def _count(
        self,
        retrieved: Retrieved,
        arranged: Sequence[PromptPassage],
        follows: set[Pair],
        planned: PlannedOrder,
        name: OrderName,
    ) -> None:
        for passage, standing in zip(arranged, planned.standings, strict=True):
            self._metrics.standing(standing, len(passage.token_ids))
        if any(not isinstance(passage.source, DocumentRef) for passage in arranged):
            return
        served = [passage.passage_id for passage in arranged]
        together = [passage.passage_id for passage in retrieved.passages[:MAX_PLANNED]] if name == "fit" else []
        task = asyncio.create_task(
            asyncio.to_thread(self._pairs.note, retrieved.collection.name, served, together, known=follows),
            name="kvblend pairs",
        )
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)


def _ranked(passage: PromptPassage, is_stored: bool) -> Ranked:
    document = None
    if isinstance(passage.source, DocumentRef) and passage.position is not None:
        document = passage.source.document_id, passage.position
    return Ranked(len(passage.token_ids), is_stored, document)


def _document_pairs(retrieved: Retrieved) -> set[Pair]:
    """Pairs of passages that follow each other in a document, by whose text the second one's own KV was made."""
    if retrieved.collection.window_tokens is None:
        return set()
    neutral = retrieved.collection.encode_context.hash
    return {
        (before.passage_id, passage.passage_id)
        for before in retrieved.passages
        for passage in retrieved.passages
        if before.source == passage.source
        and before.position is not None
        and passage.position == before.position + 1
        and len(before.token_ids) <= LEAD_TOKENS  # at a window's beginning no more of it was in front
        and passage.encode_contexts[0] != neutral
    }


def _behind_best(
    passages: Sequence[PromptPassage], contexts: Mapping[PassageVariant, str], follows: Set[Pair]
) -> list[PromptPassage]:
    """The passages, each with the encode contexts of its stored variants: the one that fits its place first, the others
    behind its own. What fits is of that kind, to be repaired the less."""
    found, before = [], ""
    for passage in passages:
        own = dict(zip(passage.encode_contexts, passage.kinds, strict=True))
        if (before, passage.passage_id) in follows:
            own[passage.encode_contexts[0]] = "fits"
        known: dict[str, EncodeKind] = {}
        here = contexts.get(PassageVariant(before, passage.passage_id))
        if here is not None:
            # behind the collection's preamble alone it is exact, which the engine sees, or behind another one, and no
            # nearer than what else the passage has
            known[here] = "fits" if before else passage.kinds[0]
        for context, kind in own.items():
            known.setdefault(context, kind)
        for variant, context in sorted(contexts.items()):
            if variant.passage == passage.passage_id:
                known.setdefault(context, "neutral")  # behind a text that is as foreign here as the neutral one
        chosen = dict(islice(known.items(), MAX_ENCODE_CONTEXTS))
        found.append(replace(passage, encode_contexts=tuple(chosen), kinds=tuple(chosen.values())))
        before = passage.passage_id
    return found
