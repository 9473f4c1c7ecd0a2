"""The retriever and the chat model on the real service, in LangChain's conformance suites and in chains."""

import asyncio
import subprocess
import sys
from datetime import date
from typing import Any, ClassVar, Literal

import openai
import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnablePassthrough
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from pydantic import BaseModel

from kvblend.sdk import Client
from kvblend.sdk.langchain import ChatKVBlend, KVBlendRetriever, blend_documents
from tests.sdk.settled import until_settled
from tests.service import RunningService

FACTS = {
    "lamp": "The lamp of Vik burns seal oil.",
    "oven": "The oven of Vik is fired with birch.",
    "clock": "The clock of Vik strikes thirteen.",
    "ferry": "The ferry to Vik leaves at noon.",
}
LAMP = Document(id="lamp", page_content=FACTS["lamp"], metadata={"day": date(2026, 1, 2)})
OVEN = Document(page_content=FACTS["oven"])
QUESTION = "What does the lamp of Vik burn?"


class UnderTest:
    """Where the conformance suites find the service: they ask for it through properties."""

    url: ClassVar[str] = ""
    model: ClassVar[str] = ""


@pytest.fixture(scope="module", autouse=True)
def url(service: RunningService) -> str:
    """The real service, whose collection `sdk-vik` holds four documents."""
    with Client(service.url) as client:
        client.create_collection("sdk-vik")
        for job in [client.add_document("sdk-vik", text, id=id) for id, text in FACTS.items()]:
            client.wait(job, timeout_s=120)
        (UnderTest.model,) = client.list_models()
    UnderTest.url = service.url
    return service.url


@pytest.fixture(scope="module")
def vcr_config() -> dict[str, bool]:
    """The suites may record traffic; ours goes to a local service and is never replayed."""
    return {"ignore_localhost": True}


class TestConformance(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatKVBlend]:
        return ChatKVBlend

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": UnderTest.url, "documents": [LAMP], "max_tokens": 4}

    @property
    def has_tool_calling(self) -> bool:
        """Not of a model this small; the service's tests hold it to tools."""
        return False

    @property
    def has_structured_output(self) -> bool:
        """Not within so few tokens; see below."""
        return False

    @property
    def model_override_value(self) -> str:
        return UnderTest.model


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[KVBlendRetriever]:
        return KVBlendRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"base_url": UnderTest.url, "collection": "sdk-vik"}

    @property
    def retriever_query_example(self) -> str:
        return "lamp"


def test_documents_are_blended_and_reported(url: str) -> None:
    chat = ChatKVBlend(base_url=url, collection="sdk-vik", recompute_ratio=0.5, max_tokens=16)
    empty = Document(page_content="")
    answer = chat.with_documents([OVEN, empty, LAMP]).invoke(QUESTION)
    result = answer.response_metadata["kvblend"]
    assert result["report"]["outcome"] == "blended"
    assert (result["report"]["recompute_ratio"], result["report"]["missed_passages"]) == (0.5, 0)
    assert [source["text"] for source in result["sources"]] == [FACTS["oven"], FACTS["lamp"]]
    assert result["sources"][1]["document_id"] == "lamp"
    assert result["sources"][1]["metadata"] == {"day": "2026-01-02"}


def report_of(answer: BaseMessage) -> dict[str, Any]:
    report: dict[str, Any] = answer.response_metadata["kvblend"]["report"]
    return report


def test_a_streamed_answer_equals_the_whole_one(url: str) -> None:
    """Reference: invoke. Ours: the sum of stream's chunks."""
    chat = ChatKVBlend(base_url=url, collection="sdk-vik", max_tokens=16).with_documents([LAMP]).bind(ignore_eos=True)
    messages = [SystemMessage("You answer in one sentence."), HumanMessage(QUESTION)]
    until_settled(lambda: report_of(chat.invoke(messages)))
    total: Any = None
    num_chunks = 0
    for chunk in chat.stream(messages):
        total = chunk if total is None else total + chunk
        num_chunks += 1
    whole = chat.invoke(messages)
    assert isinstance(total, AIMessageChunk) and num_chunks > 5
    assert isinstance(whole, AIMessage)
    assert total.content == whole.content
    assert total.usage_metadata == whole.usage_metadata
    for name in ("model_name", "finish_reason"):
        assert total.response_metadata[name] == whole.response_metadata[name]
    ours, reference = (message.response_metadata["kvblend"] for message in (total, whole))
    assert ours["sources"] == reference["sources"]
    assert ours["report"]["prompt_tokens"] == reference["report"]["prompt_tokens"]


