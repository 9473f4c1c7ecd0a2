"""LangChain's conformance suite and an agent on a model that calls tools, where there is one on this machine."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import create_retriever_tool
from langchain_tests.integration_tests import ChatModelIntegrationTests

from kvblend.cli.model_sources import QWEN_CODER
from kvblend.core.settings import Settings
from kvblend.sdk import Client
from kvblend.sdk.langchain import ChatKVBlend, KVBlendRetriever
from tests.sdk.town import TOWN
from tests.service import RunningService, running_service

NAMED = os.environ.get("TEST_CAPABLE_MODEL")
MODEL = Path(NAMED) if NAMED else Settings().home_path / "models" / QWEN_CODER.folder_name
if not NAMED and not MODEL.is_dir():
    pytest.skip(
        f"no model that calls tools: `kvblend serve qwen-coder` fetches one to {MODEL}, and "
        "TEST_CAPABLE_MODEL names the folder of another",
        allow_module_level=True,
    )

pytestmark = [
    pytest.mark.extended,
    pytest.mark.timeout(3600),  # of float32 on an old CPU a token takes a second
]


@pytest.fixture(scope="module", autouse=True)
def capable_service(
    embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory, dtype: str
) -> Iterator[RunningService]:
    home = tmp_path_factory.mktemp("home")
    plugin = Path(__file__).with_name("fenced_tool_parser.py")
    parser = ["--tool-call-parser", "fenced", "--tool-parser-plugin", str(plugin)]
    with running_service(MODEL, embedding_model_path, home=home, dtype=dtype, options=parser) as service:
        with Client(service.url) as client:
            (TestConformance.model_name,) = client.list_models()
        TestConformance.url = service.url
        yield service


@pytest.fixture(scope="module")
def vcr_config() -> dict[str, bool]:
    """The suites may record traffic; ours goes to a local service and is never replayed."""
    return {"ignore_localhost": True}


class TestConformance(ChatModelIntegrationTests):
    """Every request over a document, so that our own prompts, not vLLM's alone, hold tools and schemas."""

    url: ClassVar[str] = ""
    model_name: ClassVar[str] = ""

    @property
    def chat_model_class(self) -> type[ChatKVBlend]:
        return ChatKVBlend

    @property
    def chat_model_params(self) -> dict[str, Any]:
        document = Document("The lamp of Vik burns seal oil.")
        return {"base_url": self.url, "documents": [document], "max_tokens": 100}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return self.model_name

    @pytest.mark.xfail(reason="over a document that tells nothing of it the model says so, as the preamble asks it to")
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)


def test_the_agent_loop_of_a_model_without_documents(capable_service: RunningService) -> None:
    """LangChain's own, as an agent has it: its passages come by its tools."""
    ChatModelIntegrationTests.test_agent_loop(
        TestConformance(), ChatKVBlend(base_url=capable_service.url, max_tokens=100)
    )


def test_an_agent_decides_to_search(capable_service: RunningService) -> None:
    url = capable_service.url
    with Client(url) as client:
        client.create_collection("town")
        for topic, text in TOWN.items():
            client.wait(client.add_document("town", text, id=topic), timeout_s=600)
    retriever = KVBlendRetriever(base_url=url, collection="town", k=1)
    tool = create_retriever_tool(retriever, "search_town", "Finds texts about the town of Ulvsund.")
    agent: Any = create_agent(ChatKVBlend(base_url=url, max_tokens=100), [tool])

    messages = agent.invoke({"messages": [HumanMessage("Search: who built the bridge of Ulvsund?")]})["messages"]
    _, called, found, *_, answer = messages
    assert isinstance(called, AIMessage) and called.tool_calls[0]["name"] == "search_town"
    assert isinstance(found, ToolMessage) and found.content == TOWN["bridge"]
    assert isinstance(answer, AIMessage) and not answer.tool_calls
    told = answer.response_metadata["kvblend"]
    assert told["report"]["outcome"] == "blended" and told["sources"][0]["text"] == TOWN["bridge"]
