"""What ingest and search take in collections of ten thousand to a million passages."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from kvblend.core.machine import cpu_name
from kvblend.eval.bench.load_measured import percentile
from kvblend.eval.bench.synthetic_vectors import BLOCK, SyntheticVectors
from kvblend.retriever import IngestPlan, NewDocument, PassageText, Retriever

__all__ = ["retrieval_bench"]

COLLECTION = "bench"
DOCUMENT_PASSAGES = 100
TOP_K = 10
NUM_QUERIES = 500
PAUSE_S = 0.02
"""Between two searches beside an ingest: one client that asks, and not one that takes all of a core."""
SEARCHED_SHARE = 0.2
"""Of the ingest, at its end, that is searched beside."""


class SyntheticEmbedder:
    """Gives a passage's vector by the number that its text is, and a query's likewise."""

    fingerprint = "synthetic"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.vectors = SyntheticVectors(dim)
        self.queries = self.vectors.queries(NUM_QUERIES)
        self._block: tuple[int, NDArray[np.float32]] = (-1, self.queries)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._passage(int(text)) for text in texts])

    def encode_query(self, query: str) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.queries[int(query)]
        return vector

    def _passage(self, number: int) -> NDArray[np.float32]:
        if self._block[0] != number // BLOCK:
            self._block = number // BLOCK, self.vectors.passages(number // BLOCK)
        vector: NDArray[np.float32] = self._block[1][number % BLOCK]
        return vector


def retrieval_bench(folder: Path, sizes: Sequence[int], *, dim: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns {machine, results}, a row a size, of one process with a real catalog and index in `folder`.

    `passages_per_s`: ingested in all, documents of 100 passages, a commit each. `ingest_ms_p50`, `p99`, `max`: of
    searches beside the last fifth of the ingest, catalog look-up included. `merge_s`: what of merging was left then.
    `idle_ms_p50`, `p99`: of searches with nothing beside. `recall`: at 10 against the exact neighbours, of 500 queries
    that are none of the passages. `start_s`: opening the folder anew, to the first answer. `anon_mib`, `file_mib`:
    memory of the process after all those searches, its own and that of mapped files, which the system may take back;
    `disk_mib`: catalog, index. `list_ms`: of all collections, with their counts.
    """
    machine: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "dim": dim,
    }
    machine["load_before"] = os.getloadavg()
    return {"machine": machine, "results": [_row(folder / str(size), size, dim, say) for size in sizes]}


def _row(folder: Path, size: int, dim: int, say: Callable[[str], None]) -> dict[str, Any]:
    embedder = SyntheticEmbedder(dim)

    def opened() -> Retriever:
        return Retriever(folder, embedder=embedder, tokenizer=Tokenizer(models.WordLevel({"0": 0}, "0")))

    retriever = opened()
    retriever.catalog.create_collection(COLLECTION, passage_tokens=64)
    say(f"{size} passages: ingest")
    beside: list[float] = []
    done, near_end = threading.Event(), threading.Event()
    searcher = threading.Thread(target=_search_beside, args=(retriever, near_end, done, beside))
    searcher.start()
    start = time.perf_counter()
    for plan in _plans(size):
        if int(plan.document.id) * DOCUMENT_PASSAGES >= size * (1 - SEARCHED_SHARE):
            near_end.set()
        retriever.commit_document(plan)
    seconds = time.perf_counter() - start
    done.set()
    searcher.join()
    say(f"{size} passages: {size / seconds:.0f} a second; merges")
    start = time.perf_counter()
    retriever.wait_for_index()
    merge_s = time.perf_counter() - start
    retriever.close()
    start = time.perf_counter()
    retriever = opened()
    retriever.search(COLLECTION, "0", top_k=TOP_K, mode="vector")
    start_s = time.perf_counter() - start
    retriever.wait_for_index()  # it checks large parts beside the first searches
    say(f"{size} passages: recall")
    idle, found = [], []
    for number in range(NUM_QUERIES):
        start = time.perf_counter()
        hits = retriever.search(COLLECTION, str(number), top_k=TOP_K, mode="vector")
        idle.append((time.perf_counter() - start) * 1e3)
        found.append({int(hit.text) for hit in hits})
    start = time.perf_counter()
    (record,) = retriever.catalog.list_collections()
    list_s = time.perf_counter() - start
    assert record.num_passages == size
    memory = _memory_mib()
    retriever.close()
    exact = _exact(embedder, size)
    row = {
        "num_passages": size,
        "passages_per_s": size / seconds,
        "ingest_ms_p50": percentile(beside, 50),
        "ingest_ms_p99": percentile(beside, 99),
        "ingest_ms_max": max(beside),
        "merge_s": merge_s,
        "idle_ms_p50": percentile(idle, 50),
        "idle_ms_p99": percentile(idle, 99),
        "recall": float(
            np.mean([len(got & set(true)) / TOP_K for got, true in zip(found, exact.tolist(), strict=True)])
        ),
        "start_s": start_s,
        "list_ms": list_s * 1e3,
        **memory,
        "disk_mib": [_size_mib(folder.glob("catalog*")), _size_mib((folder / "indexes").rglob("*"))],
    }
    shutil.rmtree(folder)
    say(f"{size} passages: {row}")
    return row


def _plans(size: int) -> Iterator[IngestPlan]:
    for number in range(size // DOCUMENT_PASSAGES):
        first = number * DOCUMENT_PASSAGES
        passages = tuple(
            PassageText(str(each), (each, *range(1, 64))) for each in range(first, first + DOCUMENT_PASSAGES)
        )
        document = NewDocument(str(number), str(number), "text/plain", "", {})
        new = tuple(passage.passage_id for passage in passages)
        yield IngestPlan(COLLECTION, document, False, passages, new=new, kept=(), dropped=())


def _search_beside(retriever: Retriever, begin: threading.Event, end: threading.Event, times_ms: list[float]) -> None:
    begin.wait()
    number = 0
    while not end.is_set() or not times_ms:
        start = time.perf_counter()
        retriever.search(COLLECTION, str(number % NUM_QUERIES), top_k=TOP_K, mode="vector")
        times_ms.append((time.perf_counter() - start) * 1e3)
        number += 1
        time.sleep(PAUSE_S)


def _exact(embedder: SyntheticEmbedder, size: int) -> NDArray[np.int64]:
    """The passages nearest to each query, by comparing them all."""
    scores = np.full((NUM_QUERIES, 0), 0, np.float32)
    names = np.zeros((NUM_QUERIES, 0), np.int64)
    for block in range(-(-size // BLOCK)):
        vectors = embedder.vectors.passages(block)[: size - block * BLOCK]
        near, places = faiss.knn(embedder.queries, vectors, TOP_K, metric=faiss.METRIC_INNER_PRODUCT)
        scores, names = np.hstack([scores, near]), np.hstack([names, places + block * BLOCK])
        best = np.argsort(-scores, axis=1)[:, :TOP_K]
        scores, names = np.take_along_axis(scores, best, 1), np.take_along_axis(names, best, 1)
    return names


def _memory_mib() -> dict[str, float]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        name: int(lines[field].split()[0]) / 1024 for name, field in (("anon_mib", "RssAnon"), ("file_mib", "RssFile"))
    }


def _size_mib(paths: Iterator[Path]) -> float:
    return sum(path.stat().st_size for path in paths if path.is_file()) / 2**20
