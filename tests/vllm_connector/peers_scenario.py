"""Blend on real vLLM what this engine has encoded, or another host's; print one JSON line, and end with a file.

python peers_scenario.py encode|read MODEL_FOLDER STORE_FOLDER DTYPE ENDING_FILE SETTINGS_JSON
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

SCENARIO = runpy.run_path(str(Path(__file__).with_name("scenario.py")))


def main() -> None:
    part, model, store, dtype, ending, settings = sys.argv[1:]
    for name, value in json.loads(settings).items():
        os.environ[f"KVBLEND_{name.upper()}"] = value
    engine = SCENARIO["Engine"](model, Path(store), {"dtype": dtype})
    prompts = SCENARIO["Prompts"](engine.llm.get_tokenizer())
    if part == "encode":
        engine.run([(tokens, {"encode": order}) for tokens, order in prompts.encodes()])
    plan: dict[str, Any] = {"blend": prompts.plan(0.2)}
    (output,) = engine.run([(prompts.prompt, plan)])
    answer = {"tokens": list(output.outputs[0].token_ids), "report": SCENARIO["report_of"](output)}
    print(f"RESULTS {json.dumps(answer)}", flush=True)
    while not Path(ending).exists():
        time.sleep(0.1)
    os._exit(0)


if __name__ == "__main__":
    main()
