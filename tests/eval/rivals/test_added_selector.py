"""A selector that somebody adds is one file in `eval/rivals/`: every table and option has it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kvblend

SELECTOR = '''
"""Select the end of the context."""

from dataclasses import dataclass

from kvblend.blend.selectors import Computed, LabPrompt, num_selected


@dataclass(frozen=True)
class TailSelector:
    def blend(self, prompt: LabPrompt, *, recompute_ratio: float) -> Computed:
        candidates = prompt.candidates
        return prompt.repair(candidates[len(candidates) - num_selected(len(candidates), recompute_ratio) :])
'''


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, to add files to."""
    copy = tmp_path_factory.mktemp("tree")
    source = Path(kvblend.__file__).parent
    shutil.copytree(source, copy / "kvblend", ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_one_file_is_enough(tree: Path, tiny_model_path: Callable[[str], Path], tmp_path: Path) -> None:
    (tree / "kvblend/eval/rivals/tail.py").write_text(f'{SELECTOR}\n\nSELECTORS = {{"tail": TailSelector()}}\n')
    model, plot = str(tiny_model_path("llama3rope")), tmp_path / "quality.png"
    short = ["--num-passages", "3", "--passage-tokens", "64", "--dtype", "float32", "--ratio", "0.15", "--json"]
    quality = ["-m", "kvblend.cli", "bench", "quality", model, *short, "--num-questions", "1", "--encode", "alone"]
    by_default = run(tree, *quality, "--plot", str(plot))
    assert by_default.returncode == 0, by_default.stderr
    rows = {row["selector"]: row for row in map(json.loads, by_default.stdout.splitlines())}
    assert {"full_prefill", "none", "probe", "random", "cacheblend_v", "tail"} <= rows.keys()
    assert rows["none"]["flops_ratio"] < rows["tail"]["flops_ratio"] < rows["full_prefill"]["flops_ratio"]
    assert plot.stat().st_size > 0
    needle = ["-m", "kvblend.cli", "bench", "needle", model, *short, "--num-cases", "4", "--encode", "alone"]
    asked = run(tree, *needle, "--selector", "tail")
    assert asked.returncode == 0, asked.stderr
    assert {row["selector"] for row in map(json.loads, asked.stdout.splitlines())} == {"full_prefill", "tail"}
    unknown = run(tree, *quality, "--selector", "tale")
    assert unknown.returncode != 0 and "tail" in unknown.stderr


@pytest.mark.parametrize(
    ("named", "said"),
    [("", "SELECTORS has no TailSelector"), ('SELECTORS = {"head": TailSelector()}', "head names another selector")],
)
def test_a_selector_without_a_name_of_its_own_is_not_passed_over(tree: Path, named: str, said: str) -> None:
    (tree / "kvblend/eval/rivals/tail.py").write_text(f"{SELECTOR}\n\n{named}\n")
    ended = run(tree, "-c", "import kvblend.eval.rivals")
    assert ended.returncode == 1 and said in ended.stderr and "tail.py" in ended.stderr
