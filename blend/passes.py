"""The two forwards of a blend, each over several requests at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.blend.context_kv import ContextKV
from kvblend.blend.model import Attend, BlendModel

__all__ = ["Rows", "probe", "repair"]


@dataclass(frozen=True)
class Rows:
    """Tokens of one request in a batched forward: `token_ids` at strictly increasing `positions`, int64 `[n]`."""

    context: ContextKV
    token_ids: Tensor
    positions: Tensor


def _slices(batch: Sequence[Rows]) -> list[tuple[Rows, slice]]:
    slices, start = [], 0
    for rows in batch:
        end = start + len(rows.positions)
        slices.append((rows, slice(start, end)))
        start = end
    return slices


def probe(model: BlendModel, batch: Sequence[Rows]) -> list[Tensor]:
    """Score every context token by the attention that the question's tokens give it.

    `batch` holds each request's question tokens, at positions behind its context. Returns, by request, attention weight
    times value norm, averaged over question tokens and query heads and summed over layers and KV heads: fp32
    `[num_context_tokens]`, the same on every tensor-parallel rank. The context is only read.
    """
    slices = _slices(batch)
    totals: list[Tensor | None] = [None] * len(batch)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        for index, (rows, part) in enumerate(slices):
            out[part], scores = rows.context.probe(layer, q[part], k[part], v[part], rows.positions)
            total = totals[index]
            totals[index] = scores if total is None else total + scores
        return out

    _forward(model, batch, attend)
    return [
        model.reduce_scores(total) / len(rows.positions)
        for rows, total in zip(batch, totals, strict=True)
        if total is not None
    ]


def repair(model: BlendModel, batch: Sequence[Rows]) -> None:
    """Recompute the keys and values of the batch's tokens, each attending to its whole context up to itself.

    A request's tokens may be repaired in several calls, by ascending position: a token never sees one behind it, so
    the result is that of one call.
    """
    slices = _slices(batch)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        for rows, part in slices:
            rows.context.write(layer, rows.positions, k[part], v[part])
            out[part] = rows.context.attend(layer, q[part], rows.positions)
        return out

    _forward(model, batch, attend)


def _forward(model: BlendModel, batch: Sequence[Rows], attend: Attend) -> None:
    token_ids = torch.cat([rows.token_ids for rows in batch])
    positions = torch.cat([rows.positions for rows in batch])
    model.forward(token_ids, positions, attend)
