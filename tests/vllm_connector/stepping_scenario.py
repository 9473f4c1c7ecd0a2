"""Drive real vLLM step by step: aborts, preemptions, shared blocks, bursts. Prints one JSON line.

python stepping_scenario.py MODEL_FOLDER STORE_FOLDER DTYPE lifecycle | burst

What is compared takes the same tokens, as in scenario.py.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm.distributed.kv_transfer import get_kv_transfer_group

from kvblend.vllm_connector.scheduler.admission import Admission

SCENARIO = runpy.run_path(str(Path(__file__).with_name("scenario.py")))
ANSWER_TOKENS = SCENARIO["ANSWER_TOKENS"]
STEP_TOKENS = SCENARIO["STEP_TOKENS"]
NUM_BLOCKS = 110
BURST = 16
UNBOUNDED = 1 << 20


class Stepper:
    """An engine whose steps are taken one at a time."""

    def __init__(self, model: str, store: Path, dtype: str, **options: Any) -> None:
        arguments = {
            "dtype": dtype,
            "num_gpu_blocks_override": NUM_BLOCKS,
            "max_num_seqs": BURST + 2,
            "async_scheduling": False,
            **options,
        }
        self.engine = SCENARIO["Engine"](model, store, arguments)
        self.core = self.engine.llm.llm_engine
        self.scheduler = self.core.engine_core.engine_core.scheduler
        self.answers: dict[str, dict[str, Any]] = {}
        self.preempted: set[str] = set()

    def add(
        self,
        name: str,
        prompt: list[int],
        order: dict[str, Any] | None,
        max_tokens: int,
        *,
        answer: list[int] | None = None,
    ) -> None:
        self.core.add_request(
            name, {"prompt_token_ids": prompt}, SCENARIO["sampling"](order, max_tokens, answer, logprobs=0)
        )
        self.answers[name] = {"tokens": [], "logprobs": []}

    def alone(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        """What a full prefill of the prompt answers, with nothing beside it and nothing cached."""
        self.engine.llm.reset_prefix_cache()
        self.add("alone", prompt, None, max_tokens)
        self.drain()
        self.engine.llm.reset_prefix_cache()
        return self.answers["alone"]

    def step(self) -> None:
        """One engine step."""
        for output in self.core.step():
            self.answers[output.request_id] = answer_of(output)
        self.preempted |= {name for name, request in self.scheduler.requests.items() if request.num_preemptions}

    def drain(self) -> None:
        while self.core.has_unfinished_requests() or self.scheduler.connector.has_pending_push_work():
            self.step()
        self.step()  # what finished last is told to the worker half with the next step

    def leaks(self) -> dict[str, int]:
        """What is still held once nothing runs."""
        return {
            "blocks": NUM_BLOCKS - 1 - self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            "tracked": self.scheduler.connector.scheduler.num_tracked,
            "requests": len(self.scheduler.requests),
        }

    @staticmethod
    def jobs() -> dict[str, int]:
        """What the worker half of this process still has."""
        worker = get_kv_transfer_group().worker
        return {"jobs": len(worker.blends) + len(worker.encodes)}


def answer_of(output: Any) -> dict[str, Any]:
    """An answer's tokens, their logprobs, and the blend report."""
    completion = output.outputs[0]
    logprobs = [completion.logprobs.logprobs[start] for start in completion.logprobs.start_indices]
    return {"tokens": list(completion.token_ids), "logprobs": logprobs, "report": SCENARIO["report_of"](output)}


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
    while not len(get_kv_transfer_group().worker.blends):
        stepper.step()
    results["loading"] = len(get_kv_transfer_group().worker.blends)
    stepper.add("aborted early", ask(2), ask.plan(1.0), 8)
    stepper.core.abort_request(["aborted", "aborted early"])
    stepper.step()
    stepper.drain()
    results["after_abort"] = {**stepper.leaks(), **stepper.jobs()}

    # a plain request and a blended one in one step, sharing blocks that the plain one fills in that step
    reference = stepper.alone(ask(4), 8)
    stepper.add("plain", ask(3), None, 8)
    stepper.add("blended", ask(4), ask.plan(1.0), 8, answer=reference["tokens"])
    stepper.drain()
    results["same_step"] = [stepper.answers["blended"], reference]

    # a true local hit, longer than the preamble, is kept; what lies behind it is blended
    reference = stepper.alone(ask(6), ANSWER_TOKENS)
    half = len(ask.prompts.preamble) + len(ask.prompts.passages[0]) + len(ask.prompts.passages[1])
    stepper.engine.run([(ask.context[:half] + ask.tail(5), None)])
    (kept,) = stepper.engine.run([(ask(6), ask.plan(1.0))], answer=reference["tokens"])
    results["local_hit"] = {"ours": answer_of(kept), "fresh": reference, "half": half}

    # the negative control: nothing recomputed
    reference = stepper.alone(ask(8), ANSWER_TOKENS)
    (reused,) = stepper.engine.run([(ask(8), ask.plan(0.0))], answer=reference["tokens"])
    results["control"] = {"ours": answer_of(reused), "fresh": reference}

    # a worker that cannot repair: the request is prefilled, once
    reference = stepper.alone(ask(7), ANSWER_TOKENS)
    model = get_kv_transfer_group().worker.model
    model.forward = broken_forward
    (failed,) = stepper.engine.run([(ask(7), ask.plan(1.0))], answer=reference["tokens"])
    del model.forward
    results["failed"] = {"ours": answer_of(failed), "fresh": reference}

    # more decodes than blocks: some are preempted, and each ends as it does alone
    names = [f"preempted {index}" for index in range(8)]
    references = [stepper.alone(ask(10 + index), 80) for index in range(len(names))]
    for index, (name, reference) in enumerate(zip(names, references, strict=True)):
        stepper.add(name, ask(10 + index), ask.plan(1.0), 80, answer=reference["tokens"])
    stepper.drain()
    results["num_preempted"] = len(stepper.preempted)
    results["preempted"] = [
        [stepper.answers[name], reference] for name, reference in zip(names, references, strict=True)
    ]
    results["after_preemption"] = {**stepper.leaks(), **stepper.jobs()}
    return results


