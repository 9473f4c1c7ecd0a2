"""One vLLM engine in this process, with the connector and a store of its own, for the benchmarks."""

import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from kvblend.api.prompt.builder import DEFAULT_PREAMBLE
from kvblend.core.identity import token_hash
from kvblend.core.machine import cpu_name
from kvblend.eval.bench.prompts import BenchPrompts
from kvblend.eval.bench.vllm_environment import set_vllm_environment

__all__ = ["ENCODE_CONTEXT_TOKENS", "BenchEngine"]

ENCODE_CONTEXT_TOKENS = 256
"""Preamble and warm context together: whole blocks of every size."""


class BenchEngine:
    """A context manager: vLLM starts on entry; its passage KV goes on exit. One a process.

    `dtype` is vLLM's name of one.
    """

    def __init__(self, model: str, *, dtype: str, max_model_len: int, instruction: str = DEFAULT_PREAMBLE) -> None:
        self._model, self._dtype, self._max_model_len = model, dtype, max_model_len
        self._instruction = instruction
        self.encode_context: list[int] = []

    def __enter__(self) -> Self:
        set_vllm_environment()
        from vllm import LLM

        from kvblend.eval.bench.forced_answer import ForcedAnswer

        self._folder = tempfile.TemporaryDirectory(prefix="kvblend-bench-")
        folder = Path(self._folder.name)
        settings: dict[str, Any] = {"disk_path": str(folder / "kv"), "control": f"ipc://{folder}/control.sock"}
        if Path("/dev/shm").is_dir():
            self._cpu_folder = tempfile.TemporaryDirectory(prefix="kvblend-bench-", dir="/dev/shm")
            settings["cpu_path"] = self._cpu_folder.name
        settings["repair_tokens_per_step"] = 4096
        self.llm = LLM(
            self._model,
            dtype=self._dtype,
            max_model_len=self._max_model_len,
            max_num_batched_tokens=max(2048, self._max_model_len),
            load_format="kvblend",
            max_logprobs=-1,
            logits_processors=[ForcedAnswer],
            kv_transfer_config={
                "kv_connector": "KVBlendConnector",
                "kv_connector_module_path": "kvblend.vllm_connector",
                "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": settings,
            },
        )
        self._touch_caches()
        self.tokenizer = self.llm.get_tokenizer()
        self.prompts = BenchPrompts(self.tokenizer, self._instruction)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()
        if hasattr(self, "_cpu_folder"):
            self._cpu_folder.cleanup()

    @property
    def versions(self) -> dict[str, str]:
        import vllm

        return {"vllm": vllm.__version__, "torch": torch.__version__, "python": platform.python_version()}

    @property
    def machine(self) -> dict[str, Any]:
        threads = torch.get_num_threads()
        return {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": threads, "dtype": self.dtype}

    @property
    def dtype(self) -> str:
        """What the model runs in, as torch names it."""
        return str(self._config.model_config.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where the model and its paged KV are."""
        return torch.device(self._config.device_config.device)

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        model, parallel = self._config.model_config, self._config.parallel_config
        num_values: int = 2 * model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size()
        num_bytes: int = num_values * model.dtype.itemsize
        return num_bytes

    @property
    def _config(self) -> Any:
        return self.llm.llm_engine.vllm_config

    def _touch_caches(self) -> None:
        """Have every block's memory there, as it is when a server has run for a while.

        vLLM gives freed blocks out again last of all, so that each request of a short run would have the operating
        system find and clear memory for all of its blocks.
        """
        context = self._config.compilation_config.static_forward_context
        for layer in context.values():
            cache = getattr(layer, "kv_cache", None)
            if isinstance(cache, torch.Tensor):
                cache.zero_()

    def warm(self, passage: list[int]) -> None:
        """Make the encode context: preamble and start of a passage that is in no prompt. Stores the preamble's KV."""
        self.encode_context = self.prompts.preamble + passage[: ENCODE_CONTEXT_TOKENS - len(self.prompts.preamble)]
        self.generate(self.prompts.preamble, order={"encode": {"spans": [[0, len(self.prompts.preamble)]]}})

    def encode(self, passage: list[int]) -> None:
        """Store a passage's KV behind the encode context."""
        self.generate_all([self.encode_request(passage)])

    def encode_request(self, passage: list[int], *, warm: bool = True) -> tuple[list[int], dict[str, Any]]:
        """The prompt and the order that store a passage's KV; behind the preamble alone where not `warm`."""
        context = self.encode_context if warm else self.prompts.preamble
        return context + passage, {"encode": {"spans": [[len(context), len(context) + len(passage)]]}}

    def plan(self, passages: list[list[int]], ratio: float) -> dict[str, Any]:
        """The order that blends these passages behind the preamble."""
        context = token_hash(self.encode_context)
        spans: list[dict[str, Any]] = [{"kind": "exact", "num_tokens": len(self.prompts.preamble)}]
        spans += [{"kind": "passage", "num_tokens": len(p), "encode_contexts": [context]} for p in passages]
        return {"blend": {"spans": spans, "recompute_ratio": ratio}}

    def sampling(
        self,
        *,
        order: dict[str, Any] | None = None,
        answer: list[int] | None = None,
        max_tokens: int = 1,
        distributions: bool = False,
    ) -> Any:
        """Greedy sampling; `answer` forces the tokens, `distributions` keeps every token's logprob."""
        from vllm import SamplingParams

        extra: dict[str, Any] = {}
        if order is not None:
            extra["kv_transfer_params"] = {"kvblend": order}
        if answer:
            extra["forced_answer"] = answer
        return SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            logprobs=-1 if distributions else None,
            ignore_eos=True,
            extra_args=extra or None,
        )

    def generate(self, prompt: list[int], **sampling: Any) -> Any:
        """Run one request; keywords are those of `sampling`."""
        output = self.llm.generate({"prompt_token_ids": prompt}, self.sampling(**sampling), use_tqdm=False)[0]
        self._commit()
        return output

    def generate_all(self, requests: Sequence[tuple[list[int], dict[str, Any] | None]]) -> None:
        """Run (prompt, order) requests together, one token each."""
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
        self.llm.generate(prompts, [self.sampling(order=order) for _, order in requests], use_tqdm=False)
        self._commit()

    def _commit(self) -> None:
        """Step until every passage that was encoded is written: the engine tells of it with a step."""
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        while scheduler.connector.has_pending_push_work():
            self.llm.llm_engine.step()

    def answer_distributions(
        self, prompt: list[int], *, order: dict[str, Any] | None, answer: list[int] | None, num_tokens: int
    ) -> tuple[list[int], torch.Tensor]:
        """(answer tokens, log-probabilities fp32 `[num_tokens, vocabulary]`) behind an empty prefix cache."""
        self.llm.reset_prefix_cache()
        output = self.generate(prompt, order=order, answer=answer, max_tokens=num_tokens, distributions=True)
        steps = output.outputs[0].logprobs
        logprobs = torch.full((len(steps), max(max(step) for step in steps) + 1), float("-inf"))
        for row, step in zip(logprobs, steps, strict=True):
            row[torch.tensor(list(step))] = torch.tensor([entry.logprob for entry in step.values()])
        return list(output.outputs[0].token_ids), logprobs
