"""Count what a blend computes, against a full prefill."""

from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from kvblend.blend.selectors.lab import Computed

__all__ = ["ModelFlops"]


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of one model, a multiply and an add being two.

    Matrix products only: linear layers by token, attention by the keys that a token sees. Norms, rotations, softmax
    and the scoring of tokens are left out: no method's come to a hundredth.
    """

    qkv: int
    """A token's query, key and value projections in one layer."""
    rest: tuple[int, ...]
    """A token's output projection and MLP (of a mixture, the experts that one token uses), by layer."""
    head: int
    """One token's logits."""
    attention_per_key: int
    """One token's attention to one key, all heads."""
    windows: tuple[int | None, ...]
    """Sliding window, by layer."""

    @property
    def num_layers(self) -> int:
        return len(self.rest)

    def computed(self, computed: Computed) -> int:
        """What repairs and check layers cost; probes are not in it."""
        total = 0
        for layer in range(self.num_layers):
            going_on = computed.rows[layer + 1]
            seen_up_to = going_on
            if computed.seen_up_to is not None and len(computed.seen_up_to) == len(going_on):
                seen_up_to = computed.seen_up_to
            total += self._layer(layer, len(computed.rows[layer]), seen_up_to)
        return total

    def tokens(self, positions: Tensor) -> int:
        """Tokens at `positions` (int64 `[n]`) through all layers, each seeing every token before it."""
        keys, seen = positions + 1, 0
        for window, num_layers in Counter(self.windows).items():
            seen += num_layers * int((keys if window is None else keys.clamp(max=window)).sum())
        return len(positions) * (self.num_layers * self.qkv + sum(self.rest)) + seen * self.attention_per_key

    def full_prefill(self, positions: Tensor) -> int:
        """A whole prompt, and the logits of its last token."""
        return self.tokens(positions) + self.head

    def blend(self, computed: Computed, question_positions: Tensor) -> int:
        """Check layers, probes and repair, then the question, and the logits of its last token."""
        question = self.tokens(question_positions)
        return self.computed(computed) + (computed.num_probes + 1) * question + self.head

    def _layer(self, layer: int, num_projected: int, seen_up_to: Tensor) -> int:
        keys = seen_up_to + 1
        window = self.windows[layer]
        if window is not None:
            keys = keys.clamp(max=window)
        attention = int(keys.sum()) * self.attention_per_key
        return num_projected * self.qkv + attention + len(seen_up_to) * self.rest[layer]
