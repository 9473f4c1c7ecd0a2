"""What it takes to find ingested passages in the prompt of a plain request: a real catalog, made-up tokens."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kvblend.core.machine import cpu_name
from kvblend.eval.bench.load_measured import percentile
from kvblend.retriever.catalog import Catalog
from kvblend.retriever.matching import PassageMatcher
from kvblend.retriever.packing import PassageText
from kvblend.retriever.records import NewDocument

__all__ = ["drop_in_bench"]

COLLECTION = "bench"
DOCUMENT_PASSAGES = 100
VOCABULARY = 49_152
VECTOR = np.zeros(4, np.float32)
"""Nothing is searched by it."""


def drop_in_bench(
    folder: Path,
    *,
    num_passages: int,
    passage_tokens: int,
    prompt_tokens: int,
    held: Sequence[int],
    repeats: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Returns {machine, results}: a row for each of `held`, how many of the catalog's passages a prompt holds.

    A row's prompts are `repeats`, each of other passages, in random order among random tokens, and each is looked
    through once. `cpu_ms_min`, `p50`, `p95`: CPU time of one, the documents named, without tokenizing; `ms_p50`: by the
    clock. `found_share`: of the passages' tokens. Of the index: `index_cpu_s`, what making it of the catalog took, and
    `index_mib`.
    """
    catalog = Catalog(folder / "catalog.sqlite3")
    try:
        say(f"{num_passages} passages of {passage_tokens} tokens are put into a catalog")
        _fill(catalog, num_passages, passage_tokens)
        matcher = PassageMatcher(catalog)
        began = time.process_time()
        matcher.catch_up()
        index_cpu_s = time.process_time() - began
        rows = []
        for number in held:
            say(f"{repeats} prompts of {prompt_tokens} tokens that hold {number} of them")
            prompts = [_prompt(seed, number, num_passages, passage_tokens, prompt_tokens) for seed in range(repeats)]
            rows.append({"held_passages": number, "prompt_tokens": prompt_tokens, **_measured(matcher, prompts)})
    finally:
        catalog.close()
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "load": list(os.getloadavg())}
    made = {"num_passages": num_passages, "passage_tokens": passage_tokens, "repeats": repeats}
    index = {"index_cpu_s": index_cpu_s, "index_mib": matcher.num_bytes / (1 << 20)}
    return {"machine": machine, "results": [{**made, **index, **row} for row in rows]}


def _fill(catalog: Catalog, num_passages: int, passage_tokens: int) -> None:
    catalog.create_collection(COLLECTION, passage_tokens=passage_tokens)
    for first in range(0, num_passages, DOCUMENT_PASSAGES):
        numbers = range(first, min(first + DOCUMENT_PASSAGES, num_passages))
        texts = [PassageText(f"passage {number}", tuple(_tokens(number, passage_tokens))) for number in numbers]
        name = f"document {first // DOCUMENT_PASSAGES}"
        document = NewDocument(name, name, "text/plain", name, {})
        catalog.put_document(COLLECTION, document, texts, {text.passage_id: VECTOR for text in texts}, [])


def _tokens(number: int, length: int) -> list[int]:
    """A passage's tokens, by its number."""
    tokens: list[int] = np.random.default_rng(number).integers(0, VOCABULARY, length).tolist()
    return tokens


def _prompt(seed: int, held: int, num_passages: int, passage_tokens: int, length: int) -> tuple[list[int], int]:
    """Passages in random order, the tokens that are left over between them; and how many tokens are passages'."""
    random = np.random.default_rng((1, seed))
    chosen = random.choice(num_passages, held, replace=False)
    free = random.integers(0, VOCABULARY, length - held * passage_tokens).tolist()
    cuts = np.sort(random.integers(0, len(free) + 1, held)).tolist()
    prompt, before = list[int](), 0
    for number, cut in zip(chosen.tolist(), cuts, strict=True):
        prompt += [*free[before:cut], *_tokens(number, passage_tokens)]
        before = cut
    return [*prompt, *free[before:]], held * passage_tokens


def _measured(matcher: PassageMatcher, prompts: Sequence[tuple[list[int], int]]) -> dict[str, Any]:
    cpu_ms, clock_ms, found, wanted = list[float](), list[float](), 0, 0
    for tokens, num_held in prompts:
        with _added(cpu_ms, time.thread_time), _added(clock_ms, time.perf_counter):
            matches = matcher.match(tokens)
        found += sum(match.num_tokens for match in matches)
        wanted += num_held
    return {
        "cpu_ms_min": min(cpu_ms),
        "cpu_ms_p50": percentile(cpu_ms, 50),
        "cpu_ms_p95": percentile(cpu_ms, 95),
        "ms_p50": percentile(clock_ms, 50),
        "found_share": found / wanted if wanted else None,
    }


@contextmanager
def _added(times_ms: list[float], clock: Callable[[], float]) -> Iterator[None]:
    began = clock()
    yield
    times_ms.append((clock() - began) * 1e3)
