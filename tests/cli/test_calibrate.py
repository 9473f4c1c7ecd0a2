"""`kvblend calibrate` runs on real vLLM, with a child of its own and over a server that runs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvblend.cli import main
from kvblend.core.calibration import Calibration
from kvblend.core.calibration_file import CALIBRATION_FILE
from tests.api.front import control_address, linked_model
from tests.service import RunningService

Refused = Callable[..., tuple[int, str]]
SMALL = ("--num-questions", "5", "--num-passages", "2", "--passage-tokens", "48", "--json")


def run_calibrate(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "kvblend.cli", "calibrate", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=560, check=False, env={**os.environ, **(environment or {})}
    )


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Refused]:
    """Runs the command in this process; returns its exit status, and what it has said in one line."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["kvblend", "calibrate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, " ".join(capsys.readouterr().err.split())

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.extended
def test_a_running_server_is_calibrated_and_nothing_is_left_in_its_store(
    service: RunningService, demo_model_path: Path, tmp_path: Path
) -> None:
    """A target that no ratio meets: the file says so, the status is 3."""
    model = linked_model(demo_model_path, tmp_path / "model")
    environment = {
        "KVBLEND_HOME": str(tmp_path),
        "KVBLEND_CPU_PATH": str(service.cpu_path),
        "KVBLEND_DISK_PATH": str(service.home / "kv"),
    }

    def kv_files() -> set[str]:
        return {path.name for root in (service.cpu_path, service.home / "kv") for path in root.rglob("*.kv")}

    before = kv_files()
    server = ("--engine-url", service.engine_url, "--control", control_address(service))
    done = run_calibrate(str(model), "--target", "0.000001", *SMALL, *server, environment=environment)
    assert done.returncode == 3, done.stderr[-3000:]
    assert "no recompute ratio below 0.6 meets" in done.stderr
    calibration = Calibration.model_validate_json(done.stdout)
    assert calibration == Calibration.model_validate_json((model / CALIBRATION_FILE).read_text())
    assert calibration.is_unable
    for own in calibration.kinds.values():
        assert [point.recompute_ratio for point in own.curve] == [0.0, 0.05, 0.15, 0.3, 0.55]
        assert 0 < own.curve[-1].kl < own.curve[0].kl < own.curve[0].kl_upper95
    reused = {kind: own.curve[0].kl for kind, own in calibration.kinds.items()}
    assert reused["fits"] < reused["neutral"], "a prompt's own order fits best"
    assert kv_files() <= before


def test_a_child_is_calibrated_to_the_smallest_ratio_that_meets_the_target(
    tiny_model_path: Callable[[str], Path], tmp_path: Path, dtype: str
) -> None:
    """A target that everything meets: not even full reuse misses it."""
    model = linked_model(tiny_model_path("llama3rope"), tmp_path / "model")
    options = ("--target", "50", "--agreement", "0", "--dtype", dtype, *SMALL)
    done = run_calibrate(str(model), *options, environment={"KVBLEND_HOME": str(tmp_path / "home")})
    assert done.returncode == 0, done.stderr[-3000:]
    calibration = Calibration.model_validate_json(done.stdout)
    assert {own.recompute_ratio for own in calibration.kinds.values()} == {0.0}
    assert (calibration.target_kl, calibration.target_agreement) == (50.0, 0.0)
    assert calibration.dtype == dtype
    assert (calibration.num_questions, calibration.num_passages, calibration.passage_tokens) == (5, 2, 49.0)
    assert str(model / CALIBRATION_FILE) in done.stderr
    assert not (tmp_path / "home").exists(), "nothing else is written"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing option '--target'"),
        (("--target", "0"), "'--target': Input should be greater than or equal to"),
        (("--target", "0.1", "--num-questions", "3"), "'--num-questions': Input should be greater than or equal to 5"),
        (("--target", "0.1", "--num-passages", "9"), "question 1 has 7 passages; 9 are asked for"),
        (("--target", "0.1", "--control", "ipc:///x"), "--control names the channel of an --engine-url"),
        (("--target", "0.1", "--engine-url", "http://x", "--dtype", "float32"), "takes no arguments of vLLM"),
    ],
)
def test_bad_options_are_refused_at_once(
    demo_model_path: Path, arguments: tuple[str, ...], said: str, refused: Refused
) -> None:
    status, message = refused(str(demo_model_path), *arguments)
    assert status in (1, 2)
    assert said in message


def test_too_few_questions_are_refused(demo_model_path: Path, tmp_path: Path, refused: Refused) -> None:
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps([{"question": "?", "ctxs": [{"text": "x"}]}] * 4))
    status, message = refused(str(demo_model_path), "--target", "0.1", "--questions", str(questions))
    assert status == 1
    assert "has 4 questions; 5 are the least" in message
