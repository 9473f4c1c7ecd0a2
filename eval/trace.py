"""Request traces: which passages each request of a RAG service had, and how long each passage is; no text."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kvblend.core.errors import InvalidRequestError

__all__ = ["Trace", "read_trace", "zipf_trace"]

TRACE_SUFFIX, TOKENS_SUFFIX = "trace.jsonl.gz", "passage_tokens.json.gz"

ZIPF_REQUESTS, ZIPF_PASSAGES, ZIPF_PASSAGES_A_REQUEST = 1000, 1000, 6
ZIPF_EXPONENT = 1.4
"""Over the whole trace some 90% of passages were seen before, behind 48 requests some 85%."""
ZIPF_TOKENS = (128, 384)
"""A passage's shortest and longest."""


@dataclass(frozen=True)
class Trace:
    """Requests in the order that they came in, each the ids of its passages by rank, and passages' token counts."""

    name: str
    requests: Sequence[tuple[int, ...]]
    passage_tokens: dict[int, int]

    @cached_property
    def mean_context_tokens(self) -> float:
        """Of all passages of a request."""
        counts = [sum(self.passage_tokens[passage] for passage in request) for request in self.requests]
        return sum(counts) / len(counts)

    @cached_property
    def seen_ratio(self) -> float:
        """The share of passages, each time that a request has one, that an earlier request had."""
        seen: set[int] = set()
        num_seen = 0
        for request in self.requests:
            num_seen += sum(passage in seen for passage in request)
            seen.update(request)
        return num_seen / sum(map(len, self.requests))


def read_trace(path: Path) -> Trace:
    """Read a trace in RAGPulse's shape, its passages' token counts from the file beside it.

    The trace, `..._trace.jsonl.gz`, has a JSON object a line with `passages`, a list of ids; the counts,
    `..._passage_tokens.json.gz`, are a list by id. Raises InvalidRequestError where they are not.
    """
    counts_path = path.with_name(path.name.removesuffix(TRACE_SUFFIX) + TOKENS_SUFFIX)
    if counts_path == path or not path.name.endswith(TRACE_SUFFIX):
        raise InvalidRequestError(f"a trace's name ends with {TRACE_SUFFIX}, not {path.name!r}", param="trace")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            requests = [tuple(map(int, json.loads(line)["passages"])) for line in lines if line.strip()]
        with gzip.open(counts_path, "rt", encoding="utf-8") as text:
            counts = json.load(text)
        passages = sorted({passage for request in requests for passage in request})
        if not passages or passages[0] < 0:
            raise ValueError("it has no passages, or one whose id is below 0")
        return Trace(path.name, requests, {passage: int(counts[passage]) for passage in passages})
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InvalidRequestError(f"the trace {path.name} cannot be read: {error!r}", param="trace") from error


def zipf_trace(seed: int = 0) -> Trace:
    """A trace whose passages' popularity is Zipf's, the same one for each seed; no request has a passage twice."""
    random = np.random.default_rng(seed)
    weights = np.arange(1, ZIPF_PASSAGES + 1) ** -ZIPF_EXPONENT
    shares = weights / weights.sum()
    requests = [
        tuple(random.choice(ZIPF_PASSAGES, ZIPF_PASSAGES_A_REQUEST, replace=False, p=shares).tolist())
        for _ in range(ZIPF_REQUESTS)
    ]
    shortest, longest = ZIPF_TOKENS
    counts = random.integers(shortest, longest, ZIPF_PASSAGES, endpoint=True).tolist()
    return Trace("zipf", requests, dict(enumerate(counts)))
