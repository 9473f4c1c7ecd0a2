"""Recall and MRR of a small set by rule, and sets in the shapes that are read."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from kvblend.core.errors import InvalidRequestError
from kvblend.eval.bench.retrieval_quality import retrieval_quality
from kvblend.eval.questions.retrieval_set import load_retrieval_set
from kvblend.retriever import Retriever
from tests.retriever.ingest_until_killed import HashEmbedder

WORDS = ["lamp", "bell", "clock", "stone", "river", "tower"]


class NamesFirst:
    """Scores a text by whether it begins as the query ends."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        return [float(text.lower().startswith(query.split()[-1])) for text in texts]


def squad(folder: Path) -> Path:
    """Each paragraph names a word; each is asked for once by that word, and once by none."""
    paragraphs = [
        {"context": f"{word.capitalize()} of Vik.", "qas": [{"question": f"Where is the {word}"}]} for word in WORDS
    ]
    paragraphs[0]["qas"].append({"question": "unheard"})  # type: ignore[attr-defined]
    path = folder / "squad.json"
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    return path


def test_what_is_found_first_counts_once(tmp_path: Path) -> None:
    """By hand: six of seven questions name the one passage that has their word; the seventh has none of any."""
    tokenizer = Tokenizer(models.BPE({chr(code): code for code in range(256)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

    def opened(folder: Path) -> Retriever:
        return Retriever(folder, embedder=HashEmbedder(), tokenizer=tokenizer, reranker=NamesFirst())

    result = retrieval_quality(opened, tmp_path / "data", [load_retrieval_set(squad(tmp_path))], say=lambda _: None)
    rows = {row["mode"]: row for row in result["results"]}
    assert list(rows) == ["vector", "keyword", "hybrid", "reranked"]
    assert all((row["num_passages"], row["num_questions"]) == (6, 7) for row in rows.values())
    keyword = rows["keyword"]
    assert [keyword[name] for name in ("recall_1", "recall_5", "recall_10", "mrr")] == pytest.approx([6 / 7] * 4)
    assert rows["reranked"]["recall_1"] >= 6 / 7
    assert rows["vector"]["recall_10"] == 1.0 and 0 < rows["vector"]["mrr"] <= 1.0


def test_a_set_in_musiques_shape_is_answered_by_what_holds_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "musique.json"
    contexts = [{"title": "", "text": text} for text in ("In Vik.", "In Oslo.", "")]
    examples = [
        {"question": "Where?", "ctxs": contexts, "answers": ["oslo"]},
        {"question": "When?", "ctxs": contexts, "answers": ["1999"]},
    ]
    path.write_text(json.dumps(examples))
    read = load_retrieval_set(path)
    assert (read.name, read.passages) == ("musique", ("In Vik.", "In Oslo."))
    assert [(each.question, set(each.relevant)) for each in read.questions] == [("Where?", {1})]


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"questions": []}')
    with pytest.raises(InvalidRequestError, match="neither MuSiQue's shape nor SQuAD's"):
        load_retrieval_set(tmp_path / "other.json")
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        load_retrieval_set(tmp_path / "none.json")
