"""Every route of the service is asked by some command, or it is said why none does."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from kvblend.api import ServiceConfig
from kvblend.cli.app import app
from kvblend.core.calibration_file import write_calibration
from kvblend.core.errors import EngineUnavailableError
from kvblend.core.settings import Settings
from kvblend.sdk import Client
from tests.api.front import linked_model, running
from tests.api.scripted_service import INFO, ScriptedService, scripted_service
from tests.core.calibrations import FINGERPRINT, a_calibration, a_curve
from tests.sdk import odd_service

NO_COMMAND = {
    "GET /healthz": "`kvblend status` asks /readyz, which says more",
    "GET /metrics": "Prometheus' text format, for what scrapes it",
    "GET /v1/collections/{collection}/jobs/{job_id}/events": "`kvblend jobs show --wait` looks at the job itself",
    "POST /v1/completions": "prompts as a program makes them; `kvblend query` asks, and `--chat` talks",
}
NO_JSON = {
    "kvblend documents source": "its output is the document itself",
}
COMMANDS = """
collections create boats --passage-tokens 64
collections list
collections show boats
collections update boats --kv-ttl 86400
ingest PAGES -c boats
documents list boats
documents show boats report.md
documents passages boats report.md
documents source boats report.md
collections rebuild boats
search Who? -c boats
query Who? -c boats --max-tokens 3
query Who? -c boats --max-tokens 3 --chat
kv stats
kv lookup boats
kv pairs boats
kv pin boats
kv unpin boats
kv move boats --to slower
kv compress boats
kv clear boats
kv verify
kv sweep
calibration
status
documents delete boats report.md --yes
collections delete boats --yes
"""


@pytest.fixture(scope="module")
def calibrated(
    tmp_path_factory: pytest.TempPathFactory, demo_model_path: Path, embedding_model_path: Path
) -> Iterator[ScriptedService]:
    """A service whose model has a calibration beside it."""
    folder = tmp_path_factory.mktemp("calibrated")
    model = linked_model(demo_model_path, folder / "model")
    curve = a_curve({0.0: 0.2, 0.15: 0.04, 0.3: 0.02})
    never = a_curve({0.0: 0.9, 0.3: 0.8})
    calibration = a_calibration(curve, target_kl=0.05, curves={"neutral": never})
    write_calibration(calibration, model=str(model), home=folder / "home")
    info = INFO.model_copy(update={"model_fingerprint": FINGERPRINT})
    with scripted_service(folder, model=model, embedding_model=embedding_model_path, info=info) as service:
        yield service


def run(url: str, *words: str, typed: str | None = None) -> Result:
    environment = {"KVBLEND_URL": url, "COLUMNS": "120"}
    return CliRunner().invoke(app, list(words), env=environment, input=typed, catch_exceptions=False)


def test_every_route_has_a_command(
    calibrated: ScriptedService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "report.md").write_text("The report is signed by the harbour master of Vik.")
    schema = httpx.get(f"{calibrated.url}/openapi.json").json()
    routes = {
        f"{method.upper()} {path}": re.compile(re.sub(r"\\\{document_id\\\}", ".+", _pattern(path)))
        for path, methods in schema["paths"].items()
        for method in methods
    }
    sent: list[tuple[str, str]] = []
    send = httpx.HTTPTransport.handle_request

    def record(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        sent.append((request.method, request.url.path))
        return send(transport, request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", record)
    for line in COMMANDS.strip().splitlines():
        words = [word.replace("PAGES", str(tmp_path)) for word in line.split()]
        ended = run(calibrated.url, *words, typed="")
        assert ended.exit_code == 0, (line, ended.output)
    asked = {name for name, path in routes.items() for method, own in sent if _is_asked(name, path, method, own)}
    assert routes.keys() - asked == NO_COMMAND.keys()


def _pattern(path: str) -> str:
    return re.sub(r"\\\{(?!document_id)\w+\\\}", "[^/]+", re.escape(path))


def _is_asked(name: str, path: re.Pattern[str], method: str, own: str) -> bool:
    return name.startswith(f"{method} ") and path.fullmatch(own) is not None


def test_every_command_speaks_json() -> None:
    def leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield path, command
            return
        for name, child in command.commands.items():
            yield from leaves(f"{path} {name}", child)

    without = {
        path
        for path, command in leaves("kvblend", get_command(app))
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == NO_JSON.keys()


def test_a_document_is_read_as_it_is_and_as_it_was(calibrated: ScriptedService, tmp_path: Path) -> None:
    """Passages page by page, and the bytes that were uploaded."""
    lines = "".join(f"Boat {number} pays [bold]{number}[/bold] crowns at the quay of Vik.\r\n" for number in range(900))
    with Client(calibrated.url) as client:
        client.create_collection("fees", passage_tokens=32)
        (tmp_path / "fees.txt").write_bytes(lines.encode())
        client.wait(client.upload("fees", [tmp_path / "fees.txt"]))
        number = client.get_document("fees", "fees.txt").num_passages
    assert number > 100, "more than a page"
    passages = json.loads(run(calibrated.url, "documents", "passages", "fees", "fees.txt", "--json").stdout)["passages"]
    assert len(passages) == number == len({each["passage_id"] for each in passages})
    shown = run(calibrated.url, "documents", "passages", "fees", "fees.txt").stdout
    assert "[bold]7[/bold] crowns" in shown and f"{number - 1}: " in shown
    assert run(calibrated.url, "documents", "source", "fees", "fees.txt").stdout_bytes == lines.encode()
    run(calibrated.url, "documents", "source", "fees", "fees.txt", "-o", str(tmp_path / "again.txt"))
    assert (tmp_path / "again.txt").read_bytes() == lines.encode()


def test_the_calibration_is_shown(calibrated: ScriptedService) -> None:
    told = json.loads(run(calibrated.url, "calibration", "--json").stdout)
    assert told["kinds"]["document"]["recompute_ratio"] == 0.15
    shown = run(calibrated.url, "calibration").stdout
    assert re.search(r"document +0\.15 +0\.0200 +0\.0400 +0\.950 +yes", shown)
    assert re.search(r"neutral +in full +yes", shown)


def test_the_status_is_shown(calibrated: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads(run(calibrated.url, "status", "--json").stdout)
    assert told["status"] == "ready" and told["engines"] == [{"healthy": True, "control": True}]
    shown = run(calibrated.url, "status").stdout
    assert re.search(r"vLLM 0 +answers; its control channel answers", shown)
    assert re.search(r"recomputed document +0\.15", shown) and re.search(r"recomputed neutral +in full", shown)


def test_a_service_without_vllm_is_shown_and_ends_with_1(
    tmp_path: Path, demo_model_path: Path, embedding_model_path: Path
) -> None:
    engines = [("http://127.0.0.1:9", f"ipc://{tmp_path}/none.sock")]
    settings = Settings(home=tmp_path, cpu_bytes=0)
    config = ServiceConfig(str(demo_model_path), str(embedding_model_path), engines, settings)
    with running(config) as url:
        ended = run(url, "status", "--json")
        assert ended.exit_code == 1 and json.loads(ended.stdout)["status"] == "unavailable"
        shown = run(url, "status")
        assert shown.exit_code == 1 and "does not answer" in shown.stdout


def test_a_proxy_that_answers_by_itself_is_no_status() -> None:
    """Its 503 is not what the service would say."""
    with odd_service.running() as url, pytest.raises(EngineUnavailableError, match="the proxy's own words"):
        run(url, "status")
