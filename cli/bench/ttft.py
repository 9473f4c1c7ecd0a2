"""Time to first token of every way to answer one prompt, on one vLLM engine in this process."""

import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from kvblend.cli.bench.passages import bench_passages
from kvblend.core.identity import token_hash

__all__ = ["TTFTBench"]

PASSAGE_TOKENS = 500
ENCODE_CONTEXT_TOKENS = 256
ANSWER_TOKENS = 16
RATIOS = (0.05, 0.15, 0.30)
PREAMBLE = "<|im_start|>system\nAnswer the question using the passages.<|im_end|>\n<|im_start|>user\nPassages:\n"
QUESTION = "Question: Which function reads a file line by line?<|im_end|>\n<|im_start|>assistant\n"


class TTFTBench:
    """Full prefill, prefix cache, full reuse and blends take turns on the same prompts, the cache emptied before each.

    The prefix cache's mode is warmed with the same passages in reverse order.
    """

    def __init__(self, model: str, *, dtype: str, repeats: int, console: Console) -> None:
        self._model, self._dtype, self._repeats, self._console = model, dtype, repeats, console

    def run(self, context_tokens: list[int]) -> dict[str, Any]:
        """Returns {machine, versions, results}; one row of `results` a context length and mode."""
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
        with tempfile.TemporaryDirectory() as store, Progress(console=self._console) as progress:
            starting = progress.add_task("start vLLM", total=None)
            self._start(Path(store), max(context_tokens))
            progress.remove_task(starting)
            counts = [max(1, round(tokens / PASSAGE_TOKENS)) for tokens in context_tokens]
            passages = bench_passages(self._tokenizer, num_passages=max(counts) + 1, passage_tokens=PASSAGE_TOKENS)
            self._encode(passages[1:], warm=passages[0], progress=progress)
            rows = []
            for tokens, count in zip(context_tokens, counts, strict=True):
                rows += self._compare(tokens, passages[1 : count + 1], progress)
        import vllm

        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "dtype": self._dtype}
        versions = {"vllm": vllm.__version__, "torch": torch.__version__, "python": platform.python_version()}
        return {"machine": machine, "versions": versions, "model": Path(self._model).name, "results": rows}

    def _start(self, store: Path, longest: int) -> None:
        from vllm import LLM

        from kvblend.cli.bench.forced_answer import ForcedAnswer

        extra = {"disk_path": str(store), "cpu_path": f"/dev/shm/kvblend-bench-{os.getpid()}"}
        extra["control"] = f"ipc://{store}/control.sock"
        max_model_len = longest + 1024
        self._llm = LLM(
            self._model,
            dtype=self._dtype,
            max_model_len=max_model_len,
            max_num_batched_tokens=max(2048, max_model_len),
            enforce_eager=True,
            load_format="kvblend",
            max_logprobs=-1,
            logits_processors=[ForcedAnswer],
            kv_transfer_config={
                "kv_connector": "KVBlendConnector",
                "kv_connector_module_path": "kvblend.vllm_connector",
                "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": {**extra, "repair_tokens_per_step": 4096},
            },
        )
        self._tokenizer = self._llm.get_tokenizer()
        self._preamble = self._ids(PREAMBLE)
        self._question = self._ids(QUESTION)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _encode(self, passages: list[list[int]], *, warm: list[int], progress: Progress) -> None:
        self._encode_context = self._preamble + warm[: ENCODE_CONTEXT_TOKENS - len(self._preamble)]
        start = len(self._encode_context)
        self._generate(self._preamble, order={"encode": {"start": 0, "end": len(self._preamble)}})
        for passage in progress.track(passages, description="encode passages"):
            end = start + len(passage)
            self._generate(self._encode_context + passage, order={"encode": {"start": start, "end": end}})

    def _generate(
        self, prompt: list[int], *, order: dict[str, Any] | None = None, answer: list[int] | None = None
    ) -> Any:
        from vllm import SamplingParams

        extra: dict[str, Any] = {}
        if order is not None:
            extra["kv_transfer_params"] = {"kvblend": order}
        if answer:
            extra["forced_answer"] = answer
        params = SamplingParams(
            temperature=0,
            max_tokens=ANSWER_TOKENS if answer is not None else 1,
            logprobs=-1 if answer is not None else None,
            ignore_eos=True,
            extra_args=extra or None,
        )
        return self._llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0]

    def _compare(self, context_tokens: int, passages: list[list[int]], progress: Progress) -> list[dict[str, Any]]:
        prompt = self._preamble + [token for passage in passages for token in passage] + self._question
        reordered = self._preamble + [token for passage in passages[::-1] for token in passage] + self._question
        context = token_hash(self._encode_context)
        spans: list[dict[str, Any]] = [{"kind": "exact", "num_tokens": len(self._preamble)}]
        spans += [{"kind": "passage", "num_tokens": len(p), "encode_context": context} for p in passages]

        def blend(ratio: float) -> dict[str, Any]:
            return {"blend": {"spans": spans, "recompute_ratio": ratio}}

        modes: list[tuple[str, float | None, dict[str, Any] | None]] = [("full_prefill", None, None)]
        modes += [("prefix_cache", None, None), ("full_reuse", 0.0, blend(0.0))]
        modes += [("blend", ratio, blend(ratio)) for ratio in RATIOS]
        timings: dict[int, list[tuple[float, dict[str, float] | None]]] = {index: [] for index in range(len(modes))}
        task = progress.add_task(f"{context_tokens} tokens", total=len(modes) * (self._repeats + 1))

        def prepared(mode: str) -> None:
            self._llm.reset_prefix_cache()
            if mode == "prefix_cache":
                self._generate(reordered)

        for _ in range(self._repeats):
            for index, (mode, _ratio, order) in enumerate(modes):
                prepared(mode)
                timings[index].append(self._time(prompt, order))
                progress.advance(task)
        reference, rows = None, []
        for index, (mode, ratio, order) in enumerate(modes):
            prepared(mode)
            output = self._generate(prompt, order=order, answer=reference[0] if reference else [])
            logprobs = _distributions(output)
            if reference is None:
                reference = (list(output.outputs[0].token_ids), logprobs)
            kl = float((reference[1].exp() * (reference[1] - logprobs)).sum(-1).mean())
            rows.append(_row(context_tokens, mode, ratio, timings[index], None if mode == "full_prefill" else kl))
            progress.advance(task)
        return rows

    def _time(self, prompt: list[int], order: dict[str, Any] | None) -> tuple[float, dict[str, float] | None]:
        """Milliseconds to the first token, and for a blend those of its steps."""
        began = time.perf_counter()
        output = self._generate(prompt, order=order)
        ttft_ms = (time.perf_counter() - began) * 1e3
        report = (output.kv_transfer_params or {}).get("kvblend")
        if report is None:
            return ttft_ms, None
        if report["outcome"] != "blended":
            raise RuntimeError(f"the blend was not made: {report}")
        steps: dict[str, float] = report["steps_ms"]
        return ttft_ms, {**steps, "question": ttft_ms - sum(steps.values())}


def _distributions(output: Any) -> torch.Tensor:
    """Log-probabilities of every token at every step of an answer, fp32 `[num_steps, vocabulary]`."""
    steps = output.outputs[0].logprobs
    result = torch.full((len(steps), max(max(step) for step in steps) + 1), float("-inf"))
    for row, step in zip(result, steps, strict=True):
        row[torch.tensor(list(step))] = torch.tensor([entry.logprob for entry in step.values()])
    return result


def _row(
    context_tokens: int,
    mode: str,
    ratio: float | None,
    timings: list[tuple[float, dict[str, float] | None]],
    kl: float | None,
) -> dict[str, Any]:
    times = sorted(ttft for ttft, _ in timings)
    quintiles = statistics.quantiles(times, n=5, method="inclusive") if len(times) > 1 else [times[0]] * 4
    steps = [step for _, step in timings if step is not None]
    return {
        "context_tokens": context_tokens,
        "mode": mode,
        "recompute_ratio": ratio,
        "ttft_ms_p50": statistics.median(times),
        "ttft_ms_p20": quintiles[0],
        "ttft_ms_p80": quintiles[3],
        "kl": kl,
        "steps_ms": {name: statistics.median(step[name] for step in steps) for name in steps[0]} if steps else None,
    }
