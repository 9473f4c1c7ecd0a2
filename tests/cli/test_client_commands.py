"""What a client's commands print and end with, against a service whose engine is scripted."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvblend.cli import app as commands
from kvblend.cli.comparison import ask
from kvblend.core.errors import InvalidRequestError
from kvblend.sdk import Client
from tests.api.scripted_service import ScriptedService

pytestmark = pytest.mark.usefixtures("asked")

PAGES = {"report.md": "The report is signed by the harbour master of Vik.", "fees.txt": "Boats pay [bold] crowns."}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for name, text in PAGES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def harbour(scripted: ScriptedService, pages: Path) -> str:
    """A collection with two documents."""
    with Client(scripted.url, api_key="secret") as client:
        client.create_collection("harbour")
        client.wait(client.upload("harbour", list(pages.iterdir())))
    return "harbour"


def run(*words: str | Path, status: int = 0, typed: str | None = None) -> str:
    """What a command prints on standard output; it ends with `status`."""
    result = CliRunner().invoke(commands.app, [*map(str, words)], input=typed)
    assert result.exit_code == status, result.output
    return result.stdout


def answer(*words: str | Path) -> Any:
    """The one JSON object that a command prints."""
    return json.loads(run(*words, "--json"))


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence that the command line ends with, on standard error and with status 1."""
    monkeypatch.setattr(sys, "argv", ["kvblend", *words])
    with pytest.raises(SystemExit) as ended:
        commands.run()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_collection_is_made_changed_shown_and_deleted() -> None:
    made = answer("collections", "create", "boats", "--passage-tokens", "64", "--kv-quota", "1GiB", "--order", "fit")
    assert (made["passage_tokens"], made["kv_quota_bytes"], made["order"]) == (64, 1 << 30, "fit")
    changed = answer("collections", "update", "boats", "--kv-quota", "none", "--kv-ttl", "86400")
    assert (changed["kv_quota_bytes"], changed["kv_ttl_s"], changed["order"]) == (None, 86400.0, "fit")
    assert "86,400 s" in run("collections", "show", "boats")
    assert "boats" in run("collections", "list")
    run("collections", "delete", "boats", status=1, typed="n\n")
    assert "boats" in {each["name"] for each in answer("collections", "list")["collections"]}
    run("collections", "delete", "boats", typed="y\n")
    assert "boats" not in {each["name"] for each in answer("collections", "list")["collections"]}


def test_documents_are_listed_shown_and_deleted(pages: Path) -> None:
    ingested = answer("ingest", pages, "-c", "quay")
    assert [job["status"] for job in ingested["jobs"]] == ["succeeded"] and ingested["failures"] == {}
    assert [each["id"] for each in answer("documents", "list", "quay")["documents"]] == ["fees.txt", "report.md"]
    assert "report.md" in run("documents", "list", "quay")
    assert "text/markdown" in run("documents", "show", "quay", "report.md")
    assert answer("documents", "show", "quay", "report.md")["num_passages"] == 1
    assert answer("documents", "delete", "quay", "report.md", "--yes") == {"deleted": ["report.md"]}
    run("documents", "delete", "quay", "fees.txt", status=1, typed="")
    assert [each["id"] for each in answer("documents", "list", "quay")["documents"]] == ["fees.txt"]


def test_a_job_that_nobody_waits_for_is_found_again(pages: Path) -> None:
    (job,) = run("ingest", pages, "-c", "later", "--no-wait").split()
    ended = answer("jobs", "show", "later", job, "--wait")
    assert (ended["status"], len(ended["document_ids"])) == ("succeeded", 2)
    assert "2 of 2" in run("jobs", "show", "later", job) or "0 of 2" in run("jobs", "show", "later", job)


def test_a_question_is_searched_and_asked(harbour: str) -> None:
    found = run("search", "Who signs the report?", "-c", harbour)
    assert "report.md" in found and "[bold]" in found, "a passage's brackets are text"
    sources = answer("search", "Who signs the report?", "-c", harbour, "--top-k", "1")["sources"]
    assert [source["document_name"] for source in sources] == ["report.md"]
    asked = answer("query", "Who signs the report?", "-c", harbour, "--max-tokens", "3")
    assert asked["answer"] == "xxx" and asked["report"]["outcome"] == "blended"
    shown = run("query", "Who signs the report?", "-c", harbour, "--max-tokens", "3")
    assert shown.startswith("xxx") and "blended: of " in shown and "report.md" in shown
    run("query", "-c", harbour, status=2)


