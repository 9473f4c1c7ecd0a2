"""Scratch pages: as many as there are, each one context's at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvblend.core.errors import InvalidRequestError
from kvblend.vllm_connector.engine.scratch_pages import ScratchPages


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 8), st.integers(1, 12))
def test_pages_are_one_contexts_at_a_time(lengths: list[int], page_size: int, num_pages: int) -> None:
    """What fits is given once others gave back; what never fits is refused by name of the bound, and costs nothing."""
    pages, held = ScratchPages(num_pages, page_size), list[list[int]]()
    for num_tokens in lengths:
        if num_tokens > num_pages * page_size:
            with pytest.raises(InvalidRequestError, match=f"{num_tokens} tokens is over the {num_pages * page_size} "):
                pages.reserve(num_tokens)
            continue
        while (taken := pages.reserve(num_tokens)) is None:
            pages.release(held.pop(0))
        held.append(taken)
        assert (len(taken) - 1) * page_size < num_tokens <= len(taken) * page_size
        numbers = [page for own in held for page in own]
        assert len(numbers) == len(set(numbers)) and set(numbers) <= set(range(1, num_pages + 1))
    for taken in held:
        pages.release(taken)
    assert sorted(pages.reserve(num_pages * page_size) or []) == list(range(1, num_pages + 1))
