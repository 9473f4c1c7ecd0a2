"""A LangChain chain over the user's own FAISS store, with our chat model on the real service."""

from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import Runnable, RunnablePassthrough

from kvblend.retriever import Embedder
from kvblend.sdk.langchain import ChatKVBlend, blend_documents
from tests.sdk.town import TOWN
from tests.service import RunningService

pytestmark = pytest.mark.filterwarnings("ignore:.langchain-community. is being sunset")
FIRST, SECOND = "Who built the suspension bridge?", "Which ship models does the maritime museum keep?"


class SentenceEmbeddings(Embeddings):
    """A sentence-transformers model, as LangChain asks for it."""

    def __init__(self, model: Path) -> None:
        self._embedder = Embedder(model)

    def embed_query(self, text: str) -> list[float]:
        return [float(value) for value in self._embedder.encode_query(text)]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(value) for value in vector] for vector in self._embedder.encode(texts)]


@pytest.fixture(scope="module")
def retriever(embedding_model_path: Path) -> Any:
    """The user's own: two documents of three, best first."""
    from langchain_community.vectorstores import FAISS  # warns that its package has no maintainer

    texts = {topic: text.replace("Ulvsund", "Askvik") for topic, text in TOWN.items()}  # which nobody has ingested
    documents = [Document(page_content=text, metadata={"topic": topic}) for topic, text in texts.items()]
    store = FAISS.from_documents(documents, SentenceEmbeddings(embedding_model_path))
    return store.as_retriever(search_kwargs={"k": 2})


def chain_of(retriever: Any, chat: ChatKVBlend) -> Runnable[str, Any]:
    return {"documents": retriever, "question": RunnablePassthrough()} | blend_documents(chat)


def result_of(chain: Runnable[str, Any], question: str) -> dict[str, Any]:
    result: dict[str, Any] = chain.invoke(question).response_metadata["kvblend"]
    return result


def test_the_second_use_of_a_document_reuses_its_kv(service: RunningService, retriever: Any) -> None:
    """The first use is a miss, whose KV is made in the background. Each attempt asks something else: the same prompt
    again would be a hit of vLLM's own prefix cache."""
    chain = chain_of(retriever, ChatKVBlend(base_url=service.url, max_tokens=4))
    first = result_of(chain, FIRST)
    assert [source["metadata"]["topic"] for source in first["sources"]] == ["bridge", "museum"]
    report = first["report"]
    assert (report["outcome"], report["missed_passages"], report["reused_tokens"]) == ("prefilled", 2, 0)
    for attempt in range(100):
        second = result_of(chain, f"{SECOND} ({attempt})")
        if not second["report"]["missed_passages"]:
            break
    assert [source["metadata"]["topic"] for source in second["sources"]] == ["museum", "bridge"]
    report = second["report"]
    assert report["outcome"] == "blended"
    assert report["reused_tokens"] + report["exact_tokens"] == report["context_tokens"]
    assert 0 < report["selected_tokens"] < 0.2 * report["reused_tokens"]
    assert report["ttft_ms"] > 0

    again = result_of(chain, FIRST)
    assert again["report"]["outcome"] == "blended"
    assert again["sources"] == first["sources"]


def test_a_chat_model_says_how_much_is_recomputed(service: RunningService, retriever: Any) -> None:
    """Everything, or nothing reused in the first place: the same prompt of the same passages.

    Each attempt asks something else, as above.
    """
    blended = ChatKVBlend(base_url=service.url, max_tokens=2, recompute_ratio=1.0)
    full = ChatKVBlend(base_url=service.url, max_tokens=2, reuse="none")
    for attempt in range(100):
        question = f"Who was Captain Roos? ({attempt})"
        ours = result_of(chain_of(retriever, blended), question)
        if not ours["report"]["missed_passages"]:
            break
    reference = result_of(chain_of(retriever, full), question)
    assert ours["sources"] == reference["sources"]
    assert ours["report"]["prompt_tokens"] == reference["report"]["prompt_tokens"]
    assert (ours["report"]["outcome"], ours["report"]["recompute_ratio"]) == ("blended", 1.0)
    assert ours["report"]["selected_tokens"] == ours["report"]["reused_tokens"] > 0
    assert (reference["report"]["outcome"], reference["report"]["reused_tokens"]) == ("prefilled", 0)
