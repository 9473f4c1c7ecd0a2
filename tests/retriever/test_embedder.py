"""The real embedding model: unit vectors, long texts in windows, and how well it finds."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from kvblend.retriever import Embedder, Retriever

XQUAD = Path(__file__).resolve().parents[3] / "shared" / "data" / "xquad_en.json"
MIN_RECALL = 0.85


def test_vectors_are_those_of_sentence_transformers(embedder: Embedder, embedding_model_path: Path) -> None:
    """Reference: SentenceTransformer.encode. Ours: batches by length, normalised."""
    texts = ["A cat.", "The quick brown fox jumps over the lazy dog. " * 10, "Paris is in France."] * 9
    vectors = embedder.encode(texts)
    model = SentenceTransformer(str(embedding_model_path), device="cpu")
    reference = model.encode(texts, normalize_embeddings=True)
    assert vectors.shape == (27, embedder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, reference, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(embedder.encode_query(texts[0]), reference[0], atol=1e-5)
    assert embedder.encode([]).shape == (0, embedder.dim)


def test_the_end_of_a_long_text_counts(embedder: Embedder) -> None:
    """The model takes 256 word pieces; what follows them is in the vector all the same."""
    filler = "The committee met again and talked about the usual matters of the day. " * 25
    ends = ["Penguins live in Antarctica and eat fish.", "The stock market fell sharply on Monday."]
    vectors = embedder.encode([filler + end for end in ends])
    assert float(vectors[0] @ vectors[1]) < 0.999
    query = embedder.encode_query("What do penguins eat?")
    assert float(query @ vectors[0]) > float(query @ vectors[1]) + 0.02


def test_threads_embed_at_once(embedder: Embedder) -> None:
    texts = [f"Text number {number} " + "and so on " * (number % 7) for number in range(24)]
    expected = embedder.encode(texts)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: embedder.encode(texts), range(4)))
    for result in results:
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_the_fingerprint_is_that_of_the_weights(embedder: Embedder, embedding_model_path: Path) -> None:
    assert Embedder(embedding_model_path).fingerprint == embedder.fingerprint
    assert len(embedder.fingerprint) == 64


@pytest.mark.extended
@pytest.mark.skipif(not XQUAD.exists(), reason="the XQuAD paragraphs are not on this machine")
def test_recall_on_xquad(embedder: Embedder, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Each article is one document; a passage of it that holds the answer is among the first five found.

    The first question of every second paragraph is asked. Over all 1,190 questions the recall was 0.971.
    """
    retriever = Retriever(tmp_path, embedder=embedder, tokenizer=tokenizer)
    retriever.catalog.create_collection("xquad", passage_tokens=256)
    found = []
    articles = json.loads(XQUAD.read_text())["data"]
    for article in articles:
        paragraphs = [paragraph["context"] for paragraph in article["paragraphs"]]
        plan = retriever.plan_ingest("xquad", "\n\n".join(paragraphs), document_id=article["title"])
        retriever.commit_document(plan)
    for article in articles:
        for paragraph in article["paragraphs"][::2]:
            for question in paragraph["qas"][:1]:
                hits = retriever.search("xquad", question["question"], top_k=5, mode="vector")
                answer = " ".join(question["answers"][0]["text"].split())
                found.append(
                    any(hit.document_id == article["title"] and answer in " ".join(hit.text.split()) for hit in hits)
                )
    recall = sum(found) / len(found)
    print(f"recall@5 over {len(found)} questions: {recall:.3f}")
    assert recall >= MIN_RECALL
    retriever.close()
