"""Let everything go wrong once, on real vLLM, beside requests that are not to notice. Prints one JSON line.

python fault_scenario.py MODEL_FOLDER STORE_FOLDER DTYPE NUM_RANKS

Faults of the worker half strike the last rank alone. At ratio 1 a blend's answer is full prefill's, and so is that of
a request that a fault has vLLM prefill.
"""

import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

STEPPING = runpy.run_path(str(Path(__file__).with_name("stepping_scenario.py")))
ANSWER_TOKENS = 8


def strike(worker: Any, rank: int, fault: str) -> None:
    """In a worker process: let a fault happen on one rank, until `heal`."""
    import torch
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    from kvblend.blend import Pass
    from kvblend.vllm_connector.engine.model import _Answers
    from kvblend.vllm_connector.worker.blend import Blend
    from kvblend.vllm_connector.worker.blends import Blends
    from kvblend.vllm_connector.worker.encodes import Encode, Encodes

    half = get_kv_transfer_group().worker
    half.healing = []
    if worker.rank != rank:
        return

    def replace(owner: Any, name: str, other: Any) -> None:
        had, original = name in vars(owner), getattr(owner, name)
        half.healing.append(lambda: setattr(owner, name, original) if had else delattr(owner, name))
        setattr(owner, name, other)

    def out_of_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    def in_layer(layer: int, above: int = 0) -> Any:
        answer = _Answers.__call__

        def call(self: Any, index: int, query: Any, key: Any, value: Any) -> Any:
            batch = getattr(self._attend, "__self__", None)
            if index == layer and len(getattr(batch, "num_context_tokens", ())) > above:
                self._attend = out_of_memory
            return answer(self, index, query, key, value)

        return call

    def once_waiting(reserve: Any) -> Any:
        waited = []

        def reserve_later(num_tokens: int) -> Any:
            waited.append(num_tokens)
            return None if len(waited) < 4 else reserve(num_tokens)

        return reserve_later

    def unlike_the_others(work: Any) -> Any:
        def call(self: Any, *arguments: Any) -> Any:
            return out_of_memory() if "struck" in self.task.request_id else work(self, *arguments)

        return call

    store = half.blends._source.store
    places: dict[str, Callable[[], None]] = {
        "encode: no memory": lambda: replace(half.caches, "empty", out_of_memory),
        "encode: a copy fails": lambda: replace(Encode, "take", out_of_memory),
        "encode: the key fails": lambda: replace(Encodes, "_keys", out_of_memory),
        "step": lambda: replace(Blends, "_batch", out_of_memory),
        "blend: cannot be made": lambda: replace(Blend, "__init__", out_of_memory),
        "reserve: no memory": lambda: replace(half._pages, "reserve", out_of_memory),
        "reserve: waits": lambda: replace(half._pages, "reserve", once_waiting(half._pages.reserve)),
        "context: no memory": lambda: replace(half._pages, "context", out_of_memory),
        "staging: the store fails": lambda: replace(store, "open_many", out_of_memory),
        "staging: a file is gone": lambda: replace(store, "open_many", lambda *_, **__: {}),
        "staging: a load fails": lambda: replace(half._pages, "bring", out_of_memory),
        "settle": lambda: replace(Blend, "settle", unlike_the_others(Blend.settle)),
        "select": lambda: replace(Blend, "select", unlike_the_others(Blend.select)),
        "pass: no memory for its tables": lambda: replace(Pass, "of", out_of_memory),
        "pass: a layer": lambda: replace(_Answers, "__call__", in_layer(2)),
        "pass: a layer, when it has several": lambda: replace(_Answers, "__call__", in_layer(1, above=1)),
        "finish": lambda: replace(Blend, "finish", unlike_the_others(Blend.finish)),
    }
    places[fault]()


def heal(worker: Any) -> None:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    for undo in get_kv_transfer_group().worker.healing:
        undo()


def held(worker: Any) -> int:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    half = get_kv_transfer_group().worker
    return len(half.blends) + len(half.encodes)


WORKER_FAULTS = (
    "step", "blend: cannot be made", "reserve: no memory", "reserve: waits", "context: no memory",
    "staging: the store fails", "staging: a file is gone", "staging: a load fails", "settle", "select",
    "pass: no memory for its tables", "pass: a layer", "pass: a layer, when it has several", "finish",
)  # fmt: skip
ENCODE_FAULTS = ("encode: no memory", "encode: a copy fails", "encode: the key fails")
SCHEDULER_FAULTS = {
    "scheduler: a new request": "_begin_blend",
    "scheduler: what is stored": "_num_to_load",
    "scheduler: blocks are there": "_begin_load",
    "scheduler: what the workers are told": "build_connector_meta",
    "scheduler: what the workers tell": "_finish_report",
}


