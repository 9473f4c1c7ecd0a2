"""Passages that a caller supplies and that are ingested have the KV that they have there."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvblend.core.rest import BlendOptions, SuppliedDocument
from kvblend.sdk import Client
from tests.api.scripted_service import ScriptedService, scripted_service

QUESTION = "What does the lamp burn?"
TEXT = " ".join(f"On day {day} the lamp of Vik burns oil of seal number {day}." for day in range(40))


@pytest.fixture(scope="module")
def service(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    folder = tmp_path_factory.mktemp("supplied")
    with scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path) as service:
        with Client(service.url) as client:
            for name, preamble in (("empty", None), ("lamps", "Speak of lamps."), ("few", "Speak of little.")):
                client.create_collection(name, passage_tokens=64, preamble=preamble)
            clock = "The clock of Vik strikes thirteen."
            for name, id, text in (("lamps", "lamp", TEXT), ("lamps", "clock", clock), ("few", "late", clock)):
                client.wait(client.add_document(name, text, id=id), timeout_s=300)
        yield service


@pytest.fixture
def client(service: ScriptedService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


def spans(service: ScriptedService) -> list[dict[str, Any]]:
    """The spans of the last plan that the engine was sent; encodes come beside it."""
    orders = [body["kv_transfer_params"]["kvblend"] for body in service.engine.bodies if "kv_transfer_params" in body]
    spans: list[dict[str, Any]] = [order["blend"]["spans"] for order in orders if "blend" in order][-1]
    return spans


def test_they_are_planned_as_their_collection_plans_them(service: ScriptedService, client: Client) -> None:
    """Reference: a query of the collection. Ours: a chat over what was retrieved, which names no collection."""
    sources = client.query("lamps", QUESTION, top_k=4, max_tokens=1).sources
    reference = spans(service)
    messages = [{"role": "user", "content": QUESTION}]
    answer = client.chat(messages, blend=BlendOptions(documents=[source.text for source in sources]))
    assert spans(service) == reference
    contexts = [span["encode_contexts"] for span in reference if span["kind"] == "passage"]
    assert any(one != other for one, other in pairwise(contexts)), "they stand behind their document's own text"
    assert answer.kvblend is not None
    named = [(source.document_id, source.document_name) for source in answer.kvblend.sources]
    assert named == [(source.document_id, source.document_name) for source in sources]


def test_the_collection_that_holds_most_of_them_is_taken_unless_one_is_named(
    service: ScriptedService, client: Client
) -> None:
    sources = client.query("lamps", QUESTION, top_k=3, max_tokens=1).sources
    reference = spans(service)
    assert client.query("few", QUESTION, top_k=1, max_tokens=1).sources[0].document_id == "late"
    few = spans(service)
    clock = "The clock of Vik strikes thirteen."
    messages = [{"role": "user", "content": QUESTION}]
    client.chat(messages, blend=BlendOptions(documents=[clock, *(source.text for source in sources)]))
    assert spans(service)[0] == reference[0] and spans(service)[2:] == reference[1:]
    client.chat(messages, blend=BlendOptions(documents=[clock], collection="few"))
    assert spans(service) == few


def test_what_is_ingested_nowhere_stands_behind_the_collections_own_context(
    service: ScriptedService, client: Client
) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    mine = SuppliedDocument(text="The ferry to Vik leaves at noon.", id="mine", metadata={"document_id": "theirs"})
    answer = client.chat(messages, blend=BlendOptions(documents=[mine]))
    alone = spans(service)
    client.chat(messages, blend=BlendOptions(documents=[mine], collection="empty"))
    assert spans(service) == alone, "both have the service's own preamble and context"
    assert answer.kvblend is not None
    (source,) = answer.kvblend.sources
    assert (source.document_id, source.document_name, source.metadata) == ("mine", None, {"document_id": "theirs"})
