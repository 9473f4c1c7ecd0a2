"""Encode and blend on real vLLM in this process, and save what came out, for `torch.load`.

python scenario.py MODEL_FOLDER STORE_FOLDER OUTPUT_FILE ENGINE_ARGUMENTS_JSON

Each prompt is first answered by full prefill; every other answer is made to take the same tokens, so that the two can
be compared step by step whatever rounding may do to a choice.

The arguments name the dtype. "paged" among them is ours: the CUDA path, by the kernels' PyTorch references, or in
Triton's interpreter where that is switched on, with a GPU tier of so many bytes in CPU memory; the connector is then
called as model runner V2, CUDA's, calls it.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate, islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
from vllm import LLM, SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector
from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin

from kvblend.core.identity import token_hash
from kvblend.core.plan import REPORT
from kvblend.eval.bench.forced_answer import ForcedAnswer
from kvblend.eval.questions.question_set import load_questions
from kvblend.vllm_connector.engine import caches as engine_caches

PREAMBLE, WARM, PASSAGE, PASSAGES, QUESTION = 33, 43, 90, 4, 14
"""The preamble fills a block of 32, which is then a local hit of every blend."""
ANSWER_TOKENS = 16
STEP_TOKENS = 128
"""A step's share of a blend's repair."""


def append_whole(
    flat: Any, tokens: list[int], logprobs: list[float], ranks: Iterable[int], decoded: Iterable[str | None]
) -> None:
    """As vLLM does, whose loop over a whole vocabulary takes longer than a tiny model's step."""
    flat.start_indices.append(len(flat.logprobs))
    flat.token_ids.extend(tokens)
    flat.logprobs.extend(logprobs)
    flat.ranks.extend(islice(ranks, len(tokens)))
    flat.decoded_tokens.extend(islice(decoded, len(tokens)))
    flat.end_indices.append(len(flat.logprobs))


FlatLogprobs.append_fast = append_whole


def connector_config(store: Path, gpu_bytes: int = 0) -> dict[str, Any]:
    extra = {
        "gpu_bytes": gpu_bytes,
        "cpu_bytes": 0,
        "disk_path": str(store),
        "control": f"ipc://{store}/control.sock",
        "repair_tokens_per_step": STEP_TOKENS,
        "loading": "always",  # the interpreter takes longer to load than to compute
        "codec": "raw",  # answers are compared with those of KV that was never stored
    }
    return {
        "kv_connector": "KVBlendConnector",
        "kv_connector_module_path": "kvblend.vllm_connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": extra,
    }


def call_as_runner_v2(llm: LLM) -> None:
    """Let vLLM's own V2 class stand between the CPU's model runner, which is V1, and the connector."""
    config = llm.llm_engine.vllm_config
    layers = config.compilation_config.static_forward_context
    active = ActiveKVConnector(config, {name: layer.kv_cache for name, layer in layers.items()})

    @contextmanager
    def around_forward(scheduler_output: Any, defer_finalize: bool = False) -> Iterator[KVConnectorOutput]:
        tokens = scheduler_output.num_scheduled_tokens
        batch = SimpleNamespace(
            idx_mapping=list(range(len(tokens))), req_ids=list(tokens), num_tokens=sum(tokens.values())
        )
        output = KVConnectorOutput()
        active.pre_forward(scheduler_output, batch, attn_metadata={})
        yield output
        active.finish_forward()
        vars(output).update(vars(active.post_forward(scheduler_output.finished_req_ids)))

    def no_forward(scheduler_output: Any, vllm_config: Any) -> Any:
        return active.no_forward(scheduler_output)

    KVConnectorModelRunnerMixin._get_kv_connector_output = staticmethod(around_forward)
    KVConnectorModelRunnerMixin.kv_connector_no_forward = staticmethod(no_forward)


