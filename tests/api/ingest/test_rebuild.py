"""A rebuild outlives the service's process, as an ingest does."""

import time
from pathlib import Path
from typing import Any

import httpx

from kvblend.core.rest import IngestJob
from tests.api.scripted_service import ScriptedService, scripted_service

TEXT = "\n\n".join(f"The bridge number {number} of Vik was opened in the year {1900 + number}." for number in range(40))
IDS = ["a", "b", "c"]
DOCUMENTS = "/v1/collections/c/documents"


def client_of(service: ScriptedService) -> httpx.Client:
    return httpx.Client(base_url=service.url, timeout=60)


def ended(client: httpx.Client, job: dict[str, Any]) -> IngestJob:
    """The job at its end."""
    deadline = time.monotonic() + 120
    while True:
        state = IngestJob.model_validate(client.get(f"/v1/collections/c/jobs/{job['id']}").raise_for_status().json())
        if state.status in ("succeeded", "failed"):
            return state
        assert time.monotonic() < deadline, state
        time.sleep(0.05)


def sizes(client: httpx.Client) -> dict[str, int]:
    """How many passages each document has."""
    return {each["id"]: each["num_passages"] for each in client.get(DOCUMENTS).raise_for_status().json()["documents"]}


def test_a_rebuild_that_is_cut_off_goes_on(demo_model_path: Path, embedding_model_path: Path, tmp_path: Path) -> None:
    models: dict[str, Any] = {"model": demo_model_path, "embedding_model": embedding_model_path}
    with scripted_service(tmp_path, **models) as service, client_of(service) as client:
        client.post("/v1/collections", json={"name": "c", "passage_tokens": 64}).raise_for_status()
        for id in IDS:
            job = client.post(DOCUMENTS, json={"id": id, "text": f"Of {id}. {TEXT}"}).raise_for_status().json()
            assert ended(client, job).status == "succeeded"
        before = sizes(client)
        service.engine.hangs = True  # so that the first document's encodes do, and the others wait for it
        rebuild = client.post("/v1/collections/c/rebuild", json={"passage_tokens": 256}).raise_for_status().json()
        deadline = time.monotonic() + 120
        while sizes(client)["a"] == before["a"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert sizes(client)["b"] == before["b"] and sizes(client)["c"] == before["c"]
        assert client.delete(f"{DOCUMENTS}/c").status_code == 204
    with scripted_service(tmp_path, **models) as service, client_of(service) as client:
        state = ended(client, rebuild)
        assert (state.status, state.document_ids, state.failures) == ("succeeded", IDS, {})
        after = sizes(client)
        assert set(after) == {"a", "b"} and all(after[id] < before[id] / 2 for id in after)
    with scripted_service(tmp_path, **models) as service, client_of(service) as client:
        assert ended(client, rebuild).seconds == state.seconds, "it has ended, and is not begun once more"
