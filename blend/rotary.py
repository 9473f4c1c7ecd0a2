"""Move cached keys to new RoPE positions.

A rotary embedding turns pair i of a key at position p by the angle p * f_i (and may scale it by a constant m). Moving
a key from p to p' is turning it by (p' - p) * f_i: exact for every kind of RoPE whose frequencies do not depend on the
prompt's length (default, linear, llama3, YaRN, partial), and m, already in the key, is not applied again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RotaryTable", "rerotate", "rerotate_into", "rerotate_layers", "rotation_tolerance"]


@dataclass(frozen=True)
class RotaryTable:
    """cos and sin of position times frequency, fp32 `[num_positions, rotary_dim / 2]`, without magnitude scale."""

    cos: Tensor
    sin: Tensor
    interleaved: bool
    """Whether pairs are neighbours (GPT-J) or halves apart (neox)."""

    @classmethod
    def from_cache(cls, cos_sin: Tensor, *, interleaved: bool) -> "RotaryTable":
        """Of a `[num_positions, rotary_dim]` cache, cosines first, perhaps scaled by a magnitude, which
        position 0 shows and which is divided out."""
        cos, sin = cos_sin.float().chunk(2, dim=-1)
        magnitude = cos[:1]
        return cls((cos / magnitude).contiguous(), (sin / magnitude).contiguous(), interleaved)

    def angles(self, delta: int) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32 `[rotary_dim / 2]`, of moving a key by `delta` positions, of any sign.

        Raises IndexError where |delta| is beyond the table.
        """
        cos, sin = self.cos[abs(delta)], self.sin[abs(delta)]
        return cos, sin if delta >= 0 else -sin

    def pairs(self, turned: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of each pair in `[..., rotary_dim]`: views `[..., rotary_dim / 2]`."""
        if self.interleaved:
            return turned[..., 0::2], turned[..., 1::2]
        first, second = turned.chunk(2, dim=-1)
        return first, second


def rerotate(keys: Tensor, table: RotaryTable, *, delta: int) -> Tensor:
    """Turn `keys` `[..., num_tokens, kv_heads, head_dim]` by `delta` positions (any sign).

    Computed in fp32, returned in the keys' dtype; dimensions beyond rotary_dim pass through.
    Raises IndexError where |delta| is beyond the table.
    """
    return keys if delta == 0 else rerotate_into(keys, table, delta=delta, out=torch.empty_like(keys))


def rerotate_into(keys: Tensor, table: RotaryTable, *, delta: int, out: Tensor) -> Tensor:
    """As `rerotate`, to `out`, which is like `keys` and shares no memory with it; returns `out`."""
    if delta == 0:
        return out.copy_(keys)
    cos, sin = table.angles(delta)
    rotary_dim = 2 * cos.shape[-1]
    turned = keys[..., :rotary_dim].float()
    result = torch.empty_like(turned)
    (first, second), (to_first, to_second) = table.pairs(turned), table.pairs(result)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    out[..., :rotary_dim] = result
    out[..., rotary_dim:] = keys[..., rotary_dim:]
    return out


def rerotate_layers(kv: Tensor, tables: Sequence[RotaryTable | None], *, delta: int) -> None:
    """Move passage KV `[layer, k|v, token, kv_head, head_dim]` by `delta` positions, in place.

    `tables`: each layer's, None where it does not rotate. Neighbouring layers of one table are turned together.
    """
    start = 0
    for layer in range(1, len(tables) + 1):
        table = tables[start]
        if layer < len(tables) and tables[layer] is table:
            continue
        if table is not None:
            kv[start:layer, 0] = rerotate(kv[start:layer, 0], table, delta=delta)
        start = layer


def rotation_tolerance(dtype: torch.dtype) -> float:
    """How far, relative to their norm, keys that were moved may be from keys computed where they went."""
    return 1e-3 if dtype == torch.float32 else 5e-2