class Prompts:
    """One prompt of four passages, and the orders that encode and blend it.

    A running text, cut up: a real model's answer then depends on how the passages see each other.
    """

    def __init__(self, tokenizer: Any) -> None:
        texts = dict.fromkeys(text for question in load_questions(None) for text in question.passages)
        text: list[int] = tokenizer("\n\n".join(texts), add_special_tokens=False).input_ids
        pieces = iter(text)

        def tokens(count: int) -> list[int]:
            return [next(pieces) for _ in range(count)]

        self.preamble, warm = tokens(PREAMBLE), tokens(WARM)
        self.passages = [tokens(PASSAGE + index) for index in range(PASSAGES)]
        self.question = tokens(QUESTION)
        self.encode_context = self.preamble + warm

    @property
    def prompt(self) -> list[int]:
        return self.preamble + [token for passage in self.passages for token in passage] + self.question

    def encodes(self) -> list[tuple[list[int], dict[str, Any]]]:
        orders = [(self.preamble, {"spans": [[0, PREAMBLE]]})]
        start = len(self.encode_context)
        for passage in self.passages:
            orders.append((self.encode_context + passage, {"spans": [[start, start + len(passage)]]}))
        return orders

    def document(self) -> tuple[list[int], dict[str, Any]]:
        """All passages in one pass behind the preamble, each kept: as they stand in the prompt."""
        ends = list(accumulate((len(passage) for passage in self.passages), initial=PREAMBLE))
        return self.prompt[: ends[-1]], {"spans": [list(span) for span in pairwise(ends)]}

    def document_plan(self) -> dict[str, Any]:
        """Behind the encode contexts that `document` gives them, or, second best, the others'; nothing recomputed."""
        plan, start = self.plan(0.0), 0
        for span in plan["spans"]:
            if span["kind"] == "passage":
                span["encode_contexts"] = [token_hash(self.prompt[:start]), *span["encode_contexts"]]
            start += span["num_tokens"]
        return plan

    def plan(self, ratio: float, selector: str = "probe") -> dict[str, Any]:
        context = token_hash(self.encode_context)
        spans: list[dict[str, Any]] = [{"kind": "exact", "num_tokens": PREAMBLE}]
        spans += [{"kind": "passage", "num_tokens": len(p), "encode_contexts": [context]} for p in self.passages]
        return {"spans": spans, "recompute_ratio": ratio, "selector": selector}


class Engine:
    def __init__(self, model: str, store: Path, arguments: dict[str, Any]) -> None:
        defaults: dict[str, Any] = {
            "max_model_len": 1024,
            "block_size": 32,
            "enforce_eager": True,
            "load_format": "kvblend",
            "max_num_seqs": 8,
            "max_logprobs": -1,
            "logits_processors": [ForcedAnswer],
        }
        paged = arguments.pop("paged", None)
        if paged is not None:
            vars(engine_caches)["uses_kernel"] = lambda tensor: True
        self.llm = LLM(model, kv_transfer_config=connector_config(store, paged or 0), **{**defaults, **arguments})
        if paged is not None:
            call_as_runner_v2(self.llm)
        self._salts = 0

    def run(
        self,
        requests: list[tuple[list[int], dict[str, Any] | None]],
        *,
        alone: bool = False,
        answer: list[int] | None = None,
    ) -> list[Any]:
        """vLLM's outputs for (prompt, kvblend order), generated greedily or just the tokens of `answer`.

        `alone` keeps vLLM's prefix cache from hitting.
        """
        prompts: list[Any] = []
        params = []
        for tokens, order in requests:
            prompt: dict[str, Any] = {"prompt_token_ids": tokens}
            if alone:
                self._salts += 1
                prompt["cache_salt"] = f"alone-{self._salts}"
            prompts.append(prompt)
            encode = order is not None and "encode" in order
            params.append(sampling(order, 1 if encode else ANSWER_TOKENS, answer))
        outputs: list[Any] = self.llm.generate(prompts, params, use_tqdm=False)
        self.commit()
        return outputs

    def commit(self) -> None:
        """Step until every passage that was encoded is written."""
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        while scheduler.connector.has_pending_push_work():
            self.llm.llm_engine.step()


