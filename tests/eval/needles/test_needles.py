"""`kvblend bench needle`: its cases, and rows that are resumed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from kvblend.cli.app import app
from kvblend.core.errors import InvalidRequestError
from kvblend.eval.needles.cases import KINDS, NeedleCases
from kvblend.eval.questions.question_set import load_questions


def make_cases(model: Path, **options: int) -> NeedleCases:
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = list(dict.fromkeys(text for question in load_questions(None) for text in question.passages))
    chosen = {"num_passages": 5, "passage_tokens": 220, "seed": 0, **options}
    return NeedleCases(texts, lambda text: tokenizer(text)["input_ids"], tokenizer.decode, **chosen)


def run(model: Path, *options: str) -> list[dict[str, Any]]:
    """In float32, where two ways to compute one answer agree within 1e-5 whatever the machine."""
    arguments = ["bench", "needle", str(model), "--num-passages", "3", "--passage-tokens", "64"]
    arguments += ["--dtype", "float32", *options, "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_facts_lie_in_passages_of_their_own(demo_model_path: Path) -> None:
    """Each planted code once, whole, well within its passage; what the question names is told by the facts."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path)
    cases = make_cases(demo_model_path)
    for case in cases.take(60):
        assert len(case.passages) == 5
        said = [f"is {code}." for code in case.planted]
        holders = [[index for index, text in enumerate(case.passages) if one in text] for one in said]
        assert all(len(holder) == 1 for holder in holders) and len({holder[0] for holder in holders}) == len(holders)
        assert set(case.gold) <= set(case.planted) and not any(code in case.question for code in case.planted)
        for text in case.passages:
            ids = tokenizer(text)["input_ids"]
            assert abs(len(ids) - 220) <= 6, "the splice changes a few tokens"
            cut = tokenizer.decode(ids[:220])  # as the bench cuts it
            assert all(one in cut for one in said if one in text)
        if case.kind in ("chain", "choice"):
            person, place = next(
                (text.split(" works at the ")[0].split(". ")[-1], text.split(" works at the ")[1].split(" station")[0])
                for text in case.passages
                if " works at the " in text
            )
            assert person.split()[-1] in case.question
            assert any(f"The access code of the {place} station is {case.gold[0]}." in text for text in case.passages)
    assert cases.unrelated.strip() and not any(cases.unrelated[200:400] in text for text in case.passages)


def test_cases_come_from_the_seed(demo_model_path: Path) -> None:
    """As many as are asked for, the same ones every time, the kinds in turn."""
    cases = make_cases(demo_model_path)
    some, more = list(cases.take(4)), list(make_cases(demo_model_path).take(7))
    assert more[:4] == some and [case.kind for case in more[:4]] == list(KINDS)
    assert len(set(more)) == 7
    assert list(make_cases(demo_model_path, seed=1).take(4)) != some


@pytest.mark.parametrize("options", [{"num_passages": 2}, {"passage_tokens": 500}])
def test_too_little_is_refused(demo_model_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(InvalidRequestError, match="need"):
        make_cases(demo_model_path, **options)


def test_rows_resumed_with_more_cases(tiny_model_path: Callable[[str], Path], tmp_path: Path) -> None:
    """Reference: full prefill. Ours: everything recomputed gives its answers; a second run adds cases to the first."""
    model, output = tiny_model_path("llama3rope"), tmp_path / "rows.jsonl"
    options = ["--output", str(output), "--encode", "warm"]
    for selector in ("none", "all", "probe"):
        options += ["--selector", selector]
    run(model, "--num-cases", "2", *options)
    state = output.with_suffix(".state.jsonl")
    lines = state.read_text()
    rows = run(model, "--num-cases", "3", *options)
    assert state.read_text().startswith(lines) and len(state.read_text().splitlines()) == 1 + 3 * 4
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows
    assert [row["kind"] for row in rows[::4]] == ["all", *list(KINDS)[:3]]
    chains = run(model, "--num-cases", "3", "--kind", "chain", *options)
    assert [(row["kind"], row["num_cases"]) for row in chains] == [("all", 1)] * 4 + [("chain", 1)] * 4
    by_method = {row["selector"]: row for row in rows[:4]}
    for row in by_method.values():
        assert row["num_cases"] == 3 and row["dtype"] == "float32"
        low, high = row["same_answer_ci95"]
        assert 0 <= low <= row["same_answer"] <= high <= 1
    for selector in ("full_prefill", "all"):
        assert by_method[selector]["same_answer"] == by_method[selector]["same_facts"] == 1.0
        assert by_method[selector]["correct"] == by_method["full_prefill"]["correct"]
    assert by_method["all"]["kl"] < 1e-5 < by_method["none"]["kl"]
