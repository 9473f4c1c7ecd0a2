"""Blend from a slow disk beside a decode, and time what the engine's thread spends in our code. Prints one JSON line.

python slow_disk_scenario.py MODEL_FOLDER STORE_FOLDER DTYPE

`slow_disk.c` makes the disk slow once SLOW_PATH is set.
"""

import ctypes
import json
import os
import runpy
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

STEPPING = runpy.run_path(str(Path(__file__).with_name("stepping_scenario.py")))
NUM_BLENDS = 4
METHODS = (
    "on_new_request", "get_num_new_matched_tokens", "update_state_after_alloc", "build_connector_meta",
    "update_connector_output", "request_finished_all_groups", "has_pending_push_work", "start_load_kv",
    "wait_for_save", "get_transfer_results", "build_connector_worker_meta",
)  # fmt: skip


class Stay:
    """Seconds that one thread is within some methods, less those within others that they call."""

    def __init__(self) -> None:
        self.seconds, self._thread = 0.0, threading.get_ident()

    def time(self, owner: Any, name: str, sign: int) -> None:
        method = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                if threading.get_ident() == self._thread:
                    self.seconds += sign * (time.perf_counter() - began)

        setattr(owner, name, timed)

    def take(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def main() -> None:
    stepper = STEPPING["Stepper"](sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    prompts = STEPPING["SCENARIO"]["Prompts"](stepper.engine.llm.get_tokenizer())
    stepper.engine.run([(tokens, {"encode": order}) for tokens, order in prompts.encodes()])
    ask = STEPPING["Questions"](prompts)
    stepper.engine.run([(ask(1), ask.plan(0.3))])  # whatever the first blend makes once
    stay = Stay()
    worker = STEPPING["get_kv_transfer_group"]()
    for connector in {id(own): own for own in (worker, stepper.scheduler.connector)}.values():
        for name in METHODS:
            stay.time(connector, name, 1)
    stay.time(worker.worker.model, "forward", -1)
    os.environ["SLOW_PATH"] = ".kv"
    blends, stays, waited = [], [], []
    stepper.add("decode", ask(20), None, 400)
    stepper.step()
    for index in range(2, 2 + NUM_BLENDS):
        began, own = time.perf_counter(), []
        stepper.add(f"blend {index}", ask(index), ask.plan(0.3), 1)
        while not stepper.answers[f"blend {index}"]["tokens"]:
            stay.take()
            stepper.step()
            own.append(stay.take())
        waited.append(time.perf_counter() - began)
        stays.append(max(own))
        blends.append(stepper.answers[f"blend {index}"]["report"])
    decoded = len(stepper.answers["decode"]["tokens"])
    waits = ctypes.CDLL(None).num_first_thread_waits()
    results = {"stays": stays, "waits": waits, "waited": waited, "blends": blends, "decoded": decoded}
    print("RESULTS " + json.dumps(results))
    sys.stdout.flush()
    os._exit(0)  # a decode is under way


if __name__ == "__main__":
    main()
