"""Preamble and warm context fill whole vLLM blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.api.kv.encode_context import default_warm_context, make_encode_context
from kvblend.core.identity import token_hash

NUM_WARM = 900


@pytest.mark.parametrize(
    ("num_preamble", "total"), [(1, 256), (40, 256), (128, 256), (129, 512), (384, 512), (385, 768)]
)
def test_the_total_is_a_multiple_of_256_with_room_for_warm_tokens(num_preamble: int, total: int) -> None:
    context = make_encode_context(range(num_preamble), range(1000, 1000 + NUM_WARM))
    assert len(context.token_ids) == total
    assert context.preamble_ids == tuple(range(num_preamble))


def test_without_a_warm_context_it_is_the_preamble() -> None:
    context = make_encode_context([1, 2, 3], [])
    assert context.token_ids == context.preamble_ids == (1, 2, 3)
    assert context.hash == token_hash([1, 2, 3])


@given(num_preamble=st.integers(1, 1200), num_warm=st.integers(0, 1200))
def test_it_is_the_preamble_and_the_end_of_the_warm_context(num_preamble: int, num_warm: int) -> None:
    tokens = tuple(range(num_preamble + num_warm))
    context = make_encode_context(tokens[:num_preamble], tokens[num_preamble:])
    num_total = len(context.token_ids)
    assert context.preamble_ids == tokens[:num_preamble]
    assert context.token_ids[num_preamble:] == tokens[num_preamble + len(tokens) - num_total :]
    assert num_total >= num_preamble
    assert num_total % 256 == 0 or num_total == len(tokens)


def test_the_default_warm_context_is_long_enough() -> None:
    assert len(default_warm_context().split()) > 600
