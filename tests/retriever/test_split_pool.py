"""Documents split in worker processes: the same passages, and a bomb that ends its own parse and nothing else."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvblend.core.errors import InvalidRequestError, KVBlendError, UnsupportedDocumentError
from kvblend.retriever import PassageTokenizer, SplitLimits, SplitPool
from kvblend.retriever.splitter import split_document
from tests.retriever.slow_pdf import slow_pdf

TEXT = "# Bridges\n\nThe bridge of Vik is closed in winter. Straw covers it.\n\n" * 40


@pytest.fixture
def pool(passage_tokenizer: PassageTokenizer) -> Iterator[SplitPool]:
    pool = SplitPool(passage_tokenizer, SplitLimits(seconds=3, memory_bytes=300 << 20), num_workers=1)
    yield pool
    pool.close()


def test_it_gives_what_splitting_here_gives(pool: SplitPool, passage_tokenizer: PassageTokenizer) -> None:
    """Reference: split_document. Ours: a worker's."""
    for data, media_type, name in ((TEXT.encode(), "text/markdown", "a.md"), (b"", "text/plain", "empty")):
        here = split_document(data, media_type, name, 64, tokenizer=passage_tokenizer)
        assert pool.split(data, media_type, name, 64) == here


@pytest.mark.parametrize("data", [b"\xff\xfe\xfd", b"%PDF-1.7\n1 0 obj <</Type /Cat"])
def test_what_cannot_be_read_is_refused_as_here(pool: SplitPool, data: bytes) -> None:
    media_type = "application/pdf" if data.startswith(b"%PDF") else "text/plain"
    with pytest.raises(UnsupportedDocumentError, match="odd"):
        pool.split(data, media_type, "odd", 64)
    assert pool.split(b"A text.", "text/plain", "a", 64)


def test_a_document_that_takes_long_ends_its_own_parse(pool: SplitPool) -> None:
    bomb = slow_pdf()
    assert len(bomb) < 64 << 10
    with pytest.raises(InvalidRequestError, match=r"'bomb.pdf' takes more than 3 s"):
        pool.split(bomb, "application/pdf", "bomb.pdf", 64)
    assert pool.split(b"A text.", "text/plain", "a", 64), "another worker has taken its place"


@pytest.mark.parametrize(
    "memory_mib", [40, 153, *(pytest.param(mib, marks=pytest.mark.extended) for mib in (104, 132))]
)
def test_a_document_that_takes_much_memory_ends_its_own_parse(
    passage_tokenizer: PassageTokenizer, memory_mib: int
) -> None:
    """Wherever in its parse it runs out, down to the interpreter's own code."""
    pool = SplitPool(passage_tokenizer, SplitLimits(seconds=120, memory_bytes=memory_mib << 20), num_workers=1)
    with pytest.raises(InvalidRequestError, match=rf"'bomb.html' takes more than {memory_mib << 20} bytes"):
        pool.split(b"<p>a" * 1_000_000, "text/html", "bomb.html", 64)
    assert pool.split(b"A text.", "text/plain", "a", 64)
    pool.close()


@pytest.mark.parametrize("num_documents", [1, 2])
def test_a_worker_that_was_killed_while_idle_costs_no_document(
    passage_tokenizer: PassageTokenizer, num_documents: int
) -> None:
    """As the system does where memory is short, whoever took it."""
    pool = SplitPool(passage_tokenizer, SplitLimits(), num_workers=num_documents)
    before = children()
    with ThreadPoolExecutor(num_documents) as threads:
        for _ in range(2):
            documents = [threads.submit(pool.split, TEXT.encode(), "text/plain", "a", 64) for _ in range(num_documents)]
            assert all(document.result() for document in documents)
            for pid in children() - before:
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # until it has ended
        assert pool.split(b"A text.", "text/plain", "a", 64)
    pool.close()


def children() -> set[int]:
    """Processes that threads of this one have started and that it has not yet waited for."""
    return {int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


@pytest.mark.parametrize("started", [True, False], ids=["a worker at work", "a worker that starts"])
def test_closing_ends_what_is_being_split(pool: SplitPool, started: bool) -> None:
    failures: list[BaseException] = []
    if started:
        pool.split(b"A text.", "text/plain", "a", 64)

    def split() -> None:
        try:
            pool.split(slow_pdf(), "application/pdf", "slow.pdf", 64)
        except KVBlendError as error:
            failures.append(error)

    thread = threading.Thread(target=split)
    thread.start()
    time.sleep(1.0 if started else 0.2)
    pool.close()
    thread.join(120)
    assert not thread.is_alive() and len(failures) == 1
    assert "stopping" in str(failures[0]) or "could not be parsed" in str(failures[0])
    with pytest.raises(KVBlendError, match="stopping"):
        pool.split(b"A text.", "text/plain", "a", 64)
