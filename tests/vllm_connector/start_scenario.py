"""Start vLLM with the connector, and end.

python start_scenario.py MODEL_FOLDER STORE_FOLDER ENGINE_ARGUMENTS_JSON
"""

import json
import runpy
import sys
from pathlib import Path

SCENARIO = runpy.run_path(str(Path(__file__).with_name("scenario.py")))

if __name__ == "__main__":
    arguments = {"logits_processors": None, **json.loads(sys.argv[3])}  # vLLM has none beside speculative decoding
    SCENARIO["Engine"](sys.argv[1], Path(sys.argv[2]), arguments)
    print("STARTED", flush=True)
