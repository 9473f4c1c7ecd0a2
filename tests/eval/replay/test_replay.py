"""The replay of a trace: what is counted, on requests that can be worked out by hand, and on a Zipf trace."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from kvblend.api.prompt.neighbours import OrderName, PassageVariant
from kvblend.core.errors import InvalidRequestError
from kvblend.eval.replay import (
    Ratios,
    Replay,
    ReplayCorpus,
    ReplayPassage,
    ReplaySettings,
    folder_corpus,
    replay_rows,
    steady_part,
    trace_corpus,
)
from kvblend.eval.replay.sample import sampled
from kvblend.eval.trace import Trace, zipf_trace
from kvblend.retriever import PassageTokenizer


def _trace(*requests: tuple[int, ...]) -> Trace:
    return Trace("ours", requests, {passage: 10 for request in requests for passage in request})


def test_the_first_request_misses_and_the_second_finds() -> None:
    trace = _trace((0, 5), (5, 0))
    first, second = Replay(trace, trace_corpus(trace), ReplaySettings(1.0, "rank")).run()
    assert first.standings == ("missing", "missing")
    assert (second.standings, second.used) == (("reused", "reused"), ("5", "0"))


def test_neighbours_in_a_document_fit_by_order() -> None:
    """Passages 3 and 4 follow each other; retrieved as 9 4 3 they fit once 4 stands behind 3, and as retrieved not."""
    trace = _trace(*[(9, 4, 3)] * 2)
    cases: list[tuple[OrderName, tuple[str, ...]]] = [
        ("rank", ("reused", "reused", "reused")),
        ("fit", ("reused", "reused", "fits")),
    ]
    for order, standings in cases:
        *_, last = Replay(trace, trace_corpus(trace), ReplaySettings(1.0, order, variants_share=0.0)).run()
        assert last.standings == standings
    assert [passage.id for passage in last.passages] == ["9", "3", "4"]


def test_pairs_that_come_back_are_encoded_and_exact_in_front() -> None:
    """After two requests the pair is encoded: both passages are exact from then on, by variants."""
    trace = _trace(*[(0, 5)] * 6)
    settings = ReplaySettings(2.0, "rank", variants_share=1.0, look_every=2)
    served = list(Replay(trace, trace_corpus(trace), settings).run())
    assert served[1].num_encodes == 2
    assert served[2].standings == ("exact", "exact")
    assert served[2].used == (PassageVariant("", "0"), PassageVariant("0", "5"))
    assert served[-1].variants_ratio == 0.5


def test_a_store_of_one_passage_holds_one() -> None:
    """Three passages by least recently used, a third of the bytes: none is ever found when they go round."""
    trace = _trace(*[(0,), (2,), (4,)] * 3)
    served = Replay(trace, trace_corpus(trace), ReplaySettings(1 / 3, eviction="lru", variants_share=0.0)).run()
    assert {one.standings for one in served} == {("missing",)}


def test_rows_over_time_and_steady() -> None:
    """Shares add up; order and variants leave less that does not fit; a smaller store misses more."""
    trace = zipf_trace()
    rows = {}
    cases: list[tuple[float, OrderName, float]] = [(1.0, "rank", 0.0), (1.0, "fit", 0.1), (0.1, "fit", 0.1)]
    for capacity, order, share in cases:
        settings = ReplaySettings(capacity, order, variants_share=share)
        served = list(Replay(trace, trace_corpus(trace), settings).run())
        found = replay_rows(settings, served, ratios=Ratios(0.15))
        assert [(row["steady"], row["first_request"]) for row in found] == [(False, 0), (False, 500), (True, 333)]
        for row in found:
            assert row["exact"] + row["fits"] + row["reused"] + row["missing"] == pytest.approx(1.0)
            assert row["recompute_ratio"] <= 0.15
        rows[capacity, order] = found[-1]
    assert rows[1.0, "fit"]["fitting_passages"] > rows[1.0, "rank"]["fitting_passages"] + 0.2
    assert rows[1.0, "fit"]["recompute_ratio"] < rows[1.0, "rank"]["recompute_ratio"]
    assert rows[0.1, "fit"]["missing"] > rows[1.0, "fit"]["missing"]
    assert len(steady_part(served)) == 667
    assert sampled(served, 4) == [served[125], served[375], served[625], served[875]]


def test_a_folder_of_documents_is_numbered_through(tmp_path: Path) -> None:
    """Neighbours are of one document; a text that comes again, of an empty file or another kind is left out."""
    words = [f"word{number}" for number in range(2000)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["?", *words])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for name, first in (("a.txt", 0), ("b.md", 700), ("c.txt", 0)):
        (tmp_path / name).write_text(" ".join(words[first : first + 600]) + ".")
    (tmp_path / "d.bin").write_bytes(b"\xff")
    (tmp_path / "e.txt").write_text("  ")
    corpus = folder_corpus(tmp_path, PassageTokenizer(tokenizer), num_passages=6)
    a, b = ([passage for passage in corpus.passages if passage.document == name] for name in ("a.txt", "b.md"))
    assert len(a) + len(b) == 6
    assert a[1].follows(a[0]) and not a[2].follows(a[0]) and not b[0].follows(a[-1])
    assert all(passage.num_tokens == len(passage.token_ids) <= 256 for passage in corpus.passages)
    with pytest.raises(InvalidRequestError, match=r"has 6 passages of at most 256 tokens; the trace names 7"):
        folder_corpus(tmp_path, PassageTokenizer(tokenizer), num_passages=7)


def test_a_passage_follows_within_its_document_alone() -> None:
    corpus = ReplayCorpus("two", [ReplayPassage("x", 1, "a", 0), ReplayPassage("y", 1, "b", 1)])
    assert not corpus.passages[1].follows(corpus.passages[0])
