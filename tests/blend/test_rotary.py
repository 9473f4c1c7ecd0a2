"""Moving keys against rotating them at the new position to begin with."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvblend.blend.rotary import RotaryTable, rerotate

MAX_POSITIONS = 4096


def rotated(keys: torch.Tensor, position: int, rotary_dim: int, magnitude: float, interleaved: bool) -> torch.Tensor:
    """Reference: RoPE by its definition, in fp64, on tokens that all sit at `position`."""
    frequencies = 10000.0 ** (-torch.arange(0, rotary_dim, 2).double() / rotary_dim)
    turn = torch.polar(torch.full_like(frequencies, magnitude), position * frequencies)
    part, rest = keys[..., :rotary_dim].double(), keys[..., rotary_dim:].double()
    pairs = part.view(*part.shape[:-1], -1, 2) if interleaved else torch.stack(part.chunk(2, -1), -1)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    return torch.cat((turned.flatten(-2) if interleaved else torch.cat((turned[..., 0], turned[..., 1]), -1), rest), -1)


@settings(deadline=None, max_examples=40)
@given(
    source=st.integers(0, MAX_POSITIONS - 1),
    target=st.integers(0, MAX_POSITIONS - 1),
    rotary_dim=st.sampled_from([16, 32]),
    magnitude=st.sampled_from([1.0, 1.1386]),
    interleaved=st.booleans(),
)
def test_rerotate(source: int, target: int, rotary_dim: int, magnitude: float, interleaved: bool) -> None:
    """Any move, partial rotary, YaRN's magnitude not applied twice."""
    torch.manual_seed(1)
    raw = torch.randn(5, 2, 32)
    angles = torch.arange(MAX_POSITIONS).double()[:, None] * 10000.0 ** (
        -torch.arange(0, rotary_dim, 2).double() / rotary_dim
    )
    cache = (torch.cat((angles.cos(), angles.sin()), -1) * magnitude).float()
    table = RotaryTable.from_cache(cache, interleaved=interleaved)
    before = rotated(raw, source, rotary_dim, magnitude, interleaved).float()
    after = rotated(raw, target, rotary_dim, magnitude, interleaved)
    torch.testing.assert_close(rerotate(before, table, delta=target - source).double(), after, atol=1e-5, rtol=1e-5)
