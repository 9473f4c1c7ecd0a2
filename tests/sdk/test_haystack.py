"""The generator and the retriever in real Haystack pipelines, on the real service."""

import asyncio
import json
from datetime import date
from typing import Any, Literal

import openai
import pytest
from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.tools.tool import Tool
from haystack.utils import Secret
from pydantic import BaseModel

from kvblend.sdk import Client
from kvblend.sdk.haystack import KVBlendChatGenerator, KVBlendRetriever
from tests.sdk.settled import until_settled
from tests.service import RunningService

FACTS = {"lamp": "The lamp of Vik burns seal oil.", "oven": "The oven of Vik is fired with birch."}
LAMP = Document(id="lamp", content=FACTS["lamp"], meta={"day": date(2026, 1, 2)})
QUESTION = "What does the lamp of Vik burn?"
GENERATION = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def url(service: RunningService) -> str:
    """The real service, whose collection `haystack-vik` holds two documents."""
    with Client(service.url) as client:
        client.create_collection("haystack-vik")
        for id, text in FACTS.items():
            job = client.add_document("haystack-vik", text, id=id, metadata={"kind": id, "score": "mine"})
            client.wait(job, timeout_s=120)
    return service.url


def pipeline_of(url: str) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("retriever", KVBlendRetriever("haystack-vik", api_base_url=url, top_k=2))
    pipeline.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user("{{ question }}")]))
    pipeline.add_component("generator", KVBlendChatGenerator(api_base_url=url, generation_kwargs=GENERATION))
    pipeline.connect("retriever.documents", "generator.documents")
    pipeline.connect("prompt.prompt", "generator.messages")
    return pipeline


ASKED = {"retriever": {"query": QUESTION}, "prompt": {"question": QUESTION}}


def reply_of(result: dict[str, Any]) -> ChatMessage:
    (reply,) = result["generator"]["replies"]
    assert isinstance(reply, ChatMessage)
    return reply


def test_a_pipeline_is_blended_and_stays_so_when_it_is_written_down(url: str) -> None:
    pipeline = pipeline_of(url)
    result = pipeline.run(ASKED, include_outputs_from={"retriever"})
    found = result["retriever"]["documents"]
    assert [document.content for document in found] == [FACTS["lamp"], FACTS["oven"]]
    assert (found[0].meta["kind"], found[0].meta["score"]) == ("lamp", "mine")
    assert found[0].meta["kvblend"]["document_id"] == "lamp" and 0.3 < found[0].score <= 1
    told = reply_of(result).meta["kvblend"]
    assert (told["report"]["outcome"], told["report"]["missed_passages"]) == ("blended", 0)
    assert [source["text"] for source in told["sources"]] == [FACTS["lamp"], FACTS["oven"]]

    read = Pipeline.loads(pipeline.dumps(), allowed_modules=["kvblend.sdk.haystack"])
    written, again = pipeline.to_dict(), read.to_dict()
    for each in (written, again):  # in any order
        each["connections"].sort(key=lambda connection: connection["sender"])
    assert again == written
    until_settled(lambda: reply_of(pipeline.run(ASKED)).meta["kvblend"]["report"])
    whole = reply_of(pipeline.run(ASKED))
    repeated = reply_of(read.run(ASKED))
    assert repeated.text and repeated.meta["kvblend"]["sources"] == whole.meta["kvblend"]["sources"] == told["sources"]


def test_streams_and_event_loops(url: str) -> None:
    """Reference: a blocking run. Ours: what is streamed, and runs in one event loop after another.

    Texts are compared within a reply: of two, one may be over passages that have been encoded behind each other since.
    """
    pipeline = pipeline_of(url)
    until_settled(lambda: reply_of(pipeline.run(ASKED)).meta["kvblend"]["report"])
    whole = reply_of(pipeline.run(ASKED))
    chunks: list[StreamingChunk] = []
    streamed = reply_of(pipeline.run({**ASKED, "generator": {"streaming_callback": chunks.append}}))
    assert len(chunks) > 5 and "".join(chunk.content for chunk in chunks) == streamed.text
    for count in ("prompt_tokens", "completion_tokens"):
        assert streamed.meta["usage"][count] == whole.meta["usage"][count]
    assert streamed.meta["kvblend"]["sources"] == whole.meta["kvblend"]["sources"]
    for _ in range(2):
        replies, texts = asyncio.run(run_async(pipeline))
        assert "".join(texts) == replies[1].text
        for reply in replies:
            assert reply.meta["kvblend"]["sources"] == whole.meta["kvblend"]["sources"]


