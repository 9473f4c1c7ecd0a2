"""Select the tokens that looked outside their passage when its KV was computed.

Cache-Craft: arXiv 2502.15734, section 3. Attention is kept with a chunk when it is cached: what its tokens give to the
chunks before it (inter) and what they give each other (intra). From these follow how much the chunk depends on
what stood before it, CCI = 1 / (1 + exp(-a / b)) with a and b inter and intra by pair of tokens, and which part of the
inter attention went to text that stands before it again, beta. A chunk gets CCI * (1 - beta) * alpha of its tokens
recomputed, those of most inter attention.

Simplified: alpha is such that all chunks together get the recompute ratio; attention is averaged over layers and heads;
the order of chunks that are there again costs nothing; no layer ends repair early. The lab's encode has of a chunk's
variants the one that shares most with the prompt. What the paper keeps from ingest is computed anew here and not
counted as work.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvblend.blend.attention import mean_attention_weights
from kvblend.blend.dense_context import DenseContextKV
from kvblend.blend.selectors import Computed, LabPrompt, highest, num_selected

__all__ = ["SELECTORS", "CacheCraftSelector"]


@dataclass(frozen=True)
class CacheCraftSelector:
    """Of each passage as many tokens as it depends on text that is gone, those that looked at it most."""

    def blend(self, prompt: LabPrompt, *, recompute_ratio: float) -> Computed:
        candidates = prompt.candidates
        budget = num_selected(len(candidates), recompute_ratio)
        scores, wanted = [], []
        for (start, end), encode_context in zip(prompt.passages, prompt.encode_contexts, strict=True):
            inter, dependence = self._looked_outside(prompt, encode_context, start, end)
            scores.append(inter)
            wanted.append(dependence * (end - start))
        counts = _shares(budget, wanted, [end - start for start, end in prompt.passages])
        selected = [
            highest(torch.arange(start, end, device=candidates.device), inter, count)
            for (start, end), inter, count in zip(prompt.passages, scores, counts, strict=True)
        ]
        return prompt.repair(torch.cat(selected) if selected else candidates)

    def _looked_outside(
        self, prompt: LabPrompt, encode_context: tuple[int, ...], start: int, end: int
    ) -> tuple[Tensor, float]:
        """Each token's attention to what stood before the passage, fp32 `[end - start]`, and CCI * (1 - beta).

        What the encode context and the prompt have in common from the beginning, the preamble, is no chunk.
        """
        now = prompt.token_ids[:start].tolist()
        same = 0
        while same < min(len(encode_context), start) and encode_context[same] == now[same]:
            same += 1
        before, length = len(encode_context), end - start
        weights = _attention_when_encoded(prompt, encode_context, start, end)
        inter, intra = weights[:, same:before], weights[:, before:]
        if not inter.numel():
            return inter.new_zeros(length), 0.0
        a = float(inter.sum()) / inter.numel()
        b = float(intra.sum()) / length**2
        again = torch.tensor(_found_again(encode_context[same:], now), device=inter.device)
        beta = float(inter[:, again].sum() / inter.sum())
        return inter.sum(1), (1 - beta) / (1 + math.exp(-a / b))


SELECTORS = {"cachecraft": CacheCraftSelector()}


def _attention_when_encoded(prompt: LabPrompt, encode_context: tuple[int, ...], start: int, end: int) -> Tensor:
    """A passage's attention to its encode context and to itself, fp32 `[passage token, token]`."""
    tokens = torch.cat((torch.tensor(encode_context, dtype=torch.int64), prompt.token_ids[start:end].cpu()))
    positions = torch.arange(len(tokens), device=prompt.token_ids.device)
    specs, kv = prompt.whole.specs, prompt.whole.data
    data = kv.new_zeros(kv.shape[0], 2, len(tokens), *kv.shape[3:])
    context = DenseContextKV(specs, data, torch.ones(len(tokens), dtype=torch.bool, device=data.device))
    own = positions[len(encode_context) :]
    total = torch.zeros(len(own), len(tokens), device=data.device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        nonlocal total
        context.write(layer, positions, k, v)
        total = total + mean_attention_weights(specs[layer], q[len(encode_context) :], k, own, positions)
        return context.attend(layer, q, positions)

    prompt.model.forward(tokens.to(data.device), positions, attend)
    return total / len(specs)


def _found_again(text: tuple[int, ...], now: list[int], *, run: int = 16) -> list[bool]:
    """Which of a text's tokens lie in a run of 16 tokens that the prompt has too."""
    runs = {tuple(now[begin : begin + run]) for begin in range(len(now) - run + 1)}
    found = [False] * len(text)
    for begin in range(len(text) - run + 1):
        if text[begin : begin + run] in runs:
            found[begin : begin + run] = [True] * run
    return found


def _shares(budget: int, wanted: list[float], lengths: list[int]) -> list[int]:
    """Share out `budget` tokens by what passages want, none more than its length; by length where none wants any."""
    counts = [0] * len(lengths)
    left = min(budget, sum(lengths))
    while left:
        open_ones = [index for index, length in enumerate(lengths) if counts[index] < length]
        weights = [wanted[index] for index in open_ones]
        if sum(weights) <= 0:
            weights = [float(lengths[index] - counts[index]) for index in open_ones]
        given = 0
        for index, weight in zip(open_ones, weights, strict=True):
            share = min(lengths[index] - counts[index], int(left * weight / sum(weights)))
            counts[index] += share
            given += share
        if not given:  # less than a token each: the one that wants the most
            counts[open_ones[weights.index(max(weights))]] += 1
            given = 1
        left -= given
    return counts
