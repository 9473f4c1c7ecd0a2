"""The two forwards of a blend, each over several requests at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.blend.context_kv import ContextBatch, ContextKV
from kvblend.blend.model import BlendModel

__all__ = ["Pass", "Rows", "probe", "repair"]


@dataclass(frozen=True)
class Rows:
    """Tokens of one request in a batched forward: `token_ids` at strictly increasing `positions`, int64 `[n]`."""

    context: ContextKV
    token_ids: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Pass:
    """Rows of several requests, ready for a forward: `token_ids` int64 `[num_rows]` where the contexts are."""

    contexts: ContextBatch
    token_ids: Tensor
    num_rows: tuple[int, ...]
    """Of each request."""

    @classmethod
    def of(cls, batch: Sequence[Rows]) -> "Pass":
        """Of contexts that are all of one kind. Raises as the kind's `batch`."""
        kind = type(batch[0].context)
        assert all(type(rows.context) is kind for rows in batch)
        contexts = kind.batch([rows.context for rows in batch], [rows.positions for rows in batch])
        token_ids = torch.cat([rows.token_ids for rows in batch]).to(contexts.positions.device)
        return cls(contexts, token_ids, tuple(len(rows.positions) for rows in batch))

    def probe(self, model: BlendModel) -> list[Tensor]:
        """As `probe`, of this pass's rows."""
        model.forward(self.token_ids, self.contexts.positions, self.contexts.probe)
        scores = torch.split(model.reduce_scores(self.contexts.scores()), list(self.contexts.num_context_tokens))
        return [own / num_rows for own, num_rows in zip(scores, self.num_rows, strict=True)]

    def repair(self, model: BlendModel) -> None:
        """As `repair`, of this pass's rows."""
        model.forward(self.token_ids, self.contexts.positions, self.contexts.attend)


def probe(model: BlendModel, batch: Sequence[Rows]) -> list[Tensor]:
    """Score every context token by the attention that the question's tokens give it.

    `batch` holds each request's question tokens, at positions behind its context. Returns, by request, attention weight
    times value norm, averaged over question tokens and query heads and summed over layers and KV heads: fp32
    `[num_context_tokens]`, the same on every tensor-parallel rank. The context is only read.
    """
    return Pass.of(batch).probe(model)


def repair(model: BlendModel, batch: Sequence[Rows]) -> None:
    """Recompute the keys and values of the batch's tokens, each attending to its whole context up to itself.

    A request's tokens may be repaired in several calls, by ascending position: a token never sees one behind it, so
    the result is that of one call. Called again with the same tokens, it gives the same.
    """
    Pass.of(batch).repair(model)
