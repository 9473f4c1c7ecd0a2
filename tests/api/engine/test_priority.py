"""Encodes go behind answers where vLLM knows priorities, and as before where it does not."""

from pathlib import Path
from typing import Any

import pytest

from kvblend.api.kv import encoder
from kvblend.core.identity import token_hash
from kvblend.sdk import Client
from kvblend.store import DiskTier, TieredStore
from tests.api.access.test_tenants import order_of
from tests.api.kv.test_kv_control import eventually
from tests.api.scripted_service import scripted_service
from tests.api.stored_encode import store_encode


def encodes(bodies: list[dict[str, Any]]) -> list[int | None]:
    """The priorities of encode orders."""
    return [body.get("priority") for body in bodies if "encode" in order_of(body)]


def test_what_an_answer_missed_goes_before_an_ingest_and_behind_answers(
    demo_model_path: Path, embedding_model_path: Path, tmp_path: Path
) -> None:
    with (
        scripted_service(tmp_path, model=demo_model_path, embedding_model=embedding_model_path) as service,
        Client(service.url) as client,
    ):
        client.create_collection("docs", passage_tokens=32)
        client.wait(client.add_document("docs", "The head of the department signs the report."))
        assert set(encodes(service.engine.bodies)) == {2}
        begin = len(service.engine.bodies)
        client.query("docs", "Who signs?")
        client.query("docs", "Who signs?")
        later = service.engine.bodies[begin:]
        assert set(encodes(later)) <= {1, 2} and 1 in encodes(later)
        assert {body.get("priority") for body in later if "encode" not in order_of(body)} == {None}


def test_what_an_answer_missed_of_an_ingest_that_runs_goes_before_the_rest_of_it(
    demo_model_path: Path, embedding_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine answers nothing of the ingest's before it has encoded what the answer missed; each passage once."""
    monkeypatch.setattr(encoder, "MAX_TOKENS", 1)  # one after the other
    with (
        TieredStore([DiskTier(tmp_path / "home" / "kv", budget_bytes=1 << 30)]) as store,
        scripted_service(
            tmp_path,
            model=demo_model_path,
            embedding_model=embedding_model_path,
            encode=lambda prompt, order: store_encode(store, prompt, order),
        ) as service,
        Client(service.url) as client,
    ):
        service.engine.holds = lambda body: body.get("priority") == 2
        client.create_collection("docs", passage_tokens=32, warm_context="neutral")
        text = "\n\n".join(f"Room {number} of the tower has {number * 7} stairs." for number in range(40))
        job = client.add_document("docs", text, id="tower")
        eventually(lambda: client.get_collection("docs").num_documents == 1)
        (source,) = client.query("docs", "How many stairs has room 39?", top_k=1).sources
        eventually(lambda: 1 in encodes(service.engine.bodies))
        (missed,) = (body for body in service.engine.bodies if body.get("priority") == 1)
        assert source.passage_id == token_hash(missed["prompt"][order_of(missed)["encode"]["spans"][0][0] :])
        assert encodes(service.engine.bodies) == [1]
        eventually(lambda: not client.kv_lookup("docs", passage_ids=[source.passage_id]).missing)
        service.engine.holds = lambda body: False
        ended = client.wait(job)
        assert (ended.status, ended.error) == ("succeeded", None)
        assert ended.passages_encoded == ended.passages_total > 10
        assert len(encodes(service.engine.bodies)) == ended.passages_total + 1, "and the preamble"


def test_a_vllm_without_priorities_is_asked_once(
    demo_model_path: Path, embedding_model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        scripted_service(tmp_path, model=demo_model_path, embedding_model=embedding_model_path) as service,
        Client(service.url) as client,
    ):
        service.engine.has_priorities = False
        client.create_collection("docs", passage_tokens=32)
        client.wait(client.add_document("docs", "The head of the department signs the report. " * 20))
        client.wait(client.add_document("docs", "The deputy signs it in her absence. " * 20))
        sent = encodes(service.engine.bodies)
        assert sent.count(None) >= 2 and sent[-1] is None
        assert caplog.text.count("schedules without priorities") >= 1