class PassTokens:
    """How many tokens the passes of blends have put through the model since it was last asked."""

    def __init__(self, model: Any) -> None:
        self._forward, self._count = model.forward, 0
        model.forward = self._counted

    def _counted(self, token_ids: Any, *arguments: Any) -> None:
        self._count += len(token_ids)
        self._forward(token_ids, *arguments)

    def take(self) -> int:
        count, self._count = self._count, 0
        return count


def burst(stepper: Stepper, ask: Questions) -> dict[str, Any]:
    """Sixteen blends beside a decode: what each step did, within the bound on a step's passes and without it."""
    passed = PassTokens(get_kv_transfer_group().worker.model)
    bounded = burst_steps(stepper, ask, passed, "bounded")
    worker, scheduler = get_kv_transfer_group().worker, stepper.scheduler.connector.scheduler
    worker._settings = worker._settings.model_copy(update={"repair_tokens_per_step": UNBOUNDED})
    scheduler._admission = Admission(UNBOUNDED)
    unbounded = burst_steps(stepper, ask, passed, "unbounded")
    return {"bounded": bounded, "unbounded": unbounded, "probe": len(ask.prompts.question), "bound": STEP_TOKENS}


def burst_steps(stepper: Stepper, ask: Questions, passed: PassTokens, name: str) -> dict[str, Any]:
    """By step, until every blend has answered: the decode's new tokens, and the tokens that blends' passes were over.

    Every other blend repairs all of its context, more than a step may.
    """
    stepper.engine.llm.reset_prefix_cache()
    decode = f"{name} decode"
    stepper.add(decode, ask.prompts.question, None, 900)
    while len(stepper.answers[decode]["tokens"]) < 5:
        stepper.step()
    names = [f"{name} {index}" for index in range(BURST)]
    for index, own in enumerate(names):
        stepper.add(own, ask(50 + index), ask.plan(1.0 if index % 2 else 0.15), 4)
    decoded, tokens = [], []
    while not all(stepper.answers[own]["tokens"] for own in names):
        before = len(stepper.answers[decode]["tokens"])
        stepper.step()
        decoded.append(len(stepper.answers[decode]["tokens"]) - before)
        tokens.append(passed.take())
    stepper.core.abort_request([decode])
    stepper.drain()
    outcomes = {stepper.answers[own]["report"]["outcome"] for own in names}
    return {"decoded": decoded, "tokens": tokens, "outcomes": sorted(outcomes)}


def main() -> None:
    stepper = Stepper(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    prompts = SCENARIO["Prompts"](stepper.engine.llm.get_tokenizer())
    stepper.engine.run([(tokens, {"encode": order}) for tokens, order in prompts.encodes()])
    results = {"lifecycle": lifecycle, "burst": burst}[sys.argv[4]](stepper, Questions(prompts))
    print("RESULTS " + json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
