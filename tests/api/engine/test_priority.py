"""Encodes go behind answers where vLLM knows priorities, and as before where it does not."""

from pathlib import Path
from typing import Any

import pytest

from kvblend.sdk import Client
from tests.api.access.test_tenants import order_of
from tests.api.scripted_service import scripted_service


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