async def run_async(pipeline: Pipeline) -> tuple[tuple[ChatMessage, ChatMessage], list[str]]:
    """A blocking reply and a streamed one, and what was streamed."""
    texts: list[str] = []

    async def took(chunk: StreamingChunk) -> None:
        texts.append(chunk.content)

    told = reply_of(await pipeline.run_async(ASKED))
    streamed = reply_of(await pipeline.run_async({**ASKED, "generator": {"streaming_callback": took}}))
    return (told, streamed), texts


def test_documents_of_any_retriever_tools_and_schemas(url: str) -> None:
    class Lamp(BaseModel):
        """What a lamp burns."""

        fuel: Literal["seal oil", "birch"]

    generator = KVBlendChatGenerator(api_base_url=url, collection="haystack-vik", recompute_ratio=0.5)
    documents = [Document(content=""), LAMP]
    fields = {"response_format": Lamp, "max_tokens": 60, "temperature": 0.0}
    (reply,) = generator.run(QUESTION, generation_kwargs=fields, documents=documents)["replies"]
    assert Lamp.model_validate_json(reply.text or "")
    told = reply.meta["kvblend"]
    assert (told["report"]["outcome"], told["report"]["recompute_ratio"]) == ("blended", 0.5)
    assert told["sources"][0]["metadata"] == {"day": "2026-01-02"} and LAMP.meta == {"day": date(2026, 1, 2)}

    schema: dict[str, Any] = {"type": "object", "properties": {"place": {"enum": ["north", "south"]}}}
    schema |= {"required": ["place"], "additionalProperties": False}
    tool = Tool(name="lookup", description="Looks up a place.", parameters=schema, function=lambda place: place)
    named = {"tool_choice": {"type": "function", "function": {"name": "lookup"}}, "max_tokens": 60, "temperature": 0.0}
    asked: dict[str, Any] = {"generation_kwargs": named, "tools": [tool], "documents": [LAMP]}
    (reply,) = generator.run(QUESTION, **asked, tools_strict=True)["replies"]  # else vLLM holds no arguments to it
    (call,) = reply.tool_calls
    assert call.tool_name == "lookup" and call.arguments["place"] in ("north", "south")


def test_errors_are_openais_and_bad_fields_are_named(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="would fit"):
        KVBlendChatGenerator(api_base_url=url, generation_kwargs={"max_tokens": 100_000}).run("?", documents=[LAMP])
    with pytest.raises(ValueError, match=r"recompute_ratio\n.*less than or equal to 1"):
        KVBlendChatGenerator(recompute_ratio=2.0)
    with pytest.raises(ValueError, match="neighbours"):
        KVBlendRetriever("haystack-vik", neighbours=1)  # type: ignore[call-arg]


def test_a_key_is_shown_and_never_written_down(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBLEND_URL", url)
    monkeypatch.setenv("KVBLEND_API_KEY", "secret")
    generator, retriever = KVBlendChatGenerator(), KVBlendRetriever("haystack-vik", top_k=1, filter={"kind": "oven"})
    assert [found.content for found in retriever.run(QUESTION)["documents"]] == [FACTS["oven"]]
    generator.warm_up()
    assert generator.client is not None and generator.client.api_key == "secret"
    written = [generator.to_dict(), retriever.to_dict()]
    assert "secret" not in json.dumps(written) and url not in json.dumps(written)
    assert written[1]["init_parameters"]["filter"] == {"kind": "oven"}
    for component in (
        KVBlendChatGenerator(api_key=Secret.from_token("t")),
        KVBlendRetriever("v", api_key=Secret.from_token("t")),
    ):
        with pytest.raises(ValueError, match="Cannot serialize token"):
            component.to_dict()
