"""A collection embedded anew by another model: found by words meanwhile, and by vectors as documents are committed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kvblend.core.errors import ConflictError
from kvblend.retriever import IngestPlan, Retriever
from tests.retriever.ingest_until_killed import HashEmbedder


class WiderEmbedder(HashEmbedder):
    fingerprint = "wider"
    dim = 48

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return super().encode([text.upper() for text in texts])


def plan(retriever: Retriever, document_id: str) -> IngestPlan:
    """What a rebuild does of a document."""
    source = retriever.catalog.document_source("c", document_id)
    assert source is not None
    return retriever.plan_ingest("c", source, document_id=document_id, media_type="text/plain")


def test_another_model_takes_over_document_by_document(tmp_path: Path, tokenizer: Tokenizer) -> None:
    retriever = Retriever(tmp_path, embedder=HashEmbedder(), tokenizer=tokenizer)
    retriever.catalog.create_collection("c", passage_tokens=64)
    texts = {name: f"The {name} of the valley is old." for name in ("bridge", "mill", "tower")}
    for name, text in texts.items():
        retriever.commit_document(retriever.plan_ingest("c", text, document_id=name))
    before = {name: retriever.catalog.document_passages("c", name) for name in texts}
    retriever.close()

    retriever = Retriever(tmp_path, embedder=WiderEmbedder(), tokenizer=tokenizer)
    with pytest.raises(ConflictError, match="rebuild it"):
        retriever.search("c", "bridge", top_k=3)
    retriever.begin_rebuild("c")
    hits = retriever.search("c", "old bridge", top_k=3)
    assert hits[0].document_id == "bridge" and len(hits) == 3
    assert all(hit.score is None and not hit.is_neighbor for hit in hits)
    assert retriever.search("c", "old bridge", top_k=3, mode="vector") == []
    assert retriever.search("c", "old bridge", top_k=3, min_score=-1.0) == []

    assert not retriever.is_current(plan(retriever, "mill"))
    result = retriever.commit_document(plan(retriever, "mill"))
    assert (result.new, result.dropped) == ((), ())
    assert [hit.document_id for hit in retriever.search("c", "old mill", top_k=3, mode="vector")] == ["mill"]
    retriever.check_integrity()
    retriever.close()

    retriever = Retriever(tmp_path, embedder=WiderEmbedder(), tokenizer=tokenizer)  # cut off, and begun again
    retriever.begin_rebuild("c")
    assert retriever.is_current(plan(retriever, "mill"))
    for name in ("bridge", "tower"):
        retriever.commit_document(plan(retriever, name))
    assert {name: retriever.catalog.document_passages("c", name) for name in texts} == before
    found = retriever.search("c", texts["tower"], top_k=3, mode="vector")
    assert found[0].document_id == "tower" and found[0].score == pytest.approx(1.0)
    assert len(found) == 3
    retriever.check_integrity()
    retriever.close()


def test_sources_are_kept_and_go_with_their_documents(retriever: Retriever) -> None:
    for text in ("First words.", "Second words, \u00e9."):
        retriever.commit_document(retriever.plan_ingest("c", text, document_id="d"))
        assert retriever.catalog.document_source("c", "d") == text.encode()
    retriever.delete_document("c", "d")
    with retriever.catalog._database.read() as connection:
        assert connection.execute("SELECT 1 FROM document_sources").fetchall() == []


def test_an_upload_of_an_unchanged_document_whose_source_was_not_kept_keeps_it(retriever: Retriever) -> None:
    retriever.commit_document(retriever.plan_ingest("c", "Some words.", document_id="d"))
    with retriever.catalog._database.write() as connection:
        connection.execute("DELETE FROM document_sources")
    assert retriever.catalog.document_source("c", "d") is None
    again = retriever.plan_ingest("c", "Some words.", document_id="d")
    assert again.unchanged and not retriever.is_current(again)
    retriever.commit_document(again)
    assert retriever.is_current(again)
    assert retriever.catalog.document_source("c", "d") == b"Some words."
