"""How often a search finds the passage that answers a question, by mode."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kvblend.core.machine import cpu_name
from kvblend.core.rest import SearchMode
from kvblend.eval.bench.load_measured import percentile
from kvblend.eval.questions.retrieval_set import RetrievalSet
from kvblend.retriever import IngestPlan, NewDocument, PassageText, Retriever

__all__ = ["retrieval_quality"]

TOP_K = 64
RERANKED = 32
PASSAGE_TOKENS = 2048
MODES: tuple[SearchMode, ...] = ("vector", "keyword", "hybrid")


def retrieval_quality(
    open_retriever: Callable[[Path], Retriever],
    folder: Path,
    sets: Sequence[RetrievalSet],
    *,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Returns {machine, results}: a row a set and mode; `reranked` (hybrid's best 32) where there is a reranker.

    Each passage of a set is one document of one passage. `recall_1`, `_5`, `_10`: the share of questions that have a
    passage which answers them among the first so many; `mrr`: the mean of 1 / the rank of the first such, 0 beyond the
    64th. `ms_p50`: of a search, the query's embedding included.
    """
    results: list[dict[str, Any]] = []
    for number, each in enumerate(sets):
        retriever = open_retriever(folder / str(number))
        say(f"{each.name}: {len(each.passages)} passages, {len(each.questions)} questions")
        _ingest(retriever, each)
        reranked: list[tuple[str, SearchMode, int]] = [("reranked", "hybrid", RERANKED)] if retriever.reranker else []
        for name, mode, rerank_candidates in [*((mode, mode, 0) for mode in MODES), *reranked]:
            row = _row(retriever, each, mode, rerank_candidates)
            results.append({"set": each.name, "num_passages": len(each.passages), "mode": name, **row})
            say(str(results[-1]))
        retriever.close()
    return {"machine": {"cpu": cpu_name()}, "results": results}


def _ingest(retriever: Retriever, asked: RetrievalSet) -> None:
    retriever.catalog.create_collection("bench", passage_tokens=PASSAGE_TOKENS)
    for number, text in enumerate(asked.passages):
        passage = PassageText(text, tuple(retriever.tokenizer.encode_passage(text)))
        document = NewDocument(str(number), str(number), "text/plain", "", {})
        ids = (passage.passage_id,)
        retriever.commit_document(IngestPlan("bench", document, False, (passage,), new=ids, kept=(), dropped=()))


def _row(retriever: Retriever, asked: RetrievalSet, mode: SearchMode, rerank_candidates: int) -> dict[str, Any]:
    ranks, times = [], []
    for question in asked.questions:
        start = time.perf_counter()
        hits = retriever.search("bench", question.question, top_k=TOP_K, mode=mode, rerank_candidates=rerank_candidates)
        times.append((time.perf_counter() - start) * 1e3)
        found = (rank for rank, hit in enumerate(hits, start=1) if int(hit.document_id) in question.relevant)
        ranks.append(next(found, None))
    number = len(ranks)
    recalls = {
        f"recall_{depth}": sum(rank is not None and rank <= depth for rank in ranks) / number for depth in (1, 5, 10)
    }
    mrr = sum(1 / rank for rank in ranks if rank is not None) / number
    return {"num_questions": number, **recalls, "mrr": mrr, "ms_p50": percentile(times, 50)}
