"""A LangChain chain over the user's own FAISS store, with our chat model."""

from collections import Counter

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnablePassthrough

from kvblend.sdk.langchain import ChatKVBlend, blend_documents

ANIMALS = ["bees make honey", "cows give milk", "hens lay eggs"]


class LetterPairs(Embeddings):
    """Embeds a text by its counts of letter pairs: small, deterministic, and near for texts that share words."""

    def embed_query(self, text: str) -> list[float]:
        counts = Counter(text[i : i + 2] for i in range(len(text) - 1))
        vector = [0.0] * 676
        for pair, count in counts.items():
            if pair.isascii() and pair.isalpha():
                vector[(ord(pair[0].lower()) - 97) * 26 + ord(pair[1].lower()) - 97] = float(count)
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


@pytest.mark.filterwarnings("ignore:.langchain-community. is being sunset")
def test_a_chain_over_faiss(url: str) -> None:
    from langchain_community.vectorstores import FAISS  # warns that its package has no maintainer

    store = FAISS.from_documents([Document(page_content=text) for text in ANIMALS], LetterPairs())
    retriever = store.as_retriever(search_kwargs={"k": 2})
    chain = {"documents": retriever, "question": RunnablePassthrough()} | blend_documents(ChatKVBlend(base_url=url))
    result = chain.invoke("which animals make honey?").response_metadata["kvblend"]
    assert result["report"]["outcome"] == "blended"
    assert len(result["sources"]) == 2 and result["sources"][0]["text"] == "bees make honey"
