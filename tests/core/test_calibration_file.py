"""A calibration is found by the model that it was measured on, and by no other."""

import json
import logging
from pathlib import Path

import pytest

from kvblend.core.calibration_file import CALIBRATION_FILE, read_calibration, write_calibration
from tests.core.calibrations import FINGERPRINT, a_calibration, a_curve

CALIBRATION = a_calibration(a_curve({0.15: 0.04}), target_kl=0.05)


def test_it_lies_beside_a_model_in_a_folder(tmp_path: Path) -> None:
    model, home = tmp_path / "model", tmp_path / "home"
    model.mkdir()
    path = write_calibration(CALIBRATION, model=str(model), home=home)
    assert path == model / CALIBRATION_FILE
    assert list(model.iterdir()) == [path], "no scratch file is left"
    assert read_calibration(str(model), model_fingerprint=FINGERPRINT, home=home) == CALIBRATION


def test_one_of_a_hub_model_lies_under_home_by_fingerprint(tmp_path: Path) -> None:
    path = write_calibration(CALIBRATION, model="some/model", home=tmp_path)
    assert path == tmp_path / "calibrations" / f"{FINGERPRINT}.json"
    assert read_calibration("some/model", model_fingerprint=FINGERPRINT, home=tmp_path) == CALIBRATION
    assert read_calibration("some/model", model_fingerprint="cd" * 32, home=tmp_path) is None


def test_where_the_folder_cannot_be_written_it_lies_under_home(tmp_path: Path) -> None:
    model, home = tmp_path / "model", tmp_path / "home"
    (model / CALIBRATION_FILE).mkdir(parents=True)  # nothing can be renamed over a folder, whoever runs the test
    path = write_calibration(CALIBRATION, model=str(model), home=home)
    assert path.is_relative_to(home)
    assert read_calibration(str(model), model_fingerprint=FINGERPRINT, home=home) == CALIBRATION


def test_a_newer_one_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    newer = CALIBRATION.model_copy(update={"created_at": 1.0})
    for calibration in (CALIBRATION, newer):
        write_calibration(calibration, model=str(tmp_path), home=tmp_path)
    assert read_calibration(str(tmp_path), model_fingerprint=FINGERPRINT, home=tmp_path) == newer


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Invalid JSON"),
        (json.dumps({**CALIBRATION.model_dump(mode="json"), "version": 1}), "version: Input should be 2"),
        (CALIBRATION.model_copy(update={"model_fingerprint": "cd" * 32}).model_dump_json(), "another model or dtype"),
    ],
)
def test_a_file_of_something_else_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, said: str
) -> None:
    path = tmp_path / CALIBRATION_FILE
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert read_calibration(str(tmp_path), model_fingerprint=FINGERPRINT, home=tmp_path) is None
    (record,) = caplog.records
    assert str(path) in record.getMessage() and said in record.getMessage()


def test_without_a_file_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_calibration(str(tmp_path), model_fingerprint=FINGERPRINT, home=tmp_path) is None
    assert not caplog.records