def test_a_comparison_is_read_by_programs_too(scripted: ScriptedService, harbour: str) -> None:
    """As `kvblend demo --json` prints each."""
    with Client(scripted.url, api_key="secret") as client:
        told = json.loads(json.dumps(ask(client, harbour, "Who signs the report?", top_k=2).as_json()))
    assert told["question"] == "Who signs the report?" and list(told["answers"]) == ["blend", "none", "prefix_cache"]
    reports = {mode: answer["report"] for mode, answer in told["answers"].items()}
    assert reports["blend"]["outcome"] == "blended" and reports["none"]["reason"] == "asked for: reuse is none"


def test_two_files_of_one_name_are_refused(scripted: ScriptedService, tmp_path: Path) -> None:
    """Only one of them would be taken; a file that is named twice is one."""
    for folder in ("north", "south"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tides.txt").write_text(f"The tides of the {folder}.")
    told = CliRunner().invoke(commands.app, ["ingest", str(tmp_path / "north"), str(tmp_path / "south"), "-c", "tides"])
    assert isinstance(told.exception, InvalidRequestError)
    assert "south/tides.txt would both be the document 'tides.txt'" in str(told.exception)
    north = tmp_path / "north"
    assert len(answer("ingest", north, north / "tides.txt", "-c", "tides")["jobs"][0]["document_ids"]) == 1
    assert len(answer("ingest", tmp_path, "-c", "tides")["jobs"][0]["document_ids"]) == 2
    with Client(scripted.url, api_key="secret") as client:
        client.delete_collection("tides")


def test_the_store_is_read_by_programs_too(harbour: str) -> None:
    assert [tier["name"] for tier in answer("kv", "stats")["tiers"]] == ["disk"]
    assert len(answer("kv", "lookup", harbour)["missing"]) == 2
    assert answer("kv", "pin", harbour) == {"num_files": 0}
    assert answer("kv", "sweep") == {"num_passages": 0}
    (pair,) = answer("kv", "pairs", harbour, "--limit", "1")["pairs"]
    assert pair["count"] > 0 and f"{pair['count']:.1f}" in run("kv", "pairs", harbour)
    assert "2 passages have no KV" in run("kv", "lookup", harbour)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("query ? -c nowhere", "error: there is no collection 'nowhere'"),
        ("documents delete nowhere any --yes", "error: there is no collection 'nowhere'"),
        ("jobs show nowhere any", "has no job 'any'"),
        ("collections list --api-key wrong", "no valid API key"),
        ("collections list --url harbour", "error: 'harbour' is no URL that begins with http:// or https://"),
        ("query ? --url http://127.0.0.1:9", "error: the kvblend service at http://127.0.0.1:9 does not answer"),
        ("query ? --target-kl 1 --recompute-ratio 1", "give one of recompute_ratio and target_kl"),
        ("query ? --chat --target-kl 1 --recompute-ratio 1", "give one of recompute_ratio and target_kl"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, sentence: str
) -> None:
    assert sentence in refused(monkeypatch, capsys, *words.split())


def test_a_setting_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVBLEND_CPU_BYTES", "much")
    assert refused(monkeypatch, capsys, "kv", "stats").startswith("error: KVBLEND_CPU_BYTES=much: Input should be")
    monkeypatch.delenv("KVBLEND_CPU_BYTES")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    said = refused(monkeypatch, capsys, "serve", "demo")
    assert said.startswith("error: OTEL_EXPORTER_OTLP_PROTOCOL=http/json: Input should be 'grpc' or 'http/protobuf'")


def test_a_file_that_cannot_be_had_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVBLEND_HOME", "/dev/null/home")
    assert refused(monkeypatch, capsys, "kv", "size", "demo") == "error: /dev/null/home/models: Not a directory"


@pytest.mark.usefixtures("harbour")
def test_the_shell_completes_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_KVBLEND_COMPLETE", "complete_bash")
    for line in ("kvblend documents list harb", "kvblend query why -c harb"):
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
        assert CliRunner().invoke(commands.app, prog_name="kvblend").stdout.split() == ["harbour"]
    monkeypatch.setenv("KVBLEND_URL", "http://127.0.0.1:9")
    assert CliRunner().invoke(commands.app, prog_name="kvblend").stdout.strip() == ""
