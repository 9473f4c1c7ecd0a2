"""The service under load: a request trace by blends, by vLLM's prefix cache, and by full prefill."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from kvblend.core.errors import InvalidRequestError
from kvblend.core.rest import Reuse
from kvblend.eval.bench.load_client import load_client
from kvblend.eval.bench.load_prompts import TracePrompts, distinct_documents
from kvblend.eval.bench.load_run import LoadRun
from kvblend.eval.bench.load_store import cost_fit_ended, passage_bytes
from kvblend.eval.bench.load_texts import PassageTexts, bystander_text, chars_per_token
from kvblend.eval.bench.load_traffic import ClosedLoop, OpenLoop, Traffic
from kvblend.eval.trace import Trace
from kvblend.sdk import AsyncClient

__all__ = ["LoadSettings", "load_bench"]

CURVE_SHARE = 0.1
ROOM_TOKENS = 512
"""More than a prompt has beside its passages, and than a passage's encode context has."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class LoadSettings:
    """What is asked, and how. `num_curve` is 0 where no curve is wanted."""

    modes: Sequence[Reuse]
    clients: Sequence[int]
    rates: Sequence[float]
    num_measured: int
    num_warm: int
    context_tokens: int
    answer_tokens: int
    num_bystanders: int
    ingested: bool
    repeat: bool
    num_curve: int
    seed: int

    @property
    def traffics(self) -> list[Traffic]:
        """Closed loops, then open ones."""
        closed = [ClosedLoop(concurrency) for concurrency in self.clients]
        return [*closed, *(OpenLoop(rate, self.seed) for rate in self.rates)]


Service = Callable[[int, Mapping[str, str]], AbstractContextManager[str]]
"""From the longest sequence in tokens, and settings as environment variables, to a service of its own, by its URL."""


def load_bench(
    model: str, trace: Trace, settings: LoadSettings, console: Console, *, service: Service
) -> dict[str, Any]:
    """Measure every traffic by every mode on one service; where a curve is wanted, that on a second one.

    Returns {model, trace, ingested, results, curve, first_error}: `results` has the rows of `load_row`;
    `curve` those of `LoadRun.curve`, or None; `first_error` what the first failed request said, or None. Raises
    InvalidRequestError where the trace is too short, KVBlendError where a row has no answer.
    """
    num_needed = max(settings.num_warm + settings.num_measured, settings.num_curve)
    if len(trace.requests) < num_needed:
        raise InvalidRequestError(f"the trace {trace.name} has {len(trace.requests)} requests, not {num_needed}")
    bench = _Bench.of(model, trace, settings, console)
    with service(bench.max_model_len, {}) as url:
        rows = asyncio.run(bench.rows(url))
    curve = None
    if settings.num_curve:
        with service(bench.max_model_len, bench.curve_budget) as url:
            curve = asyncio.run(bench.curve(url))
    return {
        "model": Path(model).name,
        "trace": {
            "name": trace.name,
            "requests": len(trace.requests),
            "passages": len(trace.passage_tokens),
            "seen_ratio": trace.seen_ratio,
        },
        "ingested": settings.ingested,
        "results": rows,
        "curve": curve,
        "first_error": next(iter(bench.failures), None),
    }


@dataclass
class _Bench:
    """One model and what it is asked; `failures` and `passage_bytes` come of the rows."""

    settings: LoadSettings
    prompts: TracePrompts
    bystander_texts: Sequence[str]
    max_model_len: int
    console: Console
    failures: list[str] = field(default_factory=list)
    passage_bytes: float = 0.0

    @classmethod
    def of(cls, model: str, trace: Trace, settings: LoadSettings, console: Console) -> "_Bench":
        """Map the trace to text by the model's tokenizer, and find how long its longest prompt is."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        ratio = chars_per_token(tokenizer)
        scale = settings.context_tokens / trace.mean_context_tokens
        texts = PassageTexts(trace.passage_tokens, scale=scale, chars_per_token=ratio)
        prompts = TracePrompts(trace, texts, settings.num_warm, settings.num_measured)
        bystander_texts = [bystander_text(n, chars_per_token=ratio) for n in range(settings.num_bystanders)]
        asked = prompts.first(max(settings.num_warm + settings.num_measured, settings.num_curve))
        documents = distinct_documents(asked)
        ids = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
        num_tokens = dict(zip(documents, map(len, ids), strict=True))
        longest = max(sum(num_tokens[document] for document in prompt.documents) for prompt in asked)
        max_model_len = longest + settings.answer_tokens + ROOM_TOKENS
        return cls(settings, prompts, bystander_texts, max_model_len, console)

    @property
    def curve_budget(self) -> dict[str, str]:
        """Settings of a store that holds a share of the passages of the curve's requests, in its CPU tier alone."""
        num_passages = len(distinct_documents(self.prompts.first(self.settings.num_curve)))
        num_bytes = round(CURVE_SHARE * num_passages * self.passage_bytes)
        return {"KVBLEND_CPU_BYTES": str(num_bytes), "KVBLEND_DISK_BYTES": "0"}

    async def rows(self, url: str) -> Rows:
        async with load_client(url) as client:
            run = await self._run(client)
            modes = self.settings.modes
            if "blend" in modes or self.settings.num_curve:
                await run.store_warm()
                self.passage_bytes = await passage_bytes(client)
            rows = await run.rows(self.settings.traffics, modes, ingested=self.settings.ingested)
            if self.settings.repeat:
                rows += await run.repeat_rows(self.settings.clients, modes)
            return rows

    async def curve(self, url: str) -> Rows:
        async with load_client(url) as client:
            run = await self._run(client)
            return await run.curve(self.settings.num_curve, self.settings.clients[0])

    async def _run(self, client: AsyncClient) -> LoadRun:
        if not await cost_fit_ended(client):
            self.console.print("the service was not seen to time its requests: short prompts may be blended too")
        return LoadRun(
            client,
            self.prompts,
            answer_tokens=self.settings.answer_tokens,
            console=self.console,
            bystander_texts=self.bystander_texts,
            failures=self.failures,
        )
