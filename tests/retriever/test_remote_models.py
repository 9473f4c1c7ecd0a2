"""Embeddings and rerank scores of a real server over HTTP, and of one that fails."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from tokenizers import Tokenizer

from kvblend.core.errors import ConflictError, EngineUnavailableError, KVBlendError
from kvblend.retriever import RemoteEmbedder, RemoteReranker, Retriever, remote_model
from tests.retriever.ingest_until_killed import HashEmbedder
from tests.retriever.model_server import ModelServer, model_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    monkeypatch.setattr(remote_model, "FIRST_WAIT_S", 0.01)
    with model_server() as server:
        yield server


@pytest.fixture
def embedder(server: ModelServer) -> Iterator[RemoteEmbedder]:
    embedder = RemoteEmbedder(f"{server.url}/v1/", "hashes", api_key=SecretStr("key"))
    yield embedder
    embedder.close()


@pytest.fixture
def reranker(server: ModelServer) -> Iterator[RemoteReranker]:
    reranker = RemoteReranker(f"{server.url}/rerank", "shares")
    yield reranker
    reranker.close()


def test_texts_are_embedded_in_batches_and_in_order(server: ModelServer, embedder: RemoteEmbedder) -> None:
    """Reference: the rule itself. Ours: 150 texts through the server, which gives them backwards and too long."""
    texts = [f"word{number} of a text" for number in range(150)]
    np.testing.assert_allclose(embedder.encode(texts), HashEmbedder().encode(texts), atol=1e-6)
    np.testing.assert_allclose(embedder.encode_query("a text"), HashEmbedder().encode(["a text"])[0], atol=1e-6)
    assert sorted(len(body["input"]) for body in server.bodies if len(body["input"]) > 1) == [22, 64, 64]
    assert {body["model"] for body in server.bodies} == {"hashes"}
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer key"}
    assert (embedder.dim, embedder.fingerprint) == (32, "hashes [32]")
    assert embedder.encode([]).shape == (0, 32)


def test_what_fails_for_now_is_tried_again(server: ModelServer, embedder: RemoteEmbedder) -> None:
    server.refusals = [503, 429, 500]
    assert embedder.encode_query("a text").shape == (32,)
    server.refusals = [503] * 4
    with pytest.raises(EngineUnavailableError, match="answers 503"):
        embedder.encode_query("a text")
    num_asked = len(server.bodies)
    server.refusals = [400]
    with pytest.raises(KVBlendError, match=r"400.*not that"):
        embedder.encode_query("a text")
    assert len(server.bodies) == num_asked + 1


def test_a_server_that_is_gone_is_said_to_be(server: ModelServer) -> None:
    with model_server() as gone:
        url = gone.url
    embedder = RemoteEmbedder(url, "hashes")
    with pytest.raises(EngineUnavailableError, match=r"embedding server at .* does not answer"):
        embedder.encode(["a text"])
    embedder.close()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"data": []},
        [],
        {"data": [{"index": 0, "embedding": "AAAA"}]},
        {"data": [{"index": 1, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": []}]},
        {"data": [{"index": 0, "embedding": [1.0, None]}]},
    ],
)
def test_an_answer_that_is_none_is_an_error(server: ModelServer, embedder: RemoteEmbedder, answer: Any) -> None:
    server.answer = answer
    with pytest.raises(KVBlendError, match="embedding server"):
        embedder.encode_query("a text")


def test_a_collection_keeps_the_length_of_its_vectors(
    tmp_path: Path, tokenizer: Tokenizer, server: ModelServer, embedder: RemoteEmbedder
) -> None:
    retriever = Retriever(tmp_path, embedder=embedder, tokenizer=tokenizer)
    retriever.catalog.create_collection("c", passage_tokens=64)
    retriever.commit_document(retriever.plan_ingest("c", "The bridge of Vik.", document_id="d"))
    assert [hit.document_id for hit in retriever.search("c", "bridge", top_k=1)] == ["d"]
    server.dim = 16
    with pytest.raises(KVBlendError, match="vectors of 16 numbers, after some of 32"):
        retriever.search("c", "bridge", top_k=1)
    retriever.close()
    other = RemoteEmbedder(f"{server.url}/v1", "hashes")
    retriever = Retriever(tmp_path, embedder=other, tokenizer=tokenizer)
    with pytest.raises(ConflictError):
        retriever.search("c", "bridge", top_k=1)
    retriever.close()
    other.close()


def test_scores_come_in_the_texts_order(server: ModelServer, reranker: RemoteReranker) -> None:
    assert reranker.scores("old lamp", ["A lamp.", "old lamp", "old stone"]) == [0.0, 1.0, 0.5]
    assert reranker.scores("old lamp", []) == []
    assert server.bodies == [
        {"model": "shares", "query": "old lamp", "documents": ["A lamp.", "old lamp", "old stone"], "top_n": 3}
    ]
    server.answer = {"results": [{"index": 0, "relevance_score": 1.0}]}
    with pytest.raises(KVBlendError, match="no score for each of 2 texts"):
        reranker.scores("q", ["a", "b"])
