"""The vector store in LangChain's conformance suite and as a chain uses it."""

import uuid
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from kvblend.core.errors import InvalidRequestError
from kvblend.sdk import Client
from kvblend.sdk.langchain import KVBlendVectorStore
from tests.api.scripted_service import ScriptedService, scripted_service

LONG = " ".join(f"In year {year} the ferry to Vik sailed {year % 7} times a day." for year in range(1900, 1960))


@pytest.fixture(scope="module", autouse=True)
def service(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    folder = tmp_path_factory.mktemp("store")
    with scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path) as service:
        TestConformance.url = service.url
        yield service


def new_store(url: str) -> KVBlendVectorStore:
    return KVBlendVectorStore(f"store-{uuid.uuid4().hex[:8]}", base_url=url)


class TestConformance(VectorStoreIntegrationTests):
    url: ClassVar[str] = ""

    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:
        yield new_store(self.url)


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}, date(2026, 1, 2)], ids=repr)
def test_metadata_that_no_filter_compares_is_refused(service: ScriptedService, value: object) -> None:
    store = new_store(service.url)
    with pytest.raises(InvalidRequestError, match="metadata"):
        store.add_texts(["The lamp burns."], [{"m": value}])
    assert store.add_texts(["The lamp burns."], [{"text": "a", "number": np.float32(0.5), "is": True}], ids=["lamp"])
    assert store.get_by_ids(["lamp"])[0].metadata == {"text": "a", "number": 0.5, "is": True}


def test_a_long_document_is_found_by_its_passages_and_given_back_whole(service: ScriptedService) -> None:
    store = KVBlendVectorStore.from_texts(
        [LONG, "The lamp of Vik burns seal oil."],
        metadatas=[{"of": "ferries"}, {"of": "lamps"}],
        ids=["ferry", "lamp"],
        collection="long",
        base_url=service.url,
    )
    found = store.similarity_search("How often did the ferry sail in 1944?", k=2)
    assert [(each.id, each.metadata) for each in found] == [("ferry", {"of": "ferries"})] * 2
    assert all(each.page_content in LONG for each in found) and found[0].page_content != LONG
    assert store.get_by_ids(["ferry", "ghost"]) == [Document(id="ferry", page_content=LONG, metadata={"of": "ferries"})]
    assert [each.id for each in store.similarity_search("ferry", k=4, filter={"of": "lamps"})] == ["lamp"]
    scored = store.similarity_search_with_relevance_scores("What does the lamp burn?", k=1, mode="vector")
    assert scored[0][0].id == "lamp" and 0.3 < scored[0][1] <= 1.0
    store.delete()
    assert store.similarity_search("ferry") == []
    with Client(service.url) as client:
        assert client.get_collection("long").num_documents == 0


def test_a_retriever_of_it(service: ScriptedService) -> None:
    store = new_store(service.url)
    store.add_texts(["The clock of Vik strikes thirteen.", "The oven of Vik is fired with birch."])
    (found,) = store.as_retriever(search_kwargs={"k": 1}).invoke("What does the clock strike?")
    assert found.page_content == "The clock of Vik strikes thirteen." and found.metadata == {}
