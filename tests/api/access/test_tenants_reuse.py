"""Reuse within a tenant and none beyond it, by a real vLLM and its connector."""

from pathlib import Path

from kvblend.sdk import Client
from tests.api.access.served_keys import key_of, write_keys
from tests.api.front import front
from tests.service import RunningService

TEXT = "The report is signed by the head of the department. " * 12


def test_a_passage_is_reused_by_its_own_tenant_alone(
    service: RunningService, demo_model_path: Path, embedding_model_path: Path, tmp_path: Path
) -> None:
    """Reference: what the default tenant has stored. Ours: two tenants that ingest the same text after it."""
    keys = write_keys(tmp_path / "keys.yaml")
    options = {"home": tmp_path / "home", "keys": keys, "cost_model": False}
    with front(service, model=demo_model_path, embedding_model=embedding_model_path, **options) as url:  # type: ignore[arg-type]
        for name in ("ops", "acme-admin", "beta-admin"):
            with Client(url, api_key=key_of(name)) as client:
                client.create_collection("docs", passage_tokens=64)
                job = client.wait(client.add_document("docs", TEXT, id="report"))
                assert (job.status, job.passages_reused) == ("succeeded", 0), name
                assert job.passages_encoded == job.passages_total > 0
                report = client.query("docs", "Who signs the report?").report
                assert report.outcome == "blended" and report.reused_tokens > 0, report
                files = client.kv_lookup("docs").files
                assert files and all(f"{'' if name == 'ops' else name[:4] + '/'}docs" in file.owner for file in files)
                client.create_collection("same", passage_tokens=64)
                again = client.wait(client.add_document("same", TEXT, id="report"))
                assert again.passages_reused == again.passages_total, name