def sampling(
    order: dict[str, Any] | None, max_tokens: int, answer: list[int] | None = None, *, logprobs: int = -1
) -> SamplingParams:
    """Greedy sampling with a kvblend order, or of just the tokens of `answer`; with logprobs of all tokens, or of 0."""
    extra: dict[str, Any] = {}
    if order is not None:
        extra["kv_transfer_params"] = {"kvblend": order}
    if answer is not None:
        extra["forced_answer"] = answer
    return SamplingParams(
        temperature=0,
        max_tokens=max_tokens,
        logprobs=logprobs,
        flat_logprobs=True,
        detokenize=False,
        ignore_eos=True,
        extra_args=extra or None,
    )


def report_of(output: Any) -> dict[str, Any] | None:
    report: dict[str, Any] | None = (output.kv_transfer_params or {}).get(REPORT)
    return report


def summary(output: Any) -> dict[str, Any]:
    """An answer's tokens, the log-probabilities `[num_steps, vocabulary]` that they were taken by, the blend report."""
    completion = output.outputs[0]
    flat = completion.logprobs
    steps = []
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
        tokens, values = torch.tensor(flat.token_ids[start:end]), torch.tensor(flat.logprobs[start:end])
        steps.append(torch.full((int(tokens.max()) + 1,), torch.nan).scatter(0, tokens, values))
    return {"tokens": list(completion.token_ids), "logprobs": torch.stack(steps), "report": report_of(output)}


def damage(store: Path) -> None:
    """Delete one passage's file (of the first KV heads), truncate another's, and flip a bit of a third's."""
    lost, short, flipped = sorted(store.rglob("*.h0-*.kv"), key=lambda path: path.stat().st_size)[1:4]
    lost.unlink()
    os.truncate(short, short.stat().st_size // 2)
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.chmod(0o600)
    flipped.write_bytes(content)


def main() -> None:
    model, store, output, arguments = sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    engine = Engine(model, store, arguments)
    prompts = Prompts(engine.llm.get_tokenizer())
    prompt = prompts.prompt
    results: dict[str, Any] = {"prompt": vars(prompts), "prompt_tokens": len(prompts.prompt)}

    def ask(name: str, prompt: list[int], order: dict[str, Any] | None, *, like: str = "") -> None:
        answer = results[like]["tokens"] if like else None
        results[name] = summary(engine.run([(prompt, order)], alone=not like, answer=answer)[0])

    ask("fresh", prompt, None)
    engine.run([(tokens, {"encode": order}) for tokens, order in prompts.encodes()])
    results["files"] = len(list(store.rglob("*.kv")))
    for name, ratio, selector in (
        ("ratio_1", 1.0, "probe"),
        ("all", 0.0, "all"),
        ("ratio_0", 0.0, "probe"),
        ("none", 1.0, "none"),
        ("ratio_15", 0.15, "probe"),
        ("ratio_15_again", 0.15, "probe"),
    ):
        ask(name, prompt, {"blend": prompts.plan(ratio, selector)}, like="fresh")
    ask("plain_after", prompt, None, like="fresh")
    ask("malformed", prompt, {"blend": {"spans": [], "recompute_ratio": 2}}, like="fresh")
    other = prompt[:-QUESTION] + prompts.question[::-1]
    ask("other_fresh", other, None)
    ask("other_question", other, {"blend": prompts.plan(1.0)}, like="other_fresh")
    together = [(prompt, {"blend": prompts.plan(0.3)}), (other, {"blend": prompts.plan(0.3)}), (other[::-1], None)]
    results["together"] = [report_of(answered) for answered in engine.run(together)]
    damage(store)
    engine.llm.reset_prefix_cache()
    ask("damaged_fresh", prompt[:-1], None)
    ask("damaged", prompt[:-1], {"blend": prompts.plan(1.0)}, like="damaged_fresh")
    tokens, order = prompts.document()
    engine.run([(tokens, {"encode": order})])
    ask("document", prompt, {"blend": prompts.document_plan()}, like="fresh")
    torch.save(results, output)


if __name__ == "__main__":
    main()
