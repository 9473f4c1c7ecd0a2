"""Encode and blend on real vLLM in this process, and print what came out as one JSON line.

python scenario.py MODEL_FOLDER STORE_FOLDER [ENGINE_ARGUMENTS_JSON]

Of the arguments, "paged" is ours: the CUDA path, by the kernels' PyTorch references, or in Triton's interpreter where
that is switched on, with a GPU tier of so many bytes in CPU memory; the connector is then called as model runner V2,
CUDA's, calls it.
"""

import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector
from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin

from kvblend.core.identity import token_hash
from kvblend.vllm_connector import engine_caches

PREAMBLE, WARM, PASSAGE, PASSAGES, QUESTION = 33, 43, 90, 4, 14
"""The preamble fills a block of 32, which is then a local hit of every blend."""
ANSWER_TOKENS = 8


def connector_config(store: Path, gpu_bytes: int = 0) -> dict[str, Any]:
    extra = {
        "gpu_bytes": gpu_bytes,
        "cpu_bytes": 0,
        "disk_path": str(store),
        "control": f"ipc://{store}/control.sock",
        "repair_tokens_per_step": 128,
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
    """One prompt of four passages, and the orders that encode and blend it."""

    def __init__(self, seed: int = 0) -> None:
        pick = random.Random(seed)

        def tokens(count: int) -> list[int]:
            return [pick.randrange(1000, 40000) for _ in range(count)]

        self.preamble, warm = tokens(PREAMBLE), tokens(WARM)
        self.passages = [tokens(PASSAGE + index) for index in range(PASSAGES)]
        self.question = tokens(QUESTION)
        self.encode_context = self.preamble + warm

    @property
    def prompt(self) -> list[int]:
        return self.preamble + [token for passage in self.passages for token in passage] + self.question

    def encodes(self) -> list[tuple[list[int], dict[str, Any]]]:
        orders = [(self.preamble, {"start": 0, "end": PREAMBLE})]
        start = len(self.encode_context)
        for passage in self.passages:
            orders.append((self.encode_context + passage, {"start": start, "end": start + len(passage)}))
        return orders

    def plan(self, ratio: float, selector: str = "probe") -> dict[str, Any]:
        context = token_hash(self.encode_context)
        spans: list[dict[str, Any]] = [{"kind": "exact", "num_tokens": PREAMBLE}]
        spans += [{"kind": "passage", "num_tokens": len(p), "encode_context": context} for p in self.passages]
        return {"spans": spans, "recompute_ratio": ratio, "selector": selector}


class Engine:
    def __init__(self, model: str, store: Path, arguments: dict[str, Any]) -> None:
        defaults: dict[str, Any] = {
            "dtype": "float32",
            "max_model_len": 1024,
            "block_size": 32,
            "enforce_eager": True,
            "load_format": "kvblend",
            "max_num_seqs": 8,
        }
        paged = arguments.pop("paged", None)
        if paged is not None:
            vars(engine_caches)["uses_kernel"] = lambda tensor: True
        self.llm = LLM(model, kv_transfer_config=connector_config(store, paged or 0), **{**defaults, **arguments})
        if paged is not None:
            call_as_runner_v2(self.llm)
        self._salts = 0

    def run(self, requests: list[tuple[list[int], dict[str, Any] | None]], *, alone: bool = False) -> list[Any]:
        """Generate greedily for (prompt, kvblend order); `alone` keeps vLLM's prefix cache from hitting."""
        prompts: list[Any] = []
        params = []
        for tokens, order in requests:
            prompt: dict[str, Any] = {"prompt_token_ids": tokens}
            if alone:
                self._salts += 1
                prompt["cache_salt"] = f"alone-{self._salts}"
            prompts.append(prompt)
            encode = order is not None and "encode" in order
            extra = {"kv_transfer_params": {"kvblend": order}} if order is not None else None
            params.append(
                SamplingParams(
                    temperature=0,
                    max_tokens=1 if encode else ANSWER_TOKENS,
                    logprobs=3,
                    ignore_eos=True,
                    extra_args=extra,
                )
            )
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        self.commit()
        return [self._summary(output) for output in outputs]

    def commit(self) -> None:
        """Step until every passage that was encoded is written."""
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        while scheduler.connector.has_pending_push_work():
            self.llm.llm_engine.step()

    @staticmethod
    def _summary(output: Any) -> dict[str, Any]:
        completion = output.outputs[0]
        logprobs = [step[token].logprob for step, token in zip(completion.logprobs, completion.token_ids, strict=True)]
        report = (output.kv_transfer_params or {}).get("kvblend")
        return {"tokens": list(completion.token_ids), "logprobs": logprobs, "report": report}


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
    model, store = sys.argv[1], Path(sys.argv[2])
    arguments = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    engine, prompts = Engine(model, store, arguments), Prompts()
    prompt = prompts.prompt
    results: dict[str, Any] = {"prompt": vars(prompts)}
    (results["fresh"],) = engine.run([(prompt, None)], alone=True)
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
        (results[name],) = engine.run([(prompt, {"blend": prompts.plan(ratio, selector)})])
    (results["plain_after"],) = engine.run([(prompt, None)])
    (results["malformed"],) = engine.run([(prompt, {"blend": {"spans": [], "recompute_ratio": 2}})])
    other = prompt[:-QUESTION] + prompts.question[::-1]
    (results["other_question"],) = engine.run([(other, {"blend": prompts.plan(1.0)})])
    (results["other_fresh"],) = engine.run([(other, None)], alone=True)
    results["together"] = engine.run(
        [(prompt, {"blend": prompts.plan(0.3)}), (other, {"blend": prompts.plan(0.3)}), (other[::-1], None)]
    )
    damage(store)
    engine.llm.reset_prefix_cache()
    results["damaged"] = engine.run([(prompt[:-1], {"blend": prompts.plan(1.0)})])[0]
    (results["damaged_fresh"],) = engine.run([(prompt[:-1], None)], alone=True)
    print("RESULTS " + json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
