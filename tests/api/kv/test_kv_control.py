"""The store under an operator's hand, by the running service and its command."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvblend.cli.app import app
from kvblend.core.errors import InvalidRequestError, NotFoundError
from kvblend.sdk import Client
from kvblend.store import NEVER, CPUTier, DiskTier, PassageKVKey, TieredStore
from kvblend.store.content import TensorContent
from tests.service import RunningService

TEXT = "The tide mill of Sund grinds at every ebb. " * 40


@pytest.fixture
def collection(client: Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """Two documents of several passages each."""
    name = f"control-{request.node.name.split('[')[0].removeprefix('test_')[:40]}"
    client.create_collection(name, passage_tokens=64)
    for document in ("a", "b"):
        client.wait(client.add_document(name, f"{document} {name}. {TEXT}", id=document))
    yield name
    client.delete_collection(name)


@pytest.fixture
def client(service: RunningService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


def files_of(service: RunningService, passage_id: str) -> list[Path]:
    roots = (service.cpu_path, service.home / "kv")
    return [path for root in roots for path in root.rglob(f"{passage_id}/*.kv")]


def make_raw(service: RunningService, client: Client, collection: str) -> None:
    """As files are that were stored before a codec was set."""
    tiers = (CPUTier(service.cpu_path, budget_bytes=1 << 30), DiskTier(service.home / "kv", budget_bytes=1 << 30))
    with TieredStore(tiers):
        for file in client.kv_lookup(collection).files:
            key = PassageKVKey(file.model_fingerprint, file.encode_context, file.passage_id, *file.heads)
            tier = next(tier for tier in tiers if tier.name == file.tier)
            with tier.fetch_many([key], NEVER)[key] as opened:
                kv, header = opened.read(), opened.header
            content = TensorContent(key, kv, capture_position=header.capture_position, owners=header.owners)
            assert tier.replace(content)


def disk_bytes(client: Client, collection: str) -> int:
    return sum(file.num_bytes for file in client.kv_lookup(collection).files if file.tier == "disk")


def eventually(holds: Callable[[], bool], within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_lookup(service: RunningService, client: Client, collection: str) -> None:
    found = client.kv_lookup(collection)
    assert not found.missing and {file.tier for file in found.files} == {"cpu", "disk"}
    assert {file.owner.split("/")[1] for file in found.files} == {collection}
    document = client.kv_lookup(collection, document_id="a")
    assert 0 < len(document.files) < len(found.files)
    passage_id = document.files[0].passage_id
    one = client.kv_lookup(collection, passage_ids=[passage_id])
    assert {file.passage_id for file in one.files} == {passage_id}
    assert sorted(file.num_bytes for file in one.files) == sorted(
        path.stat().st_size for path in files_of(service, passage_id)
    )


def test_pin_and_unpin(service: RunningService, client: Client, collection: str) -> None:
    passage_id = client.kv_lookup(collection).files[0].passage_id
    num_files = len(files_of(service, passage_id))
    assert client.kv_pin(collection, passage_ids=[passage_id]) == num_files
    pinned = {file.passage_id for file in client.kv_lookup(collection).files if file.pinned}
    assert pinned == {passage_id}
    assert sum(tier.num_pinned for tier in client.kv_stats().tiers) >= num_files
    assert client.kv_unpin(collection) >= num_files
    assert not any(file.pinned for file in client.kv_lookup(collection).files)


def test_move(client: Client, collection: str) -> None:
    """Slower: out of the CPU tier, to the disk tier, where it lies already; and back."""
    num_files = len([file for file in client.kv_lookup(collection).files if file.tier == "cpu"])
    assert client.kv_move(collection, "slower") == num_files
    assert {file.tier for file in client.kv_lookup(collection).files} == {"disk"}
    assert client.kv_move(collection, "faster", document_id="a") > 0
    tiers = {file.tier for file in client.kv_lookup(collection, document_id="a").files}
    assert tiers == {"cpu", "disk"}
    assert {file.tier for file in client.kv_lookup(collection, document_id="b").files} >= {"disk"}


def test_clear_keeps_the_documents(service: RunningService, client: Client, collection: str) -> None:
    found = client.kv_lookup(collection, document_id="a")
    ids = {file.passage_id for file in found.files}
    assert client.kv_clear(collection, document_id="a") == len(found.files)
    cleared = {(file.passage_id, file.encode_context) for file in found.files}
    for folder in (service.cpu_path, service.home / "kv"):
        left = {(path.parent.name, path.name.partition(".")[0]) for path in folder.rglob("*.kv")}
        assert left.isdisjoint(cleared)
    assert set(client.kv_lookup(collection, document_id="a").missing) == ids
    assert client.get_document(collection, "a").num_passages > 0
    assert client.kv_lookup(collection, document_id="b").files


def test_what_another_collection_holds_too_is_not_cleared(client: Client, collection: str) -> None:
    client.create_collection("control-other", passage_tokens=64)
    client.wait(client.add_document("control-other", f"a {collection}. {TEXT}", id="a"))
    with pytest.raises(InvalidRequestError, match="are in other collections with the same encode context"):
        client.kv_clear(collection)
    client.delete_collection("control-other")
    assert client.kv_lookup(collection).files and client.kv_clear(collection) > 0


def test_compress(service: RunningService, client: Client, collection: str) -> None:
    """In place, in every tier; once: what is rounded already is not rounded again. An answer reads what was written."""
    make_raw(service, client, collection)
    before = client.kv_lookup(collection).files
    client.kv_pin(collection, passage_ids=[before[0].passage_id])
    document = client.kv_lookup(collection, document_id="a").files
    done = client.kv_compress(collection, "entropy", document_id="a")
    assert done.num_files == len(document) and done.saved_bytes > 0.5 * sum(file.num_bytes for file in document)
    rest = client.kv_compress(collection, "int8")
    assert rest.num_files == len(before) - len(document)
    after = client.kv_lookup(collection).files
    saved = sum(file.num_bytes for file in before) - sum(file.num_bytes for file in after)
    assert saved == done.saved_bytes + rest.saved_bytes
    assert sorted((file.tier, file.passage_id, file.pinned) for file in after) == sorted(
        (file.tier, file.passage_id, file.passage_id == before[0].passage_id) for file in before
    )
    assert client.kv_compress(collection).num_files == 0
    assert client.kv_verify().quarantined == []
    report = client.query(collection, "What grinds at every ebb?", top_k=3, max_tokens=2).report
    assert report.outcome == "blended" and report.reused_tokens > 0
    client.kv_unpin(collection)


def test_a_quota_holds_a_collection_and_not_its_neighbour(client: Client, collection: str) -> None:
    client.create_collection("control-neighbour", passage_tokens=64)
    client.wait(client.add_document("control-neighbour", "The miller's neighbour keeps bees.", id="a"))
    neighbour = client.kv_lookup("control-neighbour").files
    sizes = [file.num_bytes for file in client.kv_lookup(collection).files if file.tier == "disk"]
    quota = sum(sizes) - 1
    assert client.update_collection(collection, kv_quota_bytes=quota).kv_quota_bytes == quota
    eventually(lambda: disk_bytes(client, collection) <= quota)
    assert disk_bytes(client, collection) > 0.5 * quota
    assert client.kv_lookup("control-neighbour").files == neighbour
    text = " ".join(
        f"Mill number {number} of Sund grinds rye for the {number} bakers of the coast." for number in range(60)
    )
    job = client.wait(client.add_document(collection, text, id="c"))
    assert job.passages_deferred > 0 and job.error is not None and f"quota leaves {quota}" in job.error
    eventually(lambda: disk_bytes(client, collection) <= quota)
    assert client.update_collection(collection, kv_quota_bytes=None).kv_quota_bytes is None
    client.delete_collection("control-neighbour")


def test_what_nobody_uses_for_its_time_to_live_goes(client: Client, collection: str) -> None:
    kept = client.kv_lookup(collection).files[0].passage_id
    client.kv_pin(collection, passage_ids=[kept])
    assert client.update_collection(collection, kv_ttl_s=1.0).kv_ttl_s == 1.0
    eventually(lambda: {file.passage_id for file in client.kv_lookup(collection).files} == {kept})
    assert client.update_collection(collection, kv_ttl_s=None).kv_ttl_s is None
    client.kv_unpin(collection)


def test_limits_are_checked(client: Client, collection: str) -> None:
    for limits in ({"kv_quota_bytes": -1}, {"kv_ttl_s": 0.0}, {"kv_ttl_s": float("nan")}):
        with pytest.raises(InvalidRequestError, match=next(iter(limits))):
            client.update_collection(collection, **limits)
    with pytest.raises(NotFoundError, match="nowhere"):
        client.update_collection("nowhere", kv_ttl_s=5.0)


def test_verify_finds_damage(service: RunningService, client: Client, collection: str) -> None:
    passage_id = client.kv_lookup(collection).files[0].passage_id
    path = next(path for path in files_of(service, passage_id) if path.is_relative_to(service.cpu_path))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    report = client.kv_verify()
    assert report.num_files > 0 and [name.split(":")[0] for name in report.quarantined] == ["cpu"]
    assert client.kv_verify().quarantined == []


def test_a_sweep_finds_nothing_where_nothing_is_left(client: Client, collection: str) -> None:
    assert client.kv_sweep() == 0
    assert not client.kv_lookup(collection).missing


def test_bad_input_is_named(client: Client, collection: str) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        client.kv_lookup("nowhere")
    with pytest.raises(NotFoundError, match="'c'"):
        client.kv_pin(collection, document_id="c")
    with pytest.raises(InvalidRequestError, match="'feed' is not in what is selected"):
        client.kv_unpin(collection, passage_ids=["feed"])


def test_the_command(service: RunningService, collection: str) -> None:
    def run(*words: str) -> str:
        result = CliRunner().invoke(app, ["kv", *words, "--url", service.url])
        assert result.exit_code == 0, result.output
        return result.output

    assert json.loads(run("lookup", collection, "--json"))["missing"] == []
    assert "disk" in run("lookup", collection) and "budget" in run("stats")
    assert json.loads(run("pin", collection, "--document", "a", "--json"))["num_files"] > 0
    assert "files" in run("unpin", collection)
    assert json.loads(run("move", collection, "--to", "slower", "--json"))["num_files"] > 0
    assert "0 files" in run("compress", collection), "what the service has stored is no raw KV"
    assert "0 damaged" in run("verify") and "passages" in run("sweep")
    assert json.loads(run("clear", collection, "--json"))["num_files"] > 0
    assert "passages have no KV" in run("lookup", collection)
