"""The retriever and the chat model, in LangChain's conformance suites and in chains."""

import asyncio
import subprocess
import sys
from datetime import date
from typing import Any, ClassVar

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnablePassthrough
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from kvblend.core.errors import EngineUnavailableError, PromptTooLongError
from kvblend.sdk import Client
from kvblend.sdk.langchain import ChatKVBlend, KVBlendRetriever, blend_documents

BEES = Document(id="b", page_content="bees make honey", metadata={"day": date(2026, 1, 2)})
COWS = Document(page_content="cows give milk")


@pytest.fixture(autouse=True)
def filled(url: str) -> str:
    """A service whose collection `wiki` holds five documents."""
    with Client(url) as client:
        client.create_collection("wiki")
        for animal in ("bees make honey", "cows give milk", "dogs bark", "cats purr", "hens lay eggs"):
            client.add_document("wiki", animal, id=animal[:4])
    UnderTest.url = url
    return url


@pytest.fixture(scope="module")
def vcr_config() -> dict[str, bool]:
    """The suites may record traffic; ours goes to a local service and is never replayed."""
    return {"ignore_localhost": True}


class UnderTest:
    """Where the conformance suites find the service: they ask for it through properties."""

    url: ClassVar[str] = ""


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[ChatKVBlend]:
        return ChatKVBlend

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "small"}


class TestConformance(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatKVBlend]:
        return ChatKVBlend

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": UnderTest.url, "documents": [BEES]}

    @property
    def model_override_value(self) -> str:
        return "another"


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[KVBlendRetriever]:
        return KVBlendRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"base_url": UnderTest.url, "collection": "wiki"}

    @property
    def retriever_query_example(self) -> str:
        return "honey"


def test_documents_are_blended_and_reported(url: str) -> None:
    chat = ChatKVBlend(base_url=url, recompute_ratio=0.25)
    empty = Document(page_content="")
    answer = chat.with_documents([BEES, empty, COWS]).invoke([SystemMessage("Be brief."), HumanMessage("who?")])
    assert answer.content == "You asked: who?"
    result = answer.response_metadata["kvblend"]
    assert result["report"]["reused_tokens"] == 2 and result["report"]["recompute_ratio"] == 0.25
    assert [source["text"] for source in result["sources"]] == ["bees make honey", "cows give milk"]
    assert result["sources"][0]["metadata"] == {"day": "2026-01-02"}


def test_a_streamed_answer_equals_the_whole_one(url: str) -> None:
    """Reference: invoke. Ours: the sum of stream's chunks."""
    chat = ChatKVBlend(base_url=url).with_documents([BEES])
    total: Any = None
    num_chunks = 0
    for chunk in chat.stream("who makes honey?"):
        total = chunk if total is None else total + chunk
        num_chunks += 1
    whole = chat.invoke("who makes honey?")
    assert isinstance(total, AIMessageChunk) and num_chunks > 5
    assert total.content == whole.content
    assert total.response_metadata == whole.response_metadata
    assert isinstance(whole, AIMessage) and total.usage_metadata == whole.usage_metadata


def test_a_chain_of_retriever_and_chat_model(url: str) -> None:
    retriever = KVBlendRetriever(base_url=url, collection="wiki", k=2)
    chat = ChatKVBlend(base_url=url, collection="wiki")
    chain = {"documents": retriever, "question": RunnablePassthrough()} | blend_documents(chat)
    answer = chain.invoke("who makes honey")
    assert answer.content == "You asked: who makes honey"
    sources = answer.response_metadata["kvblend"]["sources"]
    assert len(sources) == 2
    assert sources[0]["metadata"] == {"document_id": "bees", "document_name": "bees", "score": 1 / 3}
    assert "".join((chain | StrOutputParser()).stream("who makes honey")) == answer.content


def test_a_chain_runs_in_one_event_loop_after_another(url: str) -> None:
    retriever = KVBlendRetriever(base_url=url, collection="wiki")
    chat = ChatKVBlend(base_url=url)
    texts = {"documents": retriever | (lambda found: found[:1]), "question": RunnablePassthrough()}
    chain = texts | blend_documents(chat) | StrOutputParser()

    async def streamed() -> list[str]:
        return [text async for text in chain.astream("who makes honey")]

    for _ in range(2):
        assert asyncio.run(chain.ainvoke("who makes honey")) == "You asked: who makes honey"
        assert len(asyncio.run(streamed())) > 3


def test_errors_are_those_of_core(url: str) -> None:
    chat = ChatKVBlend(base_url=url)
    with pytest.raises(PromptTooLongError, match="7 tokens"):
        chat.with_documents([COWS] * 4).invoke("?")
    with pytest.raises(EngineUnavailableError, match="died"):
        list(chat.stream("fail"))


def test_the_sdk_needs_neither_torch_nor_langchain() -> None:
    program = (
        "import kvblend.sdk, sys; sys.exit(bool({'torch', 'langchain_core', 'fastapi', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    program = "import kvblend.sdk.langchain, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
