"""Settings that kvblend does not blend under are refused when vLLM starts, with one clear sentence."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCENARIO = Path(__file__).with_name("scenario.py")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
            "kvblend does not work with speculative decoding: leave speculative_config out",
        ),
        (
            {"kv_cache_dtype": "fp8"},
            "kvblend does not work with a quantized KV cache: kv_cache_dtype is 'fp8",
        ),
    ],
)
def test_refused_at_start(
    arguments: dict[str, Any], sentence: str, tiny_model_path: Callable[[str], Path], tmp_path: Path
) -> None:
    """vLLM ends before it serves, and says why."""
    command = [sys.executable, str(SCENARIO), str(tiny_model_path("llama3rope")), str(tmp_path), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr
    assert "RESULTS" not in done.stdout
