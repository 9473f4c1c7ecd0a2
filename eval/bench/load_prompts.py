"""The prompts that a trace's requests become: documents with text, and a question of each request's own."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from kvblend.eval.bench.load_texts import PassageTexts
from kvblend.eval.trace import Trace

__all__ = ["Prompt", "TracePrompts", "distinct_documents"]


@dataclass(frozen=True)
class Prompt:
    """What one request asks."""

    documents: tuple[str, ...]
    question: str


@dataclass(frozen=True)
class TracePrompts:
    """Prompts of the first `num_warm` requests of a trace and of the `num_measured` that follow."""

    trace: Trace
    texts: PassageTexts
    num_warm: int
    num_measured: int

    @property
    def warm(self) -> list[Prompt]:
        """What came before the measured requests."""
        return self.first(self.num_warm)

    def measured(self, row: int) -> list[Prompt]:
        """The measured requests, for each row the same ones.

        Passages that the warm requests did not have are another edition in every row, so that none finds them stored
        by a row before it.
        """
        known = {passage for request in self.trace.requests[: self.num_warm] for passage in request}
        numbers = range(self.num_warm, self.num_warm + self.num_measured)
        return [self._prompt(number, known=known, edition=row) for number in numbers]

    def first(self, num_requests: int) -> list[Prompt]:
        """The trace's first requests."""
        return [self._prompt(number) for number in range(num_requests)]

    def _prompt(self, number: int, *, known: Collection[int] = (), edition: int = 0) -> Prompt:
        documents = tuple(
            self.texts.text(passage, edition=0 if passage in known else edition)
            for passage in self.trace.requests[number]
        )
        return Prompt(documents, f"Question {number}: what do these passages have in common?")


def distinct_documents(prompts: Sequence[Prompt]) -> list[str]:
    """The documents of all prompts, each once, in the order of their first use."""
    documents: Iterable[str] = (document for prompt in prompts for document in prompt.documents)
    return list(dict.fromkeys(documents))
