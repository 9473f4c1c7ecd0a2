"""Salted block hashes on vLLM's own request and hasher."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from kvblend.vllm_connector.scheduler.block_hashes import SaltedHashes

BLOCK = 4


@pytest.fixture(scope="module", autouse=True)
def _hash_seed() -> None:
    init_none_hash(sha256)


def make_request(num_tokens: int) -> Any:
    params = SamplingParams(max_tokens=64)
    hasher = get_request_block_hasher(BLOCK, sha256)
    return Request("request", list(range(num_tokens)), params, None, block_hasher=hasher)


@given(num_tokens=st.integers(1, 40), start=st.integers(0, 12), generated=st.integers(0, 20))
def test_only_blocks_before_the_start_keep_their_hash(num_tokens: int, start: int, generated: int) -> None:
    """Prompt blocks and blocks that generation fills: exact before `start`, unlike any exact hash from there on."""
    plain, blended = make_request(num_tokens), make_request(num_tokens)
    SaltedHashes(blended, b"plan").apply(start)
    for token in range(generated):
        plain.append_output_token_ids(token)
        blended.append_output_token_ids(token)
    assert len(blended.block_hashes) == len(plain.block_hashes)
    assert blended.block_hashes[:start] == plain.block_hashes[:start]
    assert not set(blended.block_hashes[start:]) & set(plain.block_hashes)


@given(num_tokens=st.integers(8, 40), first=st.integers(1, 9), second=st.integers(0, 8))
def test_the_salt_can_begin_earlier_later(num_tokens: int, first: int, second: int) -> None:
    """As after a preemption: the second start counts as if it had been the first."""
    moved, direct = make_request(num_tokens), make_request(num_tokens)
    hashes = SaltedHashes(moved, b"plan")
    hashes.apply(first)
    hashes.apply(second)
    SaltedHashes(direct, b"plan").apply(second)
    assert moved.block_hashes == direct.block_hashes


def test_other_plans_have_other_hashes() -> None:
    """Two salts share no block from the start on."""
    one, other = make_request(24), make_request(24)
    SaltedHashes(one, b"plan").apply(2)
    SaltedHashes(other, b"another").apply(2)
    assert one.block_hashes[:2] == other.block_hashes[:2]
    assert not set(one.block_hashes[2:]) & set(other.block_hashes[2:])


@given(num_tokens=st.integers(1, 40), start=st.integers(0, 12), generated=st.integers(0, 20))
def test_a_request_that_its_own_salt_sets_apart_is_left_alone(num_tokens: int, start: int, generated: int) -> None:
    request, untouched = make_request(num_tokens), make_request(num_tokens)
    hashes = SaltedHashes(request, None)
    hashes.apply(start)
    assert hashes.are_apart and hashes.start == 0 and not hashes.lift()
    for token in range(generated):
        request.append_output_token_ids(token)
        untouched.append_output_token_ids(token)
    assert request.block_hashes == untouched.block_hashes
