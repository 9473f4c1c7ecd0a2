"""The two forwards of a blend, each over several requests at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.blend.context_kv import ContextBatch, ContextKV
from kvblend.blend.model import Attend, BlendModel

__all__ = ["BeforeLayer", "Rows", "loading", "probe", "repair", "rows_batch"]

BeforeLayer = Callable[[int], object]
"""Called with a layer's index when a pass reaches the layer, before it reads the layer's KV: where loading goes."""


@dataclass(frozen=True)
class Rows:
    """Tokens of one request in a batched forward: `token_ids` at strictly increasing `positions`, int64 `[n]`."""

    context: ContextKV
    token_ids: Tensor
    positions: Tensor


def probe(model: BlendModel, batch: Sequence[Rows], *, before_layer: BeforeLayer | None = None) -> list[Tensor]:
    """Score every context token by the attention that the question's tokens give it.

    `batch` holds each request's question tokens, at positions behind its context. Returns, by request, attention weight
    times value norm, averaged over question tokens and query heads and summed over layers and KV heads: fp32
    `[num_context_tokens]`, the same on every tensor-parallel rank. The context is only read.
    """
    contexts = rows_batch(batch)
    _forward(model, batch, contexts.positions, contexts.probe, before_layer)
    scores = torch.split(model.reduce_scores(contexts.scores()), list(contexts.num_context_tokens))
    return [own / len(rows.positions) for rows, own in zip(batch, scores, strict=True)]


def repair(model: BlendModel, batch: Sequence[Rows], *, before_layer: BeforeLayer | None = None) -> None:
    """Recompute the keys and values of the batch's tokens, each attending to its whole context up to itself.

    A request's tokens may be repaired in several calls, by ascending position: a token never sees one behind it, so
    the result is that of one call.
    """
    contexts = rows_batch(batch)
    _forward(model, batch, contexts.positions, contexts.attend, before_layer)


def rows_batch(batch: Sequence[Rows]) -> ContextBatch:
    """The batch's contexts, to be asked together; all are of one kind."""
    kind = type(batch[0].context)
    assert all(type(rows.context) is kind for rows in batch)
    return kind.batch([rows.context for rows in batch], [rows.positions for rows in batch])


def loading(attend: Attend, before_layer: BeforeLayer | None) -> Attend:
    """`attend`, with `before_layer` called in front of each layer."""
    if before_layer is None:
        return attend

    def attend_loaded(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before_layer(layer)
        return attend(layer, q, k, v)

    return attend_loaded


def _forward(
    model: BlendModel, batch: Sequence[Rows], positions: Tensor, attend: Attend, before_layer: BeforeLayer | None
) -> None:
    token_ids = torch.cat([rows.token_ids for rows in batch]).to(positions.device)
    model.forward(token_ids, positions, loading(attend, before_layer))
