"""`kvblend bench quality`: rows, resumption, plot, and what they stand on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvblend.cli.app import app
from kvblend.cli.bench.answer_f1 import answer_f1
from kvblend.cli.bench.bootstrap import Resamples
from kvblend.cli.bench.question_set import load_questions, take_half
from kvblend.core.errors import InvalidRequestError


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
        assert row["kl"] == pytest.approx(other["kl"], abs=1e-7)

    pairs = ["--num-questions", "2", "--ratio", "0.15", "--method", "alone/cacheblend_v", "--method", "warm/probe"]
    some = run(model, *pairs, "--state", str(state), "--json")
    assert [(row["encode"], row["selector"]) for row in some[1:]] == [("alone", "cacheblend_v"), ("warm", "probe")]
    assert some[2] == by_method["probe", "warm"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--selector", "nothing"], "nothing: not among"),
        (["--method", "warm/nothing"], "nothing: not among"),
        (["--method", "probe"], "probe: not among"),
        (["--method", "warm/probe", "--encode", "warm"], "give either"),
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


def test_question_sets(tmp_path: Path) -> None:
    """The own set holds what each question needs among the first passages; SQuAD's shape is read, others refused."""
    own = load_questions(None)
    assert len(own) >= 12
    for question in own:
        assert len(question.passages) == len(set(question.passages)) == 7
        gold = question.answers[0].lower()
        assert any(gold in text.lower() for text in question.passages[:5]), question.question
    assert take_half(own, "first") + take_half(own, "second") == own
    squad = tmp_path / "squad.json"
    paragraphs = [
        {"context": f"Paragraph {number}.", "qas": [{"question": f"{number}?", "answers": [{"text": str(number)}]}]}
        for number in range(5)
    ]
    squad.write_text(json.dumps({"version": "1.1", "data": [{"title": "Numbers", "paragraphs": paragraphs}]}))
    for number, question in enumerate(load_questions(squad)):
        assert question.answers == (str(number),)
        assert set(question.passages) == {f"Paragraph {other}." for other in range(5)}
    odd = tmp_path / "odd.json"
    odd.write_text('{"question": 1}')
    with pytest.raises(InvalidRequestError, match="shape"):
        load_questions(odd)
