"""The trace's replay and its sample, as one result."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from kvblend.core.settings import EvictionName
from kvblend.eval.bench.engine import BenchEngine
from kvblend.eval.replay.corpus import ReplayCorpus, folder_corpus, library_path, trace_corpus
from kvblend.eval.replay.replay import Replay, ReplaySettings, Served
from kvblend.eval.replay.sample import measure_sample, sampled
from kvblend.eval.replay.shares import Ratios, replay_rows, setting_fields, steady_part
from kvblend.eval.trace import Trace, read_trace, zipf_trace

__all__ = ["replay_bench", "replay_settings"]

SAMPLE_MODEL_LEN = 8192


def replay_settings(
    capacities: Sequence[float], orders: Sequence[str], shares: Sequence[float], *, eviction: EvictionName
) -> list[ReplaySettings]:
    """Every combination; the order `free` is `fit` without its first place."""
    return [
        ReplaySettings(capacity, "fit" if order == "free" else order, order == "free", share, eviction)  # type: ignore[arg-type]
        for capacity, order, share in product(capacities, orders, shares)
    ]


def replay_bench(
    model: str | None,
    trace_path: Path | None,
    corpus_path: Path | None,
    settings: Sequence[ReplaySettings],
    *,
    ratios: Ratios,
    num_sampled: int,
    dtype: str,
    console: Console,
) -> dict[str, Any]:
    """Replay a trace at every setting. With a `model` its passages are those of a folder, by default Python's library,
    and `num_sampled` requests of each steady state are measured; without one they are lengths alone.

    Returns {trace, num_requests, num_passages, seen_ratio, corpus, recompute_ratio, fit_ratio, results, sample}, with a
    sample {model, machine, versions} beside. `dtype` is vLLM's name of one.
    """
    trace = zipf_trace() if trace_path is None else read_trace(trace_path)
    corpus = _corpus(trace, model, corpus_path)
    rows, steady = [], []
    for each in settings:
        served = list(Replay(trace, corpus, each).run())
        rows += replay_rows(each, served, ratios=ratios)
        steady.append(steady_part(served))
        console.print(f"replayed: {setting_fields(each)}")
    result = {
        "trace": trace.name,
        "num_requests": len(trace.requests),
        "num_passages": len(trace.passage_tokens),
        "seen_ratio": trace.seen_ratio,
        "corpus": corpus.name,
        "recompute_ratio": ratios.reused,
        "fit_ratio": ratios.fits,
        "results": rows,
        "sample": [],
    }
    if model is None or not num_sampled:
        return result
    with BenchEngine(model, dtype=dtype, max_model_len=SAMPLE_MODEL_LEN) as engine:
        measured = list(_measured(engine, corpus, settings, steady, num_sampled, ratios, console))
        about = {"model": Path(model).name, "machine": engine.machine, "versions": engine.versions}
    return result | about | {"sample": measured}


def _corpus(trace: Trace, model: str | None, path: Path | None) -> ReplayCorpus:
    if model is None:
        return trace_corpus(trace)
    from transformers import AutoTokenizer

    from kvblend.retriever import PassageTokenizer

    tokenizer = PassageTokenizer(AutoTokenizer.from_pretrained(model))
    return folder_corpus(path or library_path(), tokenizer, num_passages=max(trace.passage_tokens) + 1)


def _measured(
    engine: BenchEngine,
    corpus: ReplayCorpus,
    settings: Sequence[ReplaySettings],
    steady: Sequence[Sequence[Served]],
    num_sampled: int,
    ratios: Ratios,
    console: Console,
) -> Iterator[dict[str, Any]]:
    for each, served in zip(settings, steady, strict=True):
        chosen = sampled(served, num_sampled)
        yield {
            **setting_fields(each),
            **measure_sample(engine, corpus, chosen, ratios=ratios),
        }
        console.print(f"measured: {setting_fields(each)}")
