"""A traced blend, and a traced order that is malformed, on real vLLM in this process.

python traced_scenario.py MODEL_FOLDER STORE_FOLDER DTYPE TRACEPARENT, with the environment's OTLP settings. Prints the
blend's report, and the ids that the connector's line on the other request has.
"""

import json
import logging
import os
import runpy
import sys
from pathlib import Path
from typing import Any

SCENARIO = runpy.run_path(str(Path(__file__).with_name("scenario.py")))


class Lines(logging.Handler):
    """Keeps the records of lines that say of a request that it is prefilled."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[dict[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "is prefilled" in record.getMessage():
            self.ids.append({name: vars(record)[name] for name in ("request_id", "trace_id")})


def main() -> None:
    model, store, dtype, parent = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "otlp_traces_endpoint": os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"],
        "disable_log_stats": False,
    }
    engine = SCENARIO["Engine"](model, store, arguments)
    prompts, lines = SCENARIO["Prompts"](engine.llm.get_tokenizer()), Lines()
    logging.getLogger("vllm.kvblend").addHandler(lines)
    engine.run([(tokens, {"encode": order}) for tokens, order in prompts.encodes()])
    vllm, headers = engine.llm.llm_engine, {"traceparent": parent}
    for name, order in (("blended", {"blend": prompts.plan(0.3)}), ("malformed", {"version": 2})):
        prompt = {"prompt_token_ids": prompts.prompt}
        vllm.add_request(name, prompt, SCENARIO["sampling"](order, 4), trace_headers=headers)
    reports: dict[str, Any] = {}
    while vllm.has_unfinished_requests():
        reports |= {output.request_id: SCENARIO["report_of"](output) for output in vllm.step() if output.finished}
    print("RESULTS", json.dumps({"report": reports["blended"], "lines": lines.ids}))


if __name__ == "__main__":
    main()
