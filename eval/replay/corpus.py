"""What a trace's passage numbers stand for: passages of documents, numbered through."""

import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvblend.core.errors import InvalidRequestError
from kvblend.eval.trace import Trace
from kvblend.retriever import PassageTokenizer, split_document

__all__ = ["ReplayCorpus", "ReplayPassage", "folder_corpus", "library_path", "trace_corpus"]

PASSAGE_TOKENS = 256
TEXT_SUFFIXES = frozenset({".py", ".txt", ".md", ".rst", ".html"})
NOT_DOCUMENTS = frozenset({"test", "tests", "site-packages", "__pycache__"})
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class ReplayPassage:
    """A passage and its place in its document. Text and tokens are empty where a trace gives lengths alone."""

    id: str
    num_tokens: int
    document: str
    position: int
    text: str = ""
    token_ids: tuple[int, ...] = ()

    def follows(self, other: "ReplayPassage") -> bool:
        """Whether it stands directly behind the other in a document."""
        return self.document == other.document and self.position == other.position + 1


@dataclass(frozen=True)
class ReplayCorpus:
    """Passages by a trace's numbers. `name` says where they are from."""

    name: str
    passages: Sequence[ReplayPassage]


def trace_corpus(trace: Trace) -> ReplayCorpus:
    """A trace's own passages, by length alone; the ones whose numbers follow each other are neighbours."""
    last = max(trace.passage_tokens)
    counts = [trace.passage_tokens.get(number, 1) for number in range(last + 1)]
    return ReplayCorpus(
        f"the lengths of {trace.name}",
        [ReplayPassage(str(number), num_tokens, "", number) for number, num_tokens in enumerate(counts)],
    )


def folder_corpus(folder: Path, tokenizer: PassageTokenizer, *, num_passages: int) -> ReplayCorpus:
    """The first passages of a folder's documents, as the service's splitter cuts them; each text once.

    Files are taken by name, of text, Markdown, HTML and Python's source. Raises InvalidRequestError where they have
    fewer passages.
    """
    passages: list[ReplayPassage] = []
    seen: set[str] = set()
    for file in _files(folder):
        media_type = {".md": "text/markdown", ".html": "text/html"}.get(file.suffix, "text/plain")
        name = file.relative_to(folder).as_posix()
        for position, passage in enumerate(
            split_document(file.read_bytes(), media_type, name, PASSAGE_TOKENS, tokenizer=tokenizer)
        ):
            if passage.passage_id not in seen:
                seen.add(passage.passage_id)
                passages.append(
                    ReplayPassage(
                        passage.passage_id, len(passage.token_ids), name, position, passage.text, passage.token_ids
                    )
                )
        if len(passages) >= num_passages:
            return ReplayCorpus(folder.name, passages[:num_passages])
    raise InvalidRequestError(
        f"the corpus {folder} has {len(passages)} passages of at most {PASSAGE_TOKENS} tokens; the trace names "
        f"{num_passages}",
        param="corpus",
    )


def library_path() -> Path:
    """The sources of Python's own standard library, which every machine has."""
    return Path(sysconfig.get_paths()["stdlib"])


def _files(folder: Path) -> Iterator[Path]:
    """A folder's documents by name; no tests, whose texts are like nothing that anybody asks for."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in TEXT_SUFFIXES or NOT_DOCUMENTS.intersection(path.relative_to(folder).parts):
            continue
        if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES and path.read_bytes().strip():
            yield path
