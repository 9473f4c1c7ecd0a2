"""What is told of vLLM's own tests: which pass against it and not against the service, file by file."""

from pathlib import Path

from tests.compat.entrypoints import run

FILES = ["openai/chat_completion/test_chat.py", "openai/chat_completion/test_chat_echo.py"]
VLLM = {
    "openai.chat_completion.test_chat::test_a[x/y]": "passed",
    "openai.chat_completion.test_chat::test_b": "passed",
    "openai.chat_completion.test_chat.TestClass::test_c": "failed",
    "openai.chat_completion.test_chat_echo::test_a": "skipped",
    "openai.chat_completion.test_chat_echo::test_d": "failed",
    "openai.chat_completion.test_chat_echo::test_e": "passed",
}
SERVICE = {
    **VLLM,
    "openai.chat_completion.test_chat::test_b": "failed",
    "openai.chat_completion.test_chat_echo::test_d": "passed",
}


def test_what_passes_against_vllm_alone_is_named() -> None:
    assert run.differing(VLLM, VLLM) == []
    assert run.differing(VLLM, SERVICE) == ["openai.chat_completion.test_chat::test_b"]
    without = {name: outcome for name, outcome in SERVICE.items() if not name.endswith("test_e")}
    assert len(run.differing(VLLM, without)) == 2, "what did not run against the service has not passed"
    refused = dict.fromkeys(run.ON_PURPOSE, "passed")
    assert refused and run.differing(refused, dict.fromkeys(refused, "failed")) == []


def test_each_file_has_its_own_row() -> None:
    counted = run.counts(FILES, VLLM, SERVICE)
    assert counted == {
        FILES[0]: {"both": 1, "vLLM alone": 1, "neither": 1},
        FILES[1]: {"skipped": 1, "the service alone": 1, "both": 1},
    }


def test_a_run_of_some_files_keeps_what_is_known_of_others() -> None:
    """And nothing of a file that is asked no more."""
    orders = {name: why for name, why in run.ON_PURPOSE.items() if "test_chat_completion::" in name}
    former = {
        "date": "2026-01-01",
        "tests": {"gone.py": {"both": 1}, FILES[1]: {"both": 9}, run.FILES[5]: {"both": 4, "vLLM alone": 2}},
        "vllm_alone": ["gone::test", "openai.chat_completion.test_chat_echo::test_e"],
        "on_purpose": run.ON_PURPOSE,
    }
    row = {"date": "2026-02-02", "tests": {FILES[0]: {"both": 2}}, "vllm_alone": ["b"], "on_purpose": {}}
    assert run.merged(former, row) == {
        "date": "2026-02-02",
        "tests": {FILES[0]: {"both": 2}, run.FILES[5]: {"both": 4, "vLLM alone": 2}, FILES[1]: {"both": 9}},
        "vllm_alone": ["b", "openai.chat_completion.test_chat_echo::test_e"],
        "on_purpose": orders,
    }
    again = run.merged(former, {**row, "tests": {FILES[1]: {"both": 9}}, "vllm_alone": []})
    assert again["vllm_alone"] == []


def test_models_are_served_by_every_name_that_a_test_has(tmp_path: Path) -> None:
    file = tmp_path / "entrypoints" / "test_it.py"
    file.parent.mkdir()
    asked = """MODEL_NAME = "Qwen/Qwen3-0.6B"\nargs = ["--served-model-name", "claude-3"]\nurl = "v1/models/"\n"""
    file.write_text(asked)
    assert run.model_names(tmp_path, ["test_it.py"]) == ["Qwen/Qwen3-0.6B", "claude-3"]
