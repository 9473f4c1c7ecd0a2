"""The language model's tokenizer, a real embedding model, and retrievers on fresh folders."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from kvblend.retriever import Embedder, PassageTokenizer, Retriever
from tests.retriever.ingest_until_killed import HashEmbedder


@pytest.fixture(scope="session")
def tokenizer_file(demo_model_path: Path) -> Path:
    return demo_model_path / "tokenizer.json"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file))


@pytest.fixture(scope="session")
def passage_tokenizer(tokenizer: Tokenizer) -> PassageTokenizer:
    return PassageTokenizer(tokenizer)


@pytest.fixture(scope="session")
def embedder(embedding_model_path: Path) -> Embedder:
    return Embedder(embedding_model_path)


@pytest.fixture
def retriever(tmp_path: Path, tokenizer: Tokenizer) -> Iterator[Retriever]:
    """A retriever with the collection `c` (passages of 64 tokens) and a quick embedding model."""
    retriever = Retriever(tmp_path / "data", embedder=HashEmbedder(), tokenizer=tokenizer)
    retriever.catalog.create_collection("c", passage_tokens=64)
    yield retriever
    retriever.check_integrity()
    retriever.close()
