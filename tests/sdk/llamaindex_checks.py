"""LlamaIndex on the service of `KVBLEND_URL`: run in an environment of its own by test_llamaindex.py."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from kvblend.sdk import Client
from kvblend.sdk.llamaindex import KVBlendLLM, KVBlendQueryEngine, KVBlendRetriever

FACTS = {"lamp": "The lamp of Vik burns seal oil.", "oven": "The oven of Vik is fired with birch."}
QUESTION = "What does the lamp of Vik burn?"
QUIET: dict[str, Any] = {"max_tokens": 12, "additional_kwargs": {"ignore_eos": True}}


@pytest.fixture(scope="module", autouse=True)
def collection() -> str:
    name = "llamaindex-vik"
    with Client(os.environ["KVBLEND_URL"]) as client:
        client.create_collection(name)
        for id, text in FACTS.items():
            metadata: dict[str, str | int | float | bool] = {"kind": id, "kvblend": "mine"}
            client.wait(client.add_document(name, text, id=id, metadata=metadata), timeout_s=120)
    return name


def test_a_query_engine_is_blended_and_carries_its_nodes(collection: str) -> None:
    retriever = KVBlendRetriever(collection, similarity_top_k=2)
    engine = KVBlendQueryEngine(retriever, KVBlendLLM(**QUIET))
    engine.query(QUESTION)
    answer = engine.query(QUESTION)  # finds in vLLM's cache what the others will find there
    assert [source.node.ref_doc_id for source in answer.source_nodes] == ["lamp", "oven"]
    first = answer.source_nodes[0]
    assert (first.text, first.metadata) == (FACTS["lamp"], {"kind": "lamp", "kvblend": "mine"}) and first.score > 0.3
    told = answer.metadata["kvblend"]
    assert (told["report"]["outcome"], told["report"]["missed_passages"]) == ("blended", 0)
    assert [source["text"] for source in told["sources"]] == [FACTS["lamp"], FACTS["oven"]]

    streamed = KVBlendQueryEngine(retriever, KVBlendLLM(**QUIET), streaming=True).query(QUESTION)
    pieces = list(streamed.response_gen)
    assert len(pieces) > 5 and "".join(pieces) == str(answer)
    assert streamed.metadata["kvblend"]["sources"] == told["sources"]
    assert streamed.source_nodes == answer.source_nodes


def test_one_event_loop_after_another(collection: str) -> None:
    retriever = KVBlendRetriever(collection, similarity_top_k=2)
    engine = KVBlendQueryEngine(retriever, KVBlendLLM(**QUIET))
    streaming = KVBlendQueryEngine(retriever, KVBlendLLM(**QUIET), streaming=True)
    engine.query(QUESTION)
    whole = engine.query(QUESTION)

    async def streamed() -> tuple[str, Any]:
        answer = await streaming.aquery(QUESTION)
        pieces: AsyncIterator[str] = answer.async_response_gen()
        return "".join([piece async for piece in pieces]), answer.metadata["kvblend"]["sources"]

    for _ in range(2):
        assert str(asyncio.run(engine.aquery(QUESTION))) == str(whole)
        assert asyncio.run(streamed()) == (str(whole), whole.metadata["kvblend"]["sources"])


def test_nodes_of_any_retriever(collection: str) -> None:
    shown = NodeWithScore(node=TextNode(id_="lamp", text=FACTS["lamp"], metadata={"year": 1902}), score=0.5)
    hidden = TextNode(text=FACTS["oven"], metadata={"year": 1911}, excluded_llm_metadata_keys=["year"])
    llm = KVBlendLLM(collection=collection, recompute_ratio=0.5, **QUIET)
    told = llm.chat([ChatMessage(QUESTION)], documents=[shown, TextNode(text=""), hidden]).additional_kwargs["kvblend"]
    assert [source["text"] for source in told["sources"]] == [f"year: 1902\n\n{FACTS['lamp']}", FACTS["oven"]]
    assert told["sources"][0]["metadata"] == shown.metadata == {"year": 1902}
    assert told["report"]["recompute_ratio"] == 0.5
    assert "kvblend" in llm.complete(QUESTION, documents=[hidden]).additional_kwargs


def test_llamaindexs_own_engine_takes_both(collection: str) -> None:
    llm = KVBlendLLM(**QUIET)
    assert llm.metadata.context_window == 4096
    own = RetrieverQueryEngine.from_args(KVBlendRetriever(collection), llm=llm)
    assert own.query(QUESTION).response


def test_tools_and_schemas() -> None:
    class Lamp(BaseModel):
        """What a lamp burns."""

        fuel: Literal["seal oil", "birch"]

    def lookup(place: Literal["north", "south"]) -> str:
        """Looks up a place."""
        return place

    llm = KVBlendLLM(max_tokens=60)
    assert isinstance(llm.structured_predict(Lamp, PromptTemplate(QUESTION)), Lamp)
    tool = FunctionTool.from_defaults(lookup)
    named = {"type": "function", "function": {"name": "lookup"}}
    response = llm.chat_with_tools([tool], user_msg="Where is Vik?", tool_choice=named)
    (call,) = llm.get_tool_calls_from_response(response)
    assert call.tool_name == "lookup"


def test_errors_are_openais_and_bad_fields_are_named(collection: str) -> None:
    with pytest.raises(openai.BadRequestError, match="would fit"):
        KVBlendLLM(max_tokens=100_000).chat([ChatMessage("?")], documents=[TextNode(text="Vik")])
    with pytest.raises(ValueError, match=r"recompute_ratio\n.*less than or equal to 1"):
        KVBlendLLM(recompute_ratio=2.0)
    with pytest.raises(ValueError, match="recompute_ration"):
        KVBlendLLM(recompute_ration=0.2)
    with pytest.raises(ValueError, match="neighbours"):
        KVBlendRetriever(collection, neighbours=1)  # type: ignore[call-arg]


def test_a_key_is_shown_and_never_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBLEND_API_KEY", "secret")
    llm = KVBlendLLM(recompute_ratio=0.25)
    assert llm._get_client().api_key == "secret"
    assert "secret" not in f"{llm!r} {llm.to_dict()} {llm.to_json()}"
    assert KVBlendLLM.from_dict(llm.to_dict()).recompute_ratio == 0.25
