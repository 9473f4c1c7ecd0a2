"""The comparison of eviction policies: what the replay counts, on requests that can be worked out by hand."""

from pathlib import Path

import pytest

from kvblend.eval.bench.eviction_bound import hits_with_foresight
from kvblend.eval.bench.eviction_replay import Hits, ReplayedTier
from kvblend.eval.bench.store_eviction import CAPACITIES, eviction_rows
from kvblend.eval.trace import zipf_trace
from kvblend.store.eviction import LRU, POLICY_NAMES

RAGPULSE = Path(__file__).parents[2].parent / "shared" / "data" / "ragpulse_trace.jsonl.gz"

NUM_BYTES = {1: 10, 2: 10, 3: 10, 4: 100}


def test_replay_counts_passages_and_bytes() -> None:
    """Of a tier for two small passages: 1 and 2 are found again, 3 drives out 1, and 4 fits nowhere."""
    tier = ReplayedTier(LRU(), budget_bytes=20)
    assert tier.ask([1, 2, 1, 2], NUM_BYTES) == Hits(num_asked=4, num_found=2, bytes_asked=40, bytes_found=20)
    assert tier.ask([4, 3, 2, 1], NUM_BYTES) == Hits(num_asked=4, num_found=1, bytes_asked=130, bytes_found=10)
    tier.put(2, 10)
    assert tier.ask([1, 2], NUM_BYTES).hit_rate == 1.0


def test_foresight_keeps_what_is_needed_next() -> None:
    """Asked for 1 2 3 1 2 3 in turn, a tier for two keeps 1 and 2 and lets 3 pass; LRU never finds any."""
    asked = [1, 2, 3] * 4
    found = sum(hits_with_foresight(asked, NUM_BYTES, budget_bytes=20), Hits())
    assert (found.num_asked, found.num_found) == (12, 6)
    assert ReplayedTier(LRU(), 20).ask(asked, NUM_BYTES).num_found == 0


def test_rows_of_the_zipf_trace() -> None:
    """Each policy at each capacity; more room never hits less, and none hits more than foresight does."""
    rows = eviction_rows()
    rates = {(row["policy"], row["capacity"]): row["hit_rate"] for row in rows}
    assert {row["trace"] for row in rows} == {"zipf"}
    assert set(rates) == {(policy, capacity) for policy in (*POLICY_NAMES, "foresight") for capacity in CAPACITIES}
    for policy in POLICY_NAMES:
        by_capacity = [rates[policy, capacity] for capacity in CAPACITIES]
        assert by_capacity == sorted(by_capacity)
        assert all(rates[policy, capacity] < rates["foresight", capacity] for capacity in CAPACITIES)
    assert rates["foresight", CAPACITIES[-1]] <= zipf_trace().seen_ratio
    assert all(0 < row["steady_byte_hit_rate"] < 1 and 0 < row["byte_hit_rate"] < 1 for row in rows)


@pytest.mark.skipif(not RAGPULSE.exists(), reason="the RAGPulse trace is not here")
def test_s3_fifo_is_the_best_on_a_real_trace() -> None:
    """In passages and bytes, from empty and in the steady state, and behind an ingest that nobody asks for."""
    rows = [row for row in eviction_rows(RAGPULSE) if row["trace"] == RAGPULSE.name and row["policy"] != "foresight"]
    for capacity in CAPACITIES:
        at_capacity = [row for row in rows if row["capacity"] == capacity]
        for rate in [name for name in at_capacity[0] if name.endswith("hit_rate")]:
            assert max(at_capacity, key=lambda row: row[rate])["policy"] == "s3-fifo", (capacity, rate)
