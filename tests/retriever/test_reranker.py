"""A cross-encoder of the service's own, and what a search makes of its scores."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from kvblend.core.errors import InvalidRequestError
from kvblend.core.rest import MetadataFilter
from kvblend.retriever import CrossEncoderReranker, Retriever
from tests.retriever.ingest_until_killed import HashEmbedder


class LongestFirst:
    """Scores a text by its length, and counts what it scored."""

    num_texts = 0

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        self.num_texts += len(texts)
        return [float(len(text)) for text in texts]


@pytest.fixture
def reranked(tmp_path: Path, tokenizer: Tokenizer) -> Retriever:
    retriever = Retriever(tmp_path, embedder=HashEmbedder(), tokenizer=tokenizer, reranker=LongestFirst())
    retriever.catalog.create_collection("c", passage_tokens=64)
    for number in range(12):
        text = f"Bridge{' very' * number} long."
        plan = retriever.plan_ingest("c", text, document_id=f"{number:02}", metadata={"odd": number % 2 == 1})
        retriever.commit_document(plan)
    return retriever


def test_the_best_candidates_are_in_the_rerankers_order(reranked: Retriever) -> None:
    reranker = reranked.reranker
    assert isinstance(reranker, LongestFirst)
    hits = reranked.search("c", "bridge", top_k=3, rerank_candidates=12)
    assert [hit.document_id for hit in hits] == ["11", "10", "09"]
    assert [hit.score for hit in hits] == [float(len(hit.text)) for hit in hits]
    assert reranker.num_texts == 12
    candidates = {hit.document_id for hit in reranked.search("c", "bridge", top_k=5)}
    few = reranked.search("c", "bridge", top_k=3, rerank_candidates=5)
    assert [hit.document_id for hit in few] == sorted(candidates, reverse=True)[:3]
    odd = MetadataFilter.model_validate({"odd": True})
    hits = reranked.search("c", "bridge", top_k=2, rerank_candidates=12, filter=odd, min_score=len("Bridge long.") + 20)
    assert [hit.document_id for hit in hits] == ["11", "09"]
    assert reranked.search("c", "bridge", top_k=2, rerank_candidates=12, min_score=1000.0) == []
    reranked.close()


def test_neighbors_of_what_was_reranked_have_no_score(reranked: Retriever) -> None:
    text = "\n\n".join(f"# Part {number}\n\n{'Lamp words here. ' * 12}{number}" for number in range(4))
    reranked.commit_document(reranked.plan_ingest("c", text, document_id="story"))
    hits = reranked.search("c", "lamp", top_k=1, mode="keyword", rerank_candidates=4, neighbors=1)
    assert [hit.is_neighbor for hit in hits].count(False) == 1
    assert all((hit.score is None) == hit.is_neighbor for hit in hits) and len(hits) > 1
    reranked.close()


def test_without_a_reranker_it_is_refused(retriever: Retriever) -> None:
    with pytest.raises(InvalidRequestError, match="no reranker"):
        retriever.search("c", "bridge", top_k=3, rerank_candidates=8)


def test_a_cross_encoder_scores_pairs(tmp_path: Path, embedding_model_path: Path) -> None:
    """Reference: sentence-transformers' own scores, a pair at a time, of a tiny random model."""
    import torch
    import transformers
    from sentence_transformers import CrossEncoder

    torch.manual_seed(3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedding_model_path)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=1.0, **shape)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = ["The bridge of Vik.", "A lamp, and a longer text about it.", "x"]
    scores = CrossEncoderReranker(tmp_path / "model").scores("Where is the bridge?", texts)
    reference = CrossEncoder(str(tmp_path / "model"))
    expected = [float(reference.predict([("Where is the bridge?", text)])[0]) for text in texts]
    assert scores == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 4) for score in scores}) == 3
    assert CrossEncoderReranker(tmp_path / "nowhere").scores("q", []) == []
