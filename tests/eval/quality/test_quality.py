"""`kvblend bench quality`: rows, resumption, plot, and what they stand on."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvblend.cli.app import app
from kvblend.core.errors import InvalidRequestError
from kvblend.eval.quality.answer_f1 import answer_f1
from kvblend.eval.quality.bootstrap import Resamples
from tests.eval.questions.articles import make_articles


def run(model: Path, *options: str) -> list[dict[str, Any]]:
    """In float32, where two ways to compute one answer agree within 1e-5 whatever the machine."""
    arguments = ["bench", "quality", str(model), "--num-passages", "2", "--passage-tokens", "60"]
    arguments += ["--dtype", "float32", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_rows_resumed_and_drawn(tiny_model_path: Callable[[str], Path], tmp_path: Path) -> None:
    """An interrupted run goes on and gives the same rows; nothing recomputed diverges, everything does not."""
    model = tiny_model_path("llama3rope")
    output, plot = tmp_path / "rows.jsonl", tmp_path / "plot.png"
    options = [
        "--num-questions",
        "2",
        "--encode",
        "alone",
        "--encode",
        "warm",
        "--ratio",
        "0.15",
        "--output",
        str(output),
    ]
    for selector in ("none", "all", "probe", "cacheblend_v"):
        options += ["--selector", selector]
    rows = run(model, *options, "--plot", str(plot), "--json")
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows
    assert plot.read_bytes().startswith(b"\x89PNG")
    by_method = {(row["selector"], row["encode"]): row for row in rows}
    assert by_method["full_prefill", None]["flops_ratio"] == 1.0
    assert {row["dtype"] for row in rows} == {"float32"}
    for encode in ("alone", "warm"):
        none, everything = by_method["none", encode], by_method["all", encode]
        assert everything["kl"] < 1e-5 < none["kl"] and everything["agreement"] == 1.0
        assert everything["f1"] == by_method["full_prefill", None]["f1"]
        for name in ("none", "probe", "cacheblend_v"):
            row = by_method[name, encode]
            assert row["kl_ci95"][0] <= row["kl"] <= row["kl_ci95"][1] and row["num_questions"] == 2
        assert none["flops_ratio"] < by_method["probe", encode]["flops_ratio"] < everything["flops_ratio"]
    assert by_method["cacheblend_v", "alone"]["kl_fraction"] == 1.0

    state = output.with_suffix(".state.jsonl")
    lines = state.read_text().splitlines(keepends=True)
    state.write_text("".join(lines[:-3]) + lines[-3][:20])  # killed while it wrote
    again = run(model, *options, "--json")
    assert len(state.read_text().splitlines()) == len(lines)
    for row, other in zip(rows, again, strict=True):
        assert row["kl"] == pytest.approx(other["kl"], rel=1e-5)

    pairs = ["--num-questions", "2", "--ratio", "0.15", "--method", "alone/cacheblend_v", "--method", "warm/probe"]
    (full,) = run(model, "--num-questions", "2", "--full-prefill", "--state", str(state), "--json")
    assert full == next(row for row in again if row["selector"] == "full_prefill")
    some = run(model, *pairs, "--state", str(state), "--json")
    assert [(row["encode"], row["selector"]) for row in some[1:]] == [("alone", "cacheblend_v"), ("warm", "probe")]
    assert some[2]["kl"] == pytest.approx(by_method["probe", "warm"]["kl"], abs=1e-5)


def test_document_encodes_are_what_they_say(tiny_model_path: Callable[[str], Path], tmp_path: Path) -> None:
    """What fits in the whole prompt is exact; every encode and the rivals' choices give rows with their intervals."""
    model, mixes = tiny_model_path("llama3rope"), make_articles(tmp_path / "squad.json", 8)
    options = ["--questions", str(mixes), "--mix", "--num-questions", "2", "--ratio", "0.15", "--json"]
    names = ("document", "document_previous", "document_tail", "title", "fits", "half_fits")
    for name in names:
        options += ["--method", f"{name}/none"]
    options += ["--method", "fusionrag/fusionrag", "--method", "cachecraft/cachecraft", "--method", "fits/cachecraft"]
    rows = run(model, *options)  # of two passages: the first and the second are exact where they fit
    by_method = {(row["selector"], row["encode"]): row for row in rows}
    assert len(by_method) == 1 + len(names) + 3
    assert by_method["none", "fits"]["kl"] < 1e-5 < by_method["none", "document"]["kl"]
    assert by_method["none", "fits"]["same_sentence"] == by_method["full_prefill", None]["same_sentence"] == 1.0
    assert by_method["cachecraft", "fits"]["kl"] < 1e-5
    for row in rows:
        for name in ("kl", "f1", "same_sentence", "f1_gain"):
            low, high = row[f"{name}_ci95"]
            assert low <= row[name] <= high


