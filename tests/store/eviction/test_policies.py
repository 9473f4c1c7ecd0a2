"""Policies, on cases small enough to work out by hand."""

from kvblend.store.eviction import LRU, POLICY_NAMES, S3FIFO, CostAware, EvictionPolicy, MemoryIndex, policy_of


def filled(policy: EvictionPolicy, keys: str) -> MemoryIndex[str]:
    """An index of files of one byte each."""
    index = MemoryIndex[str](policy)
    for key in keys:
        index.put(key, num_bytes=1, cost=1.0)
    return index


def use(index: MemoryIndex[str], keys: str) -> None:
    for key in keys:
        assert index.use(key)


def evict(index: MemoryIndex[str], num_bytes: int) -> str:
    return "".join(index.evict(num_bytes))


def order(index: MemoryIndex[str]) -> str:
    return "".join(index.in_order())


def test_names() -> None:
    assert [policy_of(name).name for name in POLICY_NAMES] == list(POLICY_NAMES)
    assert [type(policy_of(name)) for name in POLICY_NAMES] == [LRU, S3FIFO, CostAware]


def test_lru_evicts_what_was_used_longest_ago() -> None:
    index = filled(LRU(), "abcd")
    use(index, "ac")
    assert evict(index, 3) == "bda"


def test_s3_fifo_evicts_from_the_small_queue_what_was_not_used_twice() -> None:
    """What was goes on to the main queue as the small one's end reaches it, and is evicted from there last."""
    index = filled(S3FIFO(), "abcdef")
    use(index, "aabcc")
    assert evict(index, 1) == "b"
    assert evict(index, 3) == "def"
    assert evict(index, 2) == "ac"


def test_s3_fifo_keeps_a_tenth_for_the_small_queue() -> None:
    """Until the small queue has more, the main one gives files up."""
    index = filled(S3FIFO(), "abcdefghijk")
    use(index, "abcdefghij" * 2)
    assert evict(index, 3) == "abk"  # one of eleven bytes, one of ten, one of nine


def test_s3_fifo_spares_a_file_of_the_main_queue_once_for_each_use() -> None:
    index = filled(S3FIFO(), "abcd")
    use(index, "abcabc")
    assert evict(index, 1) == "d"  # a, b and c come into the main queue, and start over
    use(index, "aab")
    assert evict(index, 1) == "c"  # a has one use left, b none
    assert evict(index, 1) == "b"
    assert evict(index, 1) == "a"


def test_s3_fifo_counts_three_uses() -> None:
    index = filled(S3FIFO(), "abc")
    use(index, "abab")
    assert evict(index, 1) == "c"
    use(index, "aaaaaaaaa" + "bbb")
    assert evict(index, 1) == "a"


def test_s3_fifo_puts_what_comes_back_soon_into_the_main_queue() -> None:
    index = filled(S3FIFO(), "ab")
    assert evict(index, 1) == "a"
    for key in "ac":
        index.put(key, num_bytes=1, cost=1.0)
    assert order(index) == "bca"


def test_s3_fifo_forgets_after_as_many_evictions_as_there_were_files() -> None:
    index = filled(S3FIFO(), "abc")
    assert evict(index, 3) == "abc"
    for key in "ad":
        index.put(key, num_bytes=1, cost=1.0)
    assert order(index) == "ad"


def test_cost_aware_keeps_what_saves_most_per_byte() -> None:
    index = MemoryIndex[str](CostAware())
    index.put("a", num_bytes=4, cost=4.0)
    index.put("b", num_bytes=1, cost=3.0)
    index.put("c", num_bytes=2, cost=1.0)
    assert order(index) == "cab"
    use(index, "accccc")
    assert order(index) == "abc"  # at 2, 3 and 3
    assert evict(index, 4) == "a"
    index.put("d", num_bytes=2, cost=1.0)
    use(index, "b")
    assert order(index) == "dcb"  # above the floor of 2: at 2.5, 3 and 8


def test_cost_aware_lets_go_of_what_was_used_long_ago() -> None:
    """A file of ten uses stands at 11; of those after it each stands one above the one that went before it."""
    index = filled(CostAware(), "a")
    use(index, "a" * 10)
    gone = ""
    for key in "bcdefghijklm":
        index.put(key, num_bytes=1, cost=1.0)
        gone += evict(index, 1)
    assert gone == "bcdefghijkal"


def test_a_scan_drives_out_what_is_asked_for_under_lru_alone() -> None:
    """Of a tier for twenty files ten are asked for again and again; then ten times as many as it holds are put."""
    hot, scanned = range(10), range(100, 300)
    num_left = {}
    for name in POLICY_NAMES:
        index = MemoryIndex[int](policy_of(name))
        for key in [*hot] * 4 + [*scanned]:
            if not index.use(key):
                index.evict(max(0, len(index) + 1 - 20))
                index.put(key, num_bytes=1, cost=1.0)
        num_left[name] = sum(key in index for key in hot)
    assert num_left["lru"] == 0 and num_left["s3-fifo"] == 10
