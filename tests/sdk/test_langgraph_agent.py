"""A LangGraph agent with our retriever as a tool, on the real service."""

from collections.abc import Callable
from typing import Any, Literal

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, wrap_model_call
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import create_retriever_tool
from pydantic import BaseModel

from kvblend.sdk import Client
from kvblend.sdk.langchain import ChatKVBlend, KVBlendRetriever
from tests.sdk.town import TOWN
from tests.service import RunningService

QUESTION = "Who built the suspension bridge of Ulvsund?"


class Search(BaseModel):
    """A model as small as the tests' ends no text of its own accord: it has the choice of two words."""

    query: Literal["bridge", "museum"]


@wrap_model_call
def search_first(request: ModelRequest, handler: Callable[[ModelRequest], Any]) -> Any:
    """Have the question answered by a search, and what that found by a text."""
    is_question = isinstance(request.messages[-1], HumanMessage)
    if not is_question:
        return handler(request.override(tools=[]))
    strictly = {"strict": True}  # else vLLM holds no arguments to the schema
    return handler(request.override(tool_choice="search_town", model_settings=strictly))


def test_an_agent_searches_and_its_answer_is_blended(service: RunningService) -> None:
    with Client(service.url) as client:
        client.create_collection("agent-town")
        for topic, text in TOWN.items():
            client.wait(client.add_document("agent-town", text, id=topic), timeout_s=120)
    retriever = KVBlendRetriever(base_url=service.url, collection="agent-town", k=2)
    tool = create_retriever_tool(retriever, "search_town", "Finds texts about the town of Ulvsund.")
    tool.args_schema = Search
    chat = ChatKVBlend(base_url=service.url, max_tokens=40, recompute_ratio=0.5)
    agent: Any = create_agent(chat, [tool], middleware=[search_first])

    _, called, found, answer = agent.invoke({"messages": [HumanMessage(QUESTION)]})["messages"]
    assert isinstance(called, AIMessage) and isinstance(found, ToolMessage) and isinstance(answer, AIMessage)
    assert [(call["name"], call["id"]) for call in called.tool_calls] == [("search_town", found.tool_call_id)]
    texts = str(found.content).split("\n\n")
    assert len(texts) == 2 and set(texts) <= set(TOWN.values())

    told = answer.response_metadata["kvblend"]
    assert (told["report"]["outcome"], told["report"]["recompute_ratio"]) == ("blended", 0.5)
    assert sorted(source["text"] for source in told["sources"]) == sorted(texts)
    assert told["report"]["reused_tokens"] > 50
