"""Scattered tokens as sequences of vLLM's own attention."""

from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from kvblend.vllm_connector.engine.attention import MIN_RUN, sequence_lengths


@given(st.sets(st.integers(0, 60), min_size=1))
def test_sequences(chosen: set[int]) -> None:
    """They follow one another, hold neighbours alone, and none could be longer but those that are too short."""
    positions = sorted(chosen)
    lengths = sequence_lengths(tensor(positions)).tolist()
    assert sum(lengths) == len(positions)
    first, sequences = 0, []
    for length in lengths:
        sequences.append(positions[first : first + length])
        first += length
    for sequence in sequences:
        assert sequence == list(range(sequence[0], sequence[0] + len(sequence)))
        if len(sequence) > 1:
            assert len(sequence) >= MIN_RUN
            assert sequence[0] - 1 not in chosen and sequence[-1] + 1 not in chosen
        else:
            assert 1 + len(neighbours(chosen, sequence[0], 1)) + len(neighbours(chosen, sequence[0], -1)) < MIN_RUN


def neighbours(chosen: set[int], start: int, step: int) -> list[int]:
    """Those that follow `start` in one direction without a gap."""
    found = []
    while start + step in chosen:
        start += step
        found.append(start)
    return found
