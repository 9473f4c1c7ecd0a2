"""Some of a replay's requests on a real engine, their KV stored as the replay says, beside full prefill of each."""

import re
import statistics
import time
from collections.abc import Sequence
from typing import Any

from kvblend.api.kv.document_windows import document_windows
from kvblend.api.kv.encode_context import EncodeContext, default_warm_context, make_encode_context
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.prompt.neighbours import PassageVariant
from kvblend.core.plan import REPORT
from kvblend.core.report import BlendReport
from kvblend.eval.bench.engine import BenchEngine
from kvblend.eval.quality.bootstrap import Resamples
from kvblend.eval.quality.divergence import mean_kl
from kvblend.eval.quality.first_sentence import first_sentence
from kvblend.eval.replay.corpus import ReplayCorpus, ReplayPassage
from kvblend.eval.replay.replay import KVKey, Served
from kvblend.eval.replay.shares import Ratios

__all__ = ["measure_sample", "sampled"]

KL_TOKENS = 16
ANSWER_TOKENS = 48
REPEATS = 3
DEFINED = re.compile(r"^\s*(?:def|class) (\w+)", re.MULTILINE)


def sampled(served: Sequence[Served], num_requests: int) -> list[Served]:
    """So many requests, evenly over those given: of each part the one in the middle."""
    count = min(num_requests, len(served))
    return [served[(2 * index + 1) * len(served) // (2 * count)] for index in range(count)]


def measure_sample(
    engine: BenchEngine, corpus: ReplayCorpus, served: Sequence[Served], *, ratios: Ratios
) -> dict[str, Any]:
    """Blend requests over KV that is stored as each of them found it, and prefill them in full.

    Each is asked what its first passage is about. Returns {num_requests, num_prefilled, kl, kl_ci95, agreement,
    first_sentence, first_sentence_ci95, ttft_ms, full_ttft_ms, sooner}: KL in nats over the answer's first 16 tokens,
    how often the likeliest token and the first sentence's words are full prefill's, medians of times to first token,
    and of their ratio. A request of which nothing is stored is prefilled, and counts.
    """
    store = _StoredAs(engine, corpus)
    store.encode({key for one in served for key in one.used if key is not None})
    kls, agreements, sentences, ours_ms, full_ms = [], [], [], [], []
    for one in served:
        prompt = engine.prompts.prompt([passage.token_ids for passage in one.passages], _question(engine, one))
        order = store.plan(one, ratios)
        answer, reference = engine.answer_distributions(prompt, order=None, answer=None, num_tokens=KL_TOKENS)
        _, ours = engine.answer_distributions(prompt, order=order, answer=answer, num_tokens=KL_TOKENS)
        kls.append(mean_kl(reference, ours))
        agreements.append(float((reference.argmax(-1) == ours.argmax(-1)).float().mean()))
        sentences.append(float(_first_sentence(engine, prompt, order) == _first_sentence(engine, prompt, None)))
        timed = [(_ttft_ms(engine, prompt, order), _ttft_ms(engine, prompt, None)) for _ in range(REPEATS)]
        ours_ms.append(statistics.median(ms for ms, _ in timed))
        full_ms.append(statistics.median(ms for _, ms in timed))
    resamples = Resamples(len(served))
    return {
        "num_requests": len(served),
        "num_prefilled": sum(store.plan(one, ratios) is None for one in served),
        "kl": statistics.fmean(kls),
        "kl_ci95": resamples.mean_ci95(kls),
        "agreement": statistics.fmean(agreements),
        "first_sentence": statistics.fmean(sentences),
        "first_sentence_ci95": resamples.mean_ci95(sentences),
        "ttft_ms": statistics.median(ours_ms),
        "full_ttft_ms": statistics.median(full_ms),
        "sooner": statistics.median(full / ours for ours, full in zip(ours_ms, full_ms, strict=True)),
    }


class _StoredAs:
    """Encodes what a replay stored by the service's own runs, and names it in plans."""

    def __init__(self, engine: BenchEngine, corpus: ReplayCorpus) -> None:
        self._engine = engine
        self._preamble = tuple(engine.prompts.preamble)
        warm_ids = engine.prompts.passage(default_warm_context(), 10_000)
        self._context = make_encode_context(self._preamble, warm_ids)
        self._by_id = {passage.id: passage for passage in corpus.passages}
        self._documents: dict[str, list[ReplayPassage]] = {}
        for passage in corpus.passages:
            self._documents.setdefault(passage.document, []).append(passage)
        self._contexts: dict[KVKey, str] = {}

    def encode(self, keys: set[KVKey]) -> None:
        """Store the preamble and these, each window of a document in one pass."""
        runs = [EncodeRun.alone(EncodeContext((), 0), self._preamble)]
        wanted: dict[str, set[str]] = {}
        for key in keys:
            if isinstance(key, PassageVariant):
                run = self._variant(key)
                self._contexts[key], _ = run.names[-1]
                runs.append(run)
            else:
                wanted.setdefault(self._by_id[key].document, set()).add(key)
        for run in runs:
            self._engine.generate_all([_request(run, {run.names[-1]})])
        for document, ids in sorted(wanted.items()):
            for run in document_windows(self._context, [own.token_ids for own in self._documents[document]]):
                names = {name for name in run.names if name[1] in ids}
                self._contexts |= {passage_id: context for context, passage_id in names}
                if names:
                    self._engine.generate_all([_request(run, names)])

    def plan(self, served: Served, ratios: Ratios) -> dict[str, Any] | None:
        """The order that blends a request over just the KV that it found; None where it found none."""
        if not any(served.used):
            return None
        spans: list[dict[str, Any]] = [{"kind": "exact", "num_tokens": len(self._preamble)}]
        for passage, standing, key in zip(served.passages, served.standings, served.used, strict=True):
            stored: dict[str, Any] = {"kind": "fresh"}
            if key is not None:
                stored = {"kind": "passage", "encode_contexts": [self._contexts[key]]}
                stored["recompute_ratios"] = [ratios.of(standing)]
            spans.append({"num_tokens": passage.num_tokens, **stored})
        return {"blend": {"spans": spans, "recompute_ratio": ratios.reused}}

    def _variant(self, variant: PassageVariant) -> EncodeRun:
        passages = tuple(self._by_id[passage].token_ids for passage in variant.passages)
        return EncodeRun(
            EncodeContext(self._preamble, len(self._preamble)), passages, frozenset(range(len(passages) - 1))
        )


def _request(run: EncodeRun, names: set[tuple[str, str]]) -> tuple[list[int], dict[str, Any]]:
    spans = [[start, end] for name, start, end in run.parts if name in names]
    return run.prompt(spans[-1][1]), {"encode": {"spans": spans}}


def _question(engine: BenchEngine, served: Served) -> list[int]:
    defined = DEFINED.search(served.passages[0].text)
    text = f"What does `{defined.group(1)}` do?" if defined else "What is the first passage about?"
    return engine.prompts.question(text)


def _first_sentence(engine: BenchEngine, prompt: list[int], order: dict[str, Any] | None) -> list[str]:
    """The words of the greedy answer's first sentence."""
    engine.llm.reset_prefix_cache()
    output = engine.generate(prompt, order=order, max_tokens=ANSWER_TOKENS).outputs[0]
    return first_sentence(engine.tokenizer.decode(output.token_ids, skip_special_tokens=True))


def _ttft_ms(engine: BenchEngine, prompt: list[int], order: dict[str, Any] | None) -> float:
    """Raises RuntimeError where a blend was not made as it was ordered."""
    engine.llm.reset_prefix_cache()
    began = time.perf_counter()
    output = engine.generate(prompt, order=order)
    ttft_ms = (time.perf_counter() - began) * 1e3
    if order is not None:
        report = BlendReport.model_validate(output.kv_transfer_params[REPORT])
        if report.outcome != "blended" or report.missed_passages:
            raise RuntimeError(f"the blend was not made: {report}")
    return ttft_ms