class Faults:
    """Requests of each fault, and what came of them."""

    def __init__(self, model: str, store: Path, dtype: str, num_ranks: int) -> None:
        arguments = {"tensor_parallel_size": num_ranks} if num_ranks > 1 else {}
        self.stepper = STEPPING["Stepper"](model, store, dtype, **arguments)
        prompts = STEPPING["SCENARIO"]["Prompts"](self.stepper.engine.llm.get_tokenizer())
        self.ask = STEPPING["Questions"](prompts)
        self.encode(prompts.encodes())
        self._num_ranks, self._asked = num_ranks, 0

    def encode(self, orders: list[Any]) -> None:
        self.stepper.engine.run([(tokens, {"encode": order}) for tokens, order in orders])

    def run(self, fault: str, strikes: Any) -> dict[str, Any]:
        """Two blends, one of them struck, beside a decode; then what is held when all has ended."""
        stepper, ask = self.stepper, self.ask
        names = ["struck", "blended", "decode"]
        questions = [self._asked + index for index in range(3)]
        self._asked += 3
        references = [stepper.alone(ask(index), ANSWER_TOKENS) for index in questions]
        answers = [reference["tokens"] for reference in references]
        stepper.add(f"decode {fault}", ask(questions[2]), None, ANSWER_TOKENS, answer=answers[2])
        stepper.step()
        with strikes(fault):
            for name, index, answer in zip(names[:2], questions, answers, strict=False):
                stepper.add(f"{name} {fault}", ask(index), ask.plan(1.0), ANSWER_TOKENS, answer=answer)
            self.drain()
        return {
            "requests": {
                name: {"ours": stepper.answers[f"{name} {fault}"], "fresh": reference}
                for name, reference in zip(names, references, strict=True)
            },
            "held": self.held(),
        }

    def drain(self) -> None:
        until = time.monotonic() + 240
        stepper = self.stepper
        while stepper.core.has_unfinished_requests() or stepper.scheduler.connector.has_pending_push_work():
            stepper.step()
            assert time.monotonic() < until, stepper.scheduler.requests
        stepper.step()

    def held(self) -> dict[str, Any]:
        return {**self.stepper.leaks(), "jobs": sum(self.stepper.engine.llm.collective_rpc(held))}

    @contextmanager
    def worker(self, fault: str) -> Iterator[None]:
        rpc = self.stepper.engine.llm.collective_rpc
        rpc(strike, args=(self._num_ranks - 1, fault))
        yield
        rpc(heal)

    @contextmanager
    def scheduler(self, fault: str) -> Iterator[None]:
        """The method raises in each of its first two calls that are for a request with an order."""
        half, name = self.stepper.scheduler.connector.scheduler, SCHEDULER_FAULTS[fault]
        raised: list[str] = []
        original = getattr(half, name)

        def failing(*arguments: Any) -> Any:
            concerned = name != "build_connector_meta" or half._new_loads
            if concerned and len(raised) < 2:
                raised.append(name)
                raise RuntimeError(f"{name} failed")
            return original(*arguments)

        setattr(half, name, failing)
        yield
        delattr(half, name)
        assert raised, f"{name} was not called"

    def encodes(self, fault: str) -> dict[str, Any]:
        """An encode that a fault strikes is answered and not kept; the same encode again is."""
        stepper, prompts = self.stepper, self.ask.prompts
        passage = [token + 1 for token in prompts.passages[0]]
        context = prompts.encode_context
        prompt, end = context + passage, len(context) + len(passage)
        order = {"encode": {"spans": [[len(context), end]]}}
        plan = {**prompts.plan(1.0)}
        plan["spans"] = [plan["spans"][0], {**plan["spans"][1], "num_tokens": len(passage)}]
        blend = prompts.preamble + passage + prompts.question
        reference = stepper.alone(prompt, 1)
        with self.worker(fault):
            stepper.add(f"struck {fault}", prompt, order, 1, answer=reference["tokens"])
            self.drain()
        missed = stepper.engine.run([(blend, {"blend": plan})])[0]
        stepper.engine.llm.reset_prefix_cache()
        self.encode([(prompt, order["encode"])])
        kept = stepper.engine.run([(blend, {"blend": plan})])[0]
        stepper.engine.llm.reset_prefix_cache()
        report_of = STEPPING["SCENARIO"]["report_of"]
        remove(Path(sys.argv[2]))
        self.encode(prompts.encodes())
        return {
            "requests": {"struck": {"ours": stepper.answers[f"struck {fault}"], "fresh": reference}},
            "missed": report_of(missed),
            "kept": report_of(kept),
            "held": self.held(),
        }


def remove(store: Path) -> None:
    for path in store.rglob("*.kv"):
        path.unlink()


def main() -> None:
    faults = Faults(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    results = {fault: faults.run(fault, faults.worker) for fault in WORKER_FAULTS}
    results |= {fault: faults.run(fault, faults.scheduler) for fault in SCHEDULER_FAULTS}
    encodes = {fault: faults.encodes(fault) for fault in ENCODE_FAULTS}
    print("RESULTS " + json.dumps({"blends": results, "encodes": encodes}), flush=True)


if __name__ == "__main__":
    main()
