"""Drive real vLLM step by step: aborts, preemptions, shared blocks, bursts. Prints one JSON line.

python stepping_scenario.py MODEL_FOLDER STORE_FOLDER lifecycle | burst
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import SamplingParams
from vllm.distributed.kv_transfer import get_kv_transfer_group

SCENARIO = runpy.run_path(str(Path(__file__).with_name("scenario.py")))
NUM_BLOCKS = 110
BURST = 16


class Stepper:
    """An engine whose steps are taken one at a time."""

    def __init__(self, model: str, store: Path) -> None:
        arguments = {"num_gpu_blocks_override": NUM_BLOCKS, "max_num_seqs": BURST + 2, "async_scheduling": False}
        self.engine = SCENARIO["Engine"](model, store, arguments)
        self.core = self.engine.llm.llm_engine
        self.scheduler = self.core.engine_core.engine_core.scheduler
        self.tokens: dict[str, list[int]] = {}
        self.preempted: set[str] = set()

    def add(self, name: str, prompt: list[int], order: dict[str, Any] | None, max_tokens: int) -> None:
        extra = {"kv_transfer_params": {"kvblend": order}} if order is not None else None
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, extra_args=extra)
        self.core.add_request(name, {"prompt_token_ids": prompt}, params)
        self.tokens[name] = []

    def step(self) -> float:
        """One engine step; returns its seconds."""
        began = time.perf_counter()
        outputs = self.core.step()
        spent = time.perf_counter() - began
        for output in outputs:
            self.tokens[output.request_id] = list(output.outputs[0].token_ids)
        self.preempted |= {name for name, request in self.scheduler.requests.items() if request.num_preemptions}
        return spent

    def drain(self) -> list[float]:
        spent = []
        while self.core.has_unfinished_requests():
            spent.append(self.step())
        self.step()  # what finished last is told to the worker half with the next step
        return spent

    def leaks(self) -> dict[str, int]:
        """What is still held once nothing runs."""
        connector = get_kv_transfer_group()
        return {
            "blocks": NUM_BLOCKS - 1 - self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            "tracked": len(self.scheduler.connector.scheduler._tracked),
            "jobs": len(connector.worker.queue) + connector.worker.num_encodes,
            "requests": len(self.scheduler.requests),
        }


def broken_forward(*_: Any) -> None:
    raise RuntimeError("out of memory")


class Questions:
    """Prompts over the same four passages that differ in their question."""

    def __init__(self, prompts: Any) -> None:
        self.prompts = prompts
        self.context = prompts.prompt[: -len(prompts.question)]

    def __call__(self, index: int) -> list[int]:
        return [*self.context, *self.tail(index)]

    def tail(self, index: int) -> list[int]:
        return [token + index for token in self.prompts.question]

    def plan(self, ratio: float) -> dict[str, Any]:
        return {"blend": self.prompts.plan(ratio)}


def lifecycle(stepper: Stepper, ask: Questions) -> dict[str, Any]:
    """Aborts, shared blocks, local hits, preemptions."""
    results: dict[str, Any] = {}
    # an abort while the repair is under way (ratio 1: three capped steps), and one before it begins
    stepper.add("aborted", ask(1), ask.plan(1.0), 8)
    stepper.step()
    results["loading"] = len(get_kv_transfer_group().worker.queue)
    stepper.add("aborted early", ask(2), ask.plan(1.0), 8)
    stepper.core.abort_request(["aborted", "aborted early"])
    stepper.step()
    stepper.drain()
    results["after_abort"] = stepper.leaks()

    # a plain request and a blended one in one step, sharing blocks that the plain one fills in that step
    stepper.engine.llm.reset_prefix_cache()
    stepper.add("plain", ask(3), None, 8)
    stepper.add("blended", ask(4), ask.plan(1.0), 8)
    stepper.drain()
    stepper.engine.llm.reset_prefix_cache()
    stepper.add("blended alone", ask(4), None, 8)
    stepper.drain()
    results["same_step"] = [stepper.tokens["blended"], stepper.tokens["blended alone"]]

    # a true local hit, longer than the preamble, is kept; what lies behind it is blended
    stepper.engine.llm.reset_prefix_cache()
    half = len(ask.prompts.preamble) + len(ask.prompts.passages[0]) + len(ask.prompts.passages[1])
    (_first,) = stepper.engine.run([(ask.context[:half] + ask.tail(5), None)])
    (kept,) = stepper.engine.run([(ask(6), ask.plan(1.0))])
    stepper.engine.llm.reset_prefix_cache()
    (fresh,) = stepper.engine.run([(ask(6), None)])
    results["local_hit"] = {"report": kept["report"], "tokens": kept["tokens"], "fresh": fresh["tokens"], "half": half}

    # a worker that cannot repair: the request is prefilled, once
    stepper.engine.llm.reset_prefix_cache()
    model = get_kv_transfer_group().worker.model
    model.forward = broken_forward
    (failed,) = stepper.engine.run([(ask(7), ask.plan(1.0))])
    del model.forward
    stepper.engine.llm.reset_prefix_cache()
    (fresh,) = stepper.engine.run([(ask(7), None)])
    results["failed"] = {"report": failed["report"], "tokens": failed["tokens"], "fresh": fresh["tokens"]}

    # more decodes than blocks: some are preempted, and each ends as it does alone
    stepper.engine.llm.reset_prefix_cache()
    names = [f"preempted {index}" for index in range(8)]
    for index, name in enumerate(names):
        stepper.add(name, ask(10 + index), ask.plan(1.0), 80)
    stepper.drain()
    results["num_preempted"] = len(stepper.preempted)
    results["preempted"] = []
    for index, name in enumerate(names):
        stepper.engine.llm.reset_prefix_cache()
        stepper.add("alone", ask(10 + index), None, 80)
        stepper.drain()
        results["preempted"].append([stepper.tokens[name], stepper.tokens["alone"]])
    results["after_preemption"] = stepper.leaks()
    return results


def burst(stepper: Stepper, ask: Questions) -> dict[str, Any]:
    """Sixteen blends beside a decode: its longest gap against a step that repairs as much as one step may."""
    alone = []
    for index in range(3):
        stepper.add(f"lone {index}", ask(40 + index), ask.plan(1.0), 1)
        alone.append(max(stepper.drain()))
    stepper.add("decode", ask.prompts.question, None, 120)
    for _ in range(5):
        stepper.step()
    for index in range(BURST):
        stepper.add(f"burst {index}", ask(50 + index), ask.plan(0.15), 4)
    gaps = []
    while not stepper.tokens[f"burst {BURST - 1}"]:
        gaps.append(stepper.step())
    decoded = len(stepper.tokens["decode"])
    stepper.drain()
    return {"longest_gap_s": max(gaps), "capped_step_s": sorted(alone)[1], "steps": len(gaps), "decoded": decoded}


def main() -> None:
    stepper = Stepper(sys.argv[1], Path(sys.argv[2]))
    prompts = SCENARIO["Prompts"]()
    stepper.engine.run([(tokens, {"encode": order}) for tokens, order in prompts.encodes()])
    results = {"lifecycle": lifecycle, "burst": burst}[sys.argv[3]](stepper, Questions(prompts))
    print("RESULTS " + json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
