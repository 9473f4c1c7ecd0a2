"""One question asked three ways on the same prompt, and how the answers and times stand side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from kvblend.core.report import BlendReport
from kvblend.core.rest import BlendOptions, QueryResponse, Reuse, SuppliedDocument
from kvblend.sdk import Client

__all__ = ["Comparison", "ask", "compared", "summary", "warm_up"]

MAX_TOKENS = 96
WARM_UP_QUESTION = "What is this about?"
MODES: tuple[tuple[Reuse, str], ...] = (
    ("blend", "kvblend"),
    ("none", "vLLM, full prefill"),
    ("prefix_cache", "vLLM, prefix cache"),
)


@dataclass(frozen=True)
class Comparison:
    """The three answers to one question, in the order of MODES; of the last the first token alone."""

    question: str
    answers: dict[Reuse, QueryResponse]

    def ttft_ms(self, mode: Reuse) -> float:
        return self.answers[mode].report.ttft_ms or float("nan")

    def as_json(self) -> dict[str, Any]:
        """The question, and by mode each answer as the API gives it."""
        answers = {mode: answer.model_dump(mode="json") for mode, answer in self.answers.items()}
        return {"question": self.question, "answers": answers}


def ask(client: Client, collection: str, question: str, *, top_k: int) -> Comparison:
    """Ask with passages blended; then by full prefill, for which vLLM's prefix cache is kept out by a salt; then with
    vLLM's prefix cache, after it has seen the same passages in another order.

    The blended answer comes first: its blocks are salted and help neither of the others, while the prefix cache would
    hold the whole prompt by the end.
    """
    answers: dict[Reuse, QueryResponse] = {}
    for mode, _ in MODES:
        if mode == "prefix_cache":
            _warm_prefix_cache(client, collection, answers["blend"])
        max_tokens = 1 if mode == "prefix_cache" else MAX_TOKENS  # its answer is not shown
        answers[mode] = client.query(collection, question, top_k=top_k, reuse=mode, max_tokens=max_tokens)
    return Comparison(question, answers)


def warm_up(client: Client, collection: str, *, top_k: int) -> None:
    """Ask once by a blend and once by full prefill: the first request of a kind takes longer than those after it."""
    for mode, _ in MODES[:2]:
        client.query(collection, WARM_UP_QUESTION, top_k=top_k, reuse=mode, max_tokens=1)


def _warm_prefix_cache(client: Client, collection: str, answer: QueryResponse) -> None:
    """Let vLLM prefill the same passages in reverse order."""
    documents: list[SuppliedDocument | str] = [source.text for source in reversed(answer.sources)]
    options = BlendOptions(documents=documents, collection=collection, reuse="prefix_cache")
    client.chat([{"role": "user", "content": WARM_UP_QUESTION}], blend=options, extra={"max_tokens": 1})


def compared(comparison: Comparison) -> Group:
    """The answer, its sources and the three ways side by side."""
    blended = comparison.answers["blend"]
    lines = Text()
    lines.append(f"\n{comparison.question}\n", style="bold cyan")
    lines.append(f"{blended.answer}\n")
    full = comparison.answers["none"].answer
    lines.append(
        "full prefill gives the same answer\n" if full == blended.answer else f"full prefill: {full}\n", style="dim"
    )
    names = dict.fromkeys(f"{source.document_name}" for source in blended.sources)
    lines.append(f"sources: {', '.join(names)}", style="dim")
    table = Table(
        "",
        "first token",
        "reused",
        "selected",
        "recomputed",
        "times kvblend's",
        box=None,
        header_style="dim",
        pad_edge=False,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for mode, label in MODES:
        ratio = comparison.ttft_ms(mode) / comparison.ttft_ms("blend")
        table.add_row(
            label,
            f"{comparison.ttft_ms(mode):.0f} ms",
            *_counts(comparison.answers[mode].report),
            "" if mode == "blend" else f"{ratio:.1f}",
        )
    return Group(lines, table)


def _counts(report: BlendReport) -> tuple[str, str, str]:
    reused = report.reused_tokens if report.outcome == "blended" else report.exact_tokens
    return str(reused), str(report.selected_tokens), str(report.recomputed_tokens)


def summary(comparisons: Sequence[Comparison]) -> Text:
    """The medians over all questions."""
    ttft = {mode: median(comparison.ttft_ms(mode) for comparison in comparisons) for mode, _ in MODES}
    tokens = median(comparison.answers["blend"].report.prompt_tokens for comparison in comparisons)
    same = sum(c.answers["blend"].answer == c.answers["none"].answer for c in comparisons)
    text = Text(f"\nMedian of {len(comparisons)} questions, prompts of {tokens:.0f} tokens: ", style="bold")
    text.append(
        f"first token after {ttft['blend']:.0f} ms with kvblend, {ttft['none']:.0f} ms by full prefill "
        f"({ttft['none'] / ttft['blend']:.1f} times), {ttft['prefix_cache']:.0f} ms with vLLM's prefix cache "
        f"({ttft['prefix_cache'] / ttft['blend']:.1f} times). {same} of {len(comparisons)} answers are word for word "
        "those of full prefill."
    )
    return text
