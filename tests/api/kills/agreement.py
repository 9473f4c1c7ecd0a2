"""Whether catalog, vector index, jobs and passage KV of a service agree."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from transformers import AutoTokenizer

from kvblend.api.ingest.journal import MAX_ENDED_JOBS
from kvblend.core.settings import Settings
from kvblend.retriever import Retriever
from kvblend.store import TieredStore
from tests.api.kills.traffic import COLLECTION, Traffic
from tests.retriever.ingest_until_killed import HashEmbedder

__all__ = ["check_catalog_and_index", "check_settled"]

SETTLE_S = 180.0


def check_catalog_and_index(home: Path, model: Path, scratch: Path) -> set[str]:
    """Assert it of a copy, as it lies on disk, of the retriever's files; returns the ids of all passages."""
    copy = scratch / "collections"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(home / "collections", copy)
    retriever = Retriever(copy, embedder=HashEmbedder(), tokenizer=AutoTokenizer.from_pretrained(model))
    try:
        retriever.check_integrity()
        documents = retriever.catalog.list_documents(COLLECTION, limit=1000)
        return {
            passage.passage_id
            for document in documents
            for passage in retriever.catalog.document_passages(COLLECTION, document.id)
        }
    finally:
        retriever.close()


def check_settled(traffic: Traffic, settings: Settings, model: Path, scratch: Path) -> None:
    """Assert of a running service, once it has had time, that what it acknowledged is there, and nothing else."""
    url = f"{traffic.url}/v1/collections/{COLLECTION}"
    for job in traffic.jobs[-MAX_ENDED_JOBS:]:  # of more the service need not know
        _until(lambda job=job: _job(url, job)["status"] in ("succeeded", "failed"), f"job {job} does not end")  # type: ignore[misc]
        state = _job(url, job)
        assert state["status"] == "succeeded" or "begun again" in state["error"], state
    documents = httpx.get(f"{url}/documents", params={"limit": 1000}, timeout=60).json()["documents"]
    found = {document["id"]: document["metadata"]["version"] for document in documents}
    for name, possible in traffic.possible.items():
        assert found.get(name) in possible, (name, found.get(name), possible)
    assert found.keys() <= traffic.possible.keys()

    select = {"collection": COLLECTION}
    _until(lambda: not _post(traffic.url, "lookup", select)["missing"], "some passages stay without KV")
    store = TieredStore.from_settings(settings)
    try:
        _until(lambda: not _orphans(store, traffic, settings, model, scratch), "KV stays that no collection holds")
    finally:
        store.close()
    report = _post(traffic.url, "verify")
    assert report["quarantined"] == [] and report["num_files"] > 0
    assert not [path for folder in _folders(settings) for path in folder.rglob("*.tmp")]


def _orphans(store: TieredStore, traffic: Traffic, settings: Settings, model: Path, scratch: Path) -> set[str]:
    _post(traffic.url, "sweep")
    held = check_catalog_and_index(settings.home_path, model, scratch)
    owned = {entry.key.passage_id for tier in store.bounded for entry in tier.entries() if entry.owner}
    return owned - held


def _folders(settings: Settings) -> list[Path]:
    return [folder for folder in (settings.cpu_path, settings.disk_tier_path) if folder.is_dir()]


def _job(url: str, job: str) -> dict[str, Any]:
    answer = httpx.get(f"{url}/jobs/{job}", timeout=60)
    assert answer.status_code == 200, f"an accepted job is not known: {answer.text}"
    found: dict[str, Any] = answer.json()
    return found


def _post(url: str, op: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/kv/{op}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + SETTLE_S
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.3)
