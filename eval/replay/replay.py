"""A trace served from a bounded store, request by request; nothing is computed, all else is the service's own code."""

from collections.abc import Iterator
from dataclasses import dataclass

from kvblend.api.prompt.neighbours import (
    OrderName,
    PairCounts,
    PassageVariant,
    PlannedOrder,
    Ranked,
    Standing,
    candidate_variants,
    plan_order,
    stored_neighbours,
)
from kvblend.core.settings import EvictionName
from kvblend.eval.replay.corpus import ReplayCorpus, ReplayPassage
from kvblend.eval.trace import Trace
from kvblend.store.eviction import MemoryIndex, policy_of

__all__ = ["Replay", "ReplaySettings", "Served"]

BYTES_A_TOKEN = 128 << 10
"""Of an 8B model in bfloat16; another number changes no share."""

KVKey = str | PassageVariant
"""A passage's KV behind its own document, by its id, or a variant."""


@dataclass(frozen=True)
class ReplaySettings:
    """How a trace is served.

    `capacity`: the store's bytes, as a share of those of all passages that the trace asks for. `variants_share`: what
    of it variants may take. While the engine is idle, `encodes_per_request` of them are encoded, every `look_every`
    requests.
    """

    capacity: float
    order: OrderName = "fit"
    free: bool = False
    variants_share: float = 0.1
    eviction: EvictionName = "s3-fifo"
    encodes_per_request: float = 2.0
    look_every: int = 50


@dataclass(frozen=True)
class Served:
    """One request: its passages as they stand in the prompt, how the KV of each suits its place, and which it is."""

    passages: tuple[ReplayPassage, ...]
    standings: tuple[Standing, ...]
    used: tuple[KVKey | None, ...]
    num_encodes: int
    """Of variants, behind this request."""
    variants_ratio: float
    """Of the store's bytes, those of variants then."""

    def num_tokens(self, *standings: Standing) -> int:
        """Tokens of the passages that stand in one of these ways; of all where none is named."""
        placed = zip(self.passages, self.standings, strict=True)
        return sum(passage.num_tokens for passage, standing in placed if not standings or standing in standings)


class Replay:
    """Serves each request from what is stored, stores what it missed, and encodes the most valuable variants.

    The store is empty at first: no ingest went before.
    """

    def __init__(self, trace: Trace, corpus: ReplayCorpus, settings: ReplaySettings) -> None:
        self._trace, self._corpus, self._settings = trace, corpus, settings
        asked = {number for request in trace.requests for number in request}
        passages = [corpus.passages[number] for number in sorted(asked)]
        self._num_tokens = {passage.id: passage.num_tokens for passage in passages}
        self._budget_bytes = round(settings.capacity * BYTES_A_TOKEN * sum(self._num_tokens.values()))
        self._index: MemoryIndex[KVKey] = MemoryIndex(policy_of(settings.eviction))
        self._variant_bytes = 0
        self._counts = PairCounts()

    def run(self) -> Iterator[Served]:
        """Serve the trace."""
        settings = self._settings
        for count, request in enumerate(self._trace.requests, start=1):
            passages = [self._corpus.passages[number] for number in dict.fromkeys(request)]
            planned, used = self._plan(passages)
            for passage, key in zip((passages[number] for number in planned.order), used, strict=True):
                if key is None:
                    self._put(passage.id)
                else:
                    self._index.use(key)
            self._note(passages, planned)
            is_due = settings.variants_share > 0 and count % settings.look_every == 0
            yield Served(
                tuple(passages[number] for number in planned.order),
                planned.standings,
                tuple(used),
                self._encode(round(settings.encodes_per_request * settings.look_every)) if is_due else 0,
                self._variant_bytes / self._budget_bytes,
            )

    def _plan(self, passages: list[ReplayPassage]) -> tuple[PlannedOrder, list[KVKey | None]]:
        """The order, and of each place the KV that is used there."""
        ids = [passage.id for passage in passages]
        own = {passage_id for passage_id in ids if passage_id in self._index}
        variants = {variant for variant in candidate_variants(ids) if variant in self._index}
        others = {variant.passage: variant for variant in sorted(variants, reverse=True)}
        follows = {(a.id, b.id) for a in passages for b in passages if b.id in own and b.follows(a)}
        planned = plan_order(
            [Ranked(passage.num_tokens, passage.id in own or passage.id in others) for passage in passages],
            stored_neighbours(ids, variants, follows=follows),
            order=self._settings.order,
            free=self._settings.free,
        )
        used: list[KVKey | None] = []
        before = ""
        for number in planned.order:
            passage_id = ids[number]
            behind = PassageVariant(before, passage_id)
            used.append(behind if behind in variants else passage_id if passage_id in own else others.get(passage_id))
            before = passage_id
        return planned, used

    def _note(self, passages: list[ReplayPassage], planned: PlannedOrder) -> None:
        """Count the pairs; those that only another order could use are of no use to prompts as retrieved."""
        ids = [passage.id for passage in passages]
        known = {(a.id, b.id) for a in passages for b in passages if b.follows(a)}
        retrieved = [] if self._settings.order == "rank" else ids
        self._counts.note([ids[number] for number in planned.order], retrieved, known=known)

    def _encode(self, most: int) -> int:
        """Encode variants that are worth it, `most` requests at most; returns how many."""
        wanted = self._counts.most_valuable(
            round(self._settings.variants_share * self._budget_bytes),
            num_tokens=self._num_tokens.get,
            token_bytes=BYTES_A_TOKEN,
        )
        also, num_encodes = set(wanted), 0
        for variant in wanted:
            if num_encodes == most:
                break
            if variant not in self._index:
                num_encodes += 1
                first = PassageVariant("", variant.before)
                for each in (first, variant) if first in also and first not in self._index else (variant,):
                    self._put(each)  # one request keeps both passages of a pair
        return num_encodes

    def _put(self, key: KVKey) -> None:
        num_tokens = self._num_tokens[key if isinstance(key, str) else key.passage]
        num_bytes = num_tokens * BYTES_A_TOKEN
        if num_bytes > self._budget_bytes:
            return
        for gone in self._index.evict(max(0, self._index.used_bytes + num_bytes - self._budget_bytes)):
            if isinstance(gone, PassageVariant):
                self._variant_bytes -= self._num_tokens[gone.passage] * BYTES_A_TOKEN
        self._index.put(key, num_bytes, cost=num_tokens)
        if isinstance(key, PassageVariant):
            self._variant_bytes += num_bytes
