"""What becomes of documents between the upload and the catalog; all of it but the KV."""

import asyncio
import sqlite3
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvblend.core.rest import IngestJob
from tests.api.scripted_service import ScriptedService, scripted_service
from tests.retriever.slow_pdf import slow_pdf

DOCUMENTS = "/v1/collections/c/documents"


@pytest.fixture(scope="module")
def scripted(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    folder = tmp_path_factory.mktemp("ingest")
    limits: dict[str, Any] = {"parse_seconds": 3, "parse_bytes": 200 << 20}
    with scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path, **limits) as service:
        yield service


@pytest.fixture
async def client(scripted: ScriptedService) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=scripted.url, timeout=60) as client:
        await client.post("/v1/collections", json={"name": "c", "passage_tokens": 64})
        yield client
        await client.delete("/v1/collections/c")


async def upload(client: httpx.AsyncClient, **document: Any) -> IngestJob:
    response = await client.post(DOCUMENTS, json=document)
    assert response.status_code == 202, response.text
    return IngestJob.model_validate(response.json())


async def ended(client: httpx.AsyncClient, job: IngestJob) -> IngestJob:
    async with asyncio.timeout(60):
        while job.status not in ("succeeded", "failed"):
            await asyncio.sleep(0.05)
            job = IngestJob.model_validate((await client.get(f"/v1/collections/c/jobs/{job.id}")).json())
    return job


async def ids(client: httpx.AsyncClient) -> list[str]:
    return [document["id"] for document in (await client.get(DOCUMENTS)).json()["documents"]]


async def test_a_new_name_or_metadata_of_an_unchanged_text_is_kept(client: httpx.AsyncClient) -> None:
    await ended(client, await upload(client, id="a", text="The bridge of Vik.", metadata={"page": 1}))
    for name, metadata in (("a", {"page": 2}), ("The bridge", {"page": 2}), ("The bridge", {})):
        job = await ended(client, await upload(client, id="a", name=name, text="The bridge of Vik.", metadata=metadata))
        assert job.status == "succeeded"
        document = (await client.get(f"{DOCUMENTS}/a")).json()
        assert (document["name"], document["metadata"]) == (name, metadata)
        source = (await client.post("/v1/collections/c/search", json={"query": "bridge"})).json()["sources"][0]
        assert (source["document_name"], source["metadata"]) == (name, metadata)


@pytest.mark.parametrize("pause_s", [0.0, 0.01, 0.05, 0.2])
async def test_a_document_deleted_before_it_is_committed_never_appears(
    client: httpx.AsyncClient, pause_s: float
) -> None:
    job = await upload(client, id="a", text="The bridge of Vik is closed. " * 2000)
    await asyncio.sleep(pause_s)
    assert (await client.delete(f"{DOCUMENTS}/a")).status_code == 204
    assert (await ended(client, job)).status == "succeeded"
    assert await ids(client) == []
    assert (await client.delete(f"{DOCUMENTS}/a")).status_code == 404
    await ended(client, await upload(client, id="a", text="Again."))
    assert await ids(client) == ["a"], "negative control: a later upload does appear"


async def test_a_collection_made_anew_gets_nothing_of_the_old_ones_uploads(client: httpx.AsyncClient) -> None:
    await upload(client, id="old", text="The bridge of Vik is closed. " * 5000)
    assert (await client.delete("/v1/collections/c")).status_code == 204
    await client.post("/v1/collections", json={"name": "c", "passage_tokens": 64})
    await ended(client, await upload(client, id="new", text="The bridge is open. " * 5000))
    assert await ids(client) == ["new"]


async def test_the_newest_upload_of_a_document_wins_however_long_the_older_one_takes(client: httpx.AsyncClient) -> None:
    jobs = [
        await upload(client, id="a", text="An older text. " * 20_000),
        await upload(client, id="a", text="The newest text."),
    ]
    for job in jobs:
        assert (await ended(client, job)).status == "succeeded"
    found = (await client.post("/v1/collections/c/search", json={"query": "text"})).json()["sources"]
    assert [source["text"] for source in found] == ["The newest text."]


async def test_a_bad_document_costs_its_neighbours_nothing(client: httpx.AsyncClient) -> None:
    files = [
        ("files", ("good.txt", b"A good document.")),
        ("files", ("broken.pdf", b"%PDF-1.7\n1 0 obj <</Type /Cat")),
        ("files", ("binary.txt", bytes(range(256)) * 4)),
        ("files", ("bomb.pdf", slow_pdf())),
    ]
    began = time.monotonic()
    response = await client.post(DOCUMENTS, files=files)
    assert response.status_code == 202 and time.monotonic() - began < 2, "it is answered before anything is parsed"
    job = await ended(client, IngestJob.model_validate(response.json()))
    assert job.status == "failed" and (job.error or "").startswith("3 of 4 documents were not taken")
    assert sorted(job.failures) == ["binary.txt", "bomb.pdf", "broken.pdf"]
    assert (
        "'bomb.pdf' takes more than" in job.failures["bomb.pdf"]
    )  # time, or memory: which comes first hangs on the machine
    assert "broken.pdf" in job.failures["broken.pdf"] and "binary.txt" in job.failures["binary.txt"]
    assert await ids(client) == ["good.txt"]


async def test_more_than_may_wait_comes_back_later(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvblend.api.ingest.MAX_WAITING_BYTES", 100_000)
    job = await upload(client, id="large", text="The bridge of Vik. " * 20_000)  # alone it may be larger
    refused = await client.post(DOCUMENTS, json={"id": "b", "text": "The river Orm."})
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0
    assert refused.json()["error"]["code"] == "overloaded"
    await ended(client, job)
    await ended(client, await upload(client, id="b", text="The river Orm."))
    assert await ids(client) == ["b", "large"]


async def test_searches_do_not_wait_for_bombs(client: httpx.AsyncClient) -> None:
    """Eight of them at once; in the service's own process each search waited for seconds."""
    await ended(client, await upload(client, id="a", text="The bridge of Vik."))
    bomb = slow_pdf()
    files = [[("files", (f"{number}.pdf", bomb + zlib.compress(b"%d" % number)))] for number in range(8)]
    jobs = [IngestJob.model_validate((await client.post(DOCUMENTS, files=each)).json()) for each in files]
    await asyncio.sleep(1)
    seconds = []
    for _ in range(10):
        began = time.monotonic()
        assert (await client.post("/v1/collections/c/search", json={"query": "bridge"})).json()["sources"]
        seconds.append(time.monotonic() - began)
    assert sorted(seconds)[5] < 0.5, seconds
    for job in jobs:
        assert await client.delete(f"{DOCUMENTS}/{job.document_ids[0]}")
    for job in jobs:
        await ended(client, job)


async def test_a_job_says_what_made_it_fail(client: httpx.AsyncClient, scripted: ScriptedService) -> None:
    """An error of ours in the midst of a job, here since the collection was made by another embedding model."""
    await ended(client, await upload(client, id="a", text="The bridge of Vik."))
    with sqlite3.connect(scripted.home / "collections" / "catalog.sqlite3") as catalog:
        catalog.execute("UPDATE stored_values SET value = '\"another\"' WHERE name = 'embedding_model'")
    job = await ended(client, await upload(client, id="b", text="The river Orm."))
    assert job.status == "failed"
    assert "embedded by another embedding model" in (job.error or ""), job.error
