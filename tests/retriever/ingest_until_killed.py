"""Processes that ingest, change and delete documents until they are killed.

Run as a script it stands by itself: for each seed that it reads it forks such a process, which spares
that one the imports, and says when it has died.
"""

import hashlib
import os
import random
import sys
from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kvblend.core.errors import NotFoundError
from kvblend.retriever import Retriever
from kvblend.retriever.index import IndexSizes

COLLECTION = "crash"


class HashEmbedder:
    """Embeds a text as the sum of its words' directions, each drawn from the word's hash: quick, and no torch."""

    fingerprint = "hashed words"
    dim = 32

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.stack([self._sum(text) for text in texts])
        unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit

    def encode_query(self, query: str) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.encode([query])[0]
        return vector

    def _sum(self, text: str) -> NDArray[np.float64]:
        total = np.zeros(self.dim)
        for word in text.lower().split():
            total += _direction(word, self.dim)
        return total


@cache
def _direction(word: str, dim: int) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal(dim)


def make_text(rng: random.Random) -> str:
    """A few paragraphs of made-up sentences."""
    words = [f"w{rng.randrange(3000)}" for _ in range(rng.randrange(20, 400))]
    return "\n\n".join(" ".join(words[start : start + 12]).capitalize() + "." for start in range(0, len(words), 12))


def ingest_until_killed(folder: Path, tokenizer: Tokenizer, seed: int) -> None:
    """Print `ready` and the process's id, then each document's id and its text's first word once it is committed."""
    rng = random.Random(seed)
    sizes = IndexSizes(tail=16, clustered=64)  # parts fill up and are merged all the time
    retriever = Retriever(folder, embedder=HashEmbedder(), tokenizer=tokenizer, index_sizes=sizes)
    print("ready", os.getpid(), flush=True)
    for _ in count():
        document_id = f"d{rng.randrange(20)}"
        if rng.random() < 0.2:
            try:
                retriever.delete_document(COLLECTION, document_id)
            except NotFoundError:
                continue
            print(document_id, "-", flush=True)
        else:
            text = make_text(rng)
            retriever.commit_document(retriever.plan_ingest(COLLECTION, text, document_id=document_id))
            print(document_id, text.split()[0], flush=True)


def main(folder: Path, tokenizer_file: Path) -> None:
    """Serve seeds from standard input."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    for line in sys.stdin:
        process_id = os.fork()
        if process_id == 0:
            ingest_until_killed(folder, tokenizer, int(line))
        os.waitpid(process_id, 0)
        print("\ndead", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
