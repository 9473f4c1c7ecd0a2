"""What `kvblend bench retrieval` says of a collection, and of sizes that it does not take."""

import json
import math
import subprocess
import sys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvblend.cli", "bench", "retrieval", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_small_collection() -> None:
    result = json.loads(run("--sizes", "5000", "--dim", "64", "--json").stdout)
    (row,) = result["results"]
    assert row["num_passages"] == 5000 and row["recall"] >= 0.98
    numbers = [value for value in row.values() if isinstance(value, float)]
    assert len(numbers) > 10 and all(math.isfinite(number) for number in numbers)
    assert result["machine"]["dim"] == 64


def test_sizes_that_are_none() -> None:
    for sizes, message in (("many", "whole numbers"), ("1500", "multiple of 1000"), ("0", "multiple of 1000")):
        done = run("--sizes", sizes)
        assert done.returncode != 0 and message in done.stderr + done.stdout