def test_a_chain_of_retriever_and_chat_model(url: str) -> None:
    retriever = KVBlendRetriever(base_url=url, collection="sdk-vik", k=2)
    chat = ChatKVBlend(base_url=url, collection="sdk-vik", max_tokens=16)
    chain = {"documents": retriever, "question": RunnablePassthrough()} | blend_documents(chat)
    answer = chain.invoke(QUESTION)
    result = answer.response_metadata["kvblend"]
    assert (result["report"]["outcome"], result["report"]["missed_passages"]) == ("blended", 0)
    assert len(result["sources"]) == 2
    found = result["sources"][0]["metadata"]["kvblend"]
    assert (found["document_id"], found["document_name"]) == ("lamp", "lamp") and 0.5 < found["score"] <= 1
    until_settled(lambda: report_of(chain.invoke(QUESTION)))
    again = chain.invoke(QUESTION)
    assert "".join((chain | StrOutputParser()).stream(QUESTION)) == again.content


def test_a_chain_runs_in_one_event_loop_after_another(url: str) -> None:
    retriever = KVBlendRetriever(base_url=url, collection="sdk-vik")
    chat = ChatKVBlend(base_url=url, collection="sdk-vik", max_tokens=16)
    texts = {"documents": retriever | (lambda found: found[:1]), "question": RunnablePassthrough()}
    told = texts | blend_documents(chat)
    chain = told | StrOutputParser()

    async def streamed() -> list[str]:
        return [text async for text in chain.astream(QUESTION)]

    until_settled(lambda: report_of(told.invoke(QUESTION)))
    whole = chain.invoke(QUESTION)
    for _ in range(2):
        assert asyncio.run(chain.ainvoke(QUESTION)) == whole
        pieces = asyncio.run(streamed())
        assert len(pieces) > 1 and "".join(pieces) == whole


def test_errors_are_langchains(url: str, odd_url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="1 passages the first 0 would fit") as failure:
        ChatKVBlend(base_url=url, max_tokens=100_000).with_documents([OVEN]).invoke("?")
    assert failure.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="ghost"):
        ChatKVBlend(base_url=url, model="ghost", documents=[OVEN]).invoke("?")
    with pytest.raises(openai.APIError, match="died"):
        list(ChatKVBlend(base_url=odd_url).stream("fail"))


def test_the_environment_says_where_the_service_is_and_its_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBLEND_URL", url)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("KVBLEND_API_KEY", "my-own-key")
    chat = ChatKVBlend(max_tokens=2)
    assert chat.openai_api_base == f"{url}/v1" and chat.root_client.api_key == "my-own-key"
    assert "my-own-key" not in repr(chat) and "my-own-key" not in dumps(chat)
    assert chat.invoke("Hello").response_metadata["model_name"] == UnderTest.model
    retriever = KVBlendRetriever(collection="sdk-vik", k=1)
    assert [found.page_content for found in retriever.invoke(QUESTION)] == [FACTS["lamp"]]
    assert "my-own-key" not in repr(retriever)


def test_tokens_are_the_served_models(url: str) -> None:
    chat = ChatKVBlend(base_url=url)
    assert len(chat.get_token_ids("The lamp of Vik burns seal oil.")) > 5
    assert chat.get_num_tokens_from_messages([HumanMessage("Hi")]) > chat.get_num_tokens("Hi")


def test_metadata_of_a_users_own_stays(url: str) -> None:
    with Client(url) as client:
        metadata: dict[str, str | int | float | bool] = {"document_id": "mine", "score": 7, "kvblend": "mine too"}
        client.create_collection("sdk-metadata")
        client.wait(client.add_document("sdk-metadata", FACTS["ferry"], id="ferry", metadata=metadata), timeout_s=120)
        (found,) = KVBlendRetriever(base_url=url, collection="sdk-metadata", k=1).invoke("ferry")
        client.delete_collection("sdk-metadata")
    assert found.metadata == metadata


def test_structured_output_beside_documents(url: str) -> None:
    class Lamp(BaseModel):
        """What a lamp burns."""

        fuel: Literal["seal oil", "birch"]

    chat = ChatKVBlend(base_url=url, max_tokens=60, documents=[LAMP])
    lamp = chat.with_structured_output(Lamp).invoke(QUESTION)
    assert isinstance(lamp, Lamp)


def test_the_sdk_needs_neither_torch_nor_langchain() -> None:
    program = (
        "import kvblend.sdk, sys; sys.exit(bool({'torch', 'langchain_core', 'fastapi', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    program = "import kvblend.sdk.langchain, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