def test_stopped_run_reports_complete_questions(tiny_model_path: Callable[[str], Path], tmp_path: Path) -> None:
    """A question that has not all methods is in no row, and the file of a run that goes on is not touched."""
    model, state = tiny_model_path("llama3rope"), tmp_path / "state.jsonl"
    options = ["--ratio", "0.15", "--method", "alone/none", "--method", "warm/probe", "--state", str(state), "--json"]
    whole = run(model, "--num-questions", "2", *options)
    lines = state.read_text().splitlines(keepends=True)
    assert [json.loads(line)["question"] for line in lines[1:]] == [0] * 3 + [1] * 3, "question by question"
    state.write_text("".join(lines[:-1]))
    rows = run(model, "--num-questions", "2", "--report", *options)
    assert [row["num_questions"] for row in rows] == [1] * 3 and [row["num_questions"] for row in whole] == [2] * 3
    assert state.read_text() == "".join(lines[:-1])
    state.write_text("".join(lines[:2]))
    arguments = ["bench", "quality", str(model), "--num-passages", "2", "--passage-tokens", "60", "--report"]
    refused = CliRunner().invoke(app, [*arguments, "--dtype", "float32", "--num-questions", "2", *options])
    assert isinstance(refused.exception, InvalidRequestError) and "none of 2 questions" in str(refused.exception)


def test_sigterm_stops_and_reports(tiny_model_path: Callable[[str], Path], tmp_path: Path) -> None:
    """A run that is told to end says how many questions it got through, and gives their rows."""
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "kvblend.cli", "bench", "quality", str(tiny_model_path("llama3rope"))]
    command += ["--dtype", "float32", "--num-passages", "2", "--passage-tokens", "60", "--output", str(output)]
    process = subprocess.Popen(
        [*command, "--encode", "warm"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    state = output.with_suffix(".state.jsonl")
    deadline = time.monotonic() + 120
    while not (state.exists() and any('"question": 1' in line for line in state.read_text().splitlines())):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert f"{rows[0]['num_questions']} of " in said and "complete" in said
    assert len({row["num_questions"] for row in rows}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--selector", "nothing"], "nothing: not among"),
        (["--method", "warm/nothing"], "nothing: not among"),
        (["--method", "probe"], "probe: not among"),
        (["--method", "warm/probe", "--encode", "warm"], "give either"),
        (["--full-prefill", "--encode", "warm"], "give either"),
    ],
)
def test_unknown_methods_are_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", "quality", *options])
    assert result.exit_code == 2
    assert message in result.output


def test_state_of_other_settings_is_refused(demo_model_path: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.jsonl"
    state.write_text('{"model": "another"}\n')
    result = CliRunner().invoke(app, ["bench", "quality", str(demo_model_path), "--state", str(state)])
    assert isinstance(result.exception, InvalidRequestError)
    assert state.read_text() == '{"model": "another"}\n'


def test_f1() -> None:
    """SQuAD's rules: case, punctuation and articles do not count; the best gold answer does."""
    assert answer_f1("The Kestrel!", ["kestrel"]) == 1.0
    assert answer_f1("It is Rosa Imfeld", ["Rosa Imfeld", "nobody"]) == pytest.approx(2 * 2 / 6)
    assert answer_f1("", ["x"]) == answer_f1("y", ["x"]) == answer_f1("y", []) == 0.0


def test_bootstrap() -> None:
    """The interval narrows with questions, holds the mean, and a paired ratio of equal shapes has no width."""
    values = [float(i % 7) for i in range(40)]
    low, high = Resamples(40).mean_ci95(values)
    assert low < 2.9 < high < low + 1.5
    assert Resamples(40).ratio_ci95(values, [2 * value for value in values]) == (0.5, 0.5)
