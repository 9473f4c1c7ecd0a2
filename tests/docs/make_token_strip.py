"""Makes docs/images/token-strip.svg, the README's picture, of a real blend's report: `make reference`.

`python tests/docs/make_token_strip.py URL` asks a running service anew first, over the passages of the project's own
questions. What it answers is kept in docs/images/token-strip.json.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from kvblend.core.errors import NotFoundError
from kvblend.core.report import TokenFate, TokenReport
from kvblend.core.rest import QueryResponse
from kvblend.sdk import Client

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "images" / "token-strip.svg"
ANSWER = PAGE.with_suffix(".json")

COLLECTION = "token-strip"
QUESTION = "Which family owned the quarry whose stone was used for the harbour that Marta Elling dug?"
NUM_PASSAGES = 5
FATES: dict[TokenFate, tuple[str, str, str]] = {
    "exact": ("#0b4f87", "#c9d9e8", "taken as it is"),
    "reused": ("#2f8fc8", "#d8ebf6", "reused from stored KV"),
    "recomputed": ("#b86b00", "#f2c078", "recomputed"),
    "fresh": ("#a8417f", "#ecc6de", "nothing was stored"),
}
"""The console's colour, a light one behind words, what it means: blue is what was stored, warm what was computed."""
WIDTH, MARGIN, SCORES, BAND = 880, 20, 46, 26
TOP, WORDS, LINE, LETTER = 46, 184, 22, 6.65
"""Where the bars end above the strip and the words begin; a line's height and a letter's width."""
MOST_LINES = 3


def reference() -> str:
    """Return the picture as it should be."""
    answer = QueryResponse.model_validate_json(ANSWER.read_text())
    tokens = answer.report.tokens
    assert tokens is not None and answer.report.outcome == "blended"
    names = {source.place: source.document_id or "" for source in answer.sources}
    return "\n".join([*_picture(tokens, names), "</svg>\n"])


def _picture(tokens: TokenReport, names: dict[int | None, str]) -> Iterator[str]:
    fates = [fate for fate, count in tokens.fates for _ in range(count)]
    scale = (WIDTH - 2 * MARGIN) / len(fates)
    start, end = _telling(tokens, fates)
    lines = list(_lines(tokens.texts, fates, start, end))
    height = WORDS + LINE * len(lines) + 8
    counts = {fate: fates.count(fate) for fate in FATES}
    said = ", ".join(f"{count} {FATES[fate][2]}" for fate, count in counts.items() if count)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="ui-sans-serif, system-ui, sans-serif" font-size="12" fill="#1c1b19">'
    )
    yield f"<title>The {len(fates)} context tokens of one prompt: {said}</title>"
    yield f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fbfaf8"/>'
    across = MARGIN
    for fate, (color, _, about) in FATES.items():
        if counts[fate]:
            text = f"{counts[fate]:,} {about}"
            yield f'<rect x="{across}" y="16" width="18" height="12" rx="2" fill="{color}"/>'
            yield f'<text x="{across + 24}" y="26">{text}</text>'
            across += 24 + 7 * len(text) + 22
    highest = max((score for score in tokens.scores if score is not None), default=1.0)
    baseline = TOP + SCORES
    bars = dict.fromkeys(FATES, "")
    for place, score in enumerate(tokens.scores):
        if score:
            tall = SCORES * (score / highest) ** 0.5
            bars[fates[place]] += f"M{MARGIN + place * scale:.1f} {baseline}v-{tall:.1f}h{scale:.2f}v{tall:.1f}"
    for fate, path in bars.items():
        if path:
            yield f'<path d="{path}" fill="{FATES[fate][0]}"/>'
    at = 0
    for fate, run in groupby(fates):
        count = len(list(run))
        yield (
            f'<rect x="{MARGIN + at * scale:.2f}" y="{baseline + 3}" width="{count * scale:.2f}" height="{BAND}" '
            f'fill="{FATES[fate][0]}"/>'
        )
        at += count
    below = baseline + 3 + BAND
    for place, (first, last) in enumerate(tokens.passages):
        left, right = MARGIN + first * scale, MARGIN + last * scale
        yield f'<path d="M{left + 1:.1f} {below + 4} v5 H{right - 1:.1f} v-5" fill="none" stroke="#8b8578"/>'
        yield (
            f'<text x="{(left + right) / 2:.1f}" y="{below + 22}" text-anchor="middle" font-size="11" fill="#5f5b53">'
            f"{escape(names.get(place, ''))}</text>"
        )
    left, right = MARGIN + start * scale, MARGIN + end * scale
    yield (
        f'<path d="M{left:.1f} {baseline + 1} h{right - left:.1f} v{BAND + 4} h{left - right:.1f} z" fill="none" '
        f'stroke="#1c1b19" stroke-width="1.5"/>'
    )
    yield '<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="11">'
    for number, line in enumerate(lines):
        top = WORDS + LINE * number
        across_words = float(MARGIN)
        for text, fate in line:
            wide = LETTER * len(text) + 4
            ground = FATES[fate][1]
            yield f'<rect x="{across_words:.1f}" y="{top - 14}" width="{wide:.1f}" height="19" rx="2" fill="{ground}"/>'
            yield (
                f'<text x="{across_words + 2:.1f}" y="{top}" xml:space="preserve" '
                f'textLength="{wide - 4:.1f}">{escape(text)}</text>'
            )
            across_words += wide + 1
    yield "</g>"


def _telling(tokens: TokenReport, fates: Sequence[TokenFate]) -> tuple[int, int]:
    """The stretch of the best two passages that has the most recomputed tokens, as long as the words' lines hold."""
    best = (0, 0, 0)
    for first, last in tokens.passages[:2]:
        for start in range(first, last):
            lines = list(_lines(tokens.texts, fates, start, last))
            end = start + sum(len(line) for line in lines)
            num_computed = sum(fate == "recomputed" for fate in fates[start:end])
            best = max(best, (num_computed, -start, -end))
    return -best[1], -best[2]


def _lines(
    texts: Sequence[str], fates: Sequence[TokenFate], start: int, end: int
) -> Iterator[list[tuple[str, TokenFate]]]:
    """Tokens from `start` on in lines of words, `MOST_LINES` at most."""
    line: list[tuple[str, TokenFate]] = []
    num_lines, room = 0, float(WIDTH - 2 * MARGIN)
    for token in range(start, end):
        text = texts[token].replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
        wide = LETTER * len(text) + 5
        if wide > room:
            yield line
            num_lines, line, room = num_lines + 1, [], WIDTH - 2 * MARGIN
            if num_lines == MOST_LINES:
                return
        line.append((text, fates[token]))
        room -= wide
    if line:
        yield line


def _ask(url: str) -> None:
    passages = json.loads((ROOT / "eval" / "questions" / "own_questions.json").read_text())["passages"]
    with Client(url) as client:
        with suppress(NotFoundError):
            client.delete_collection(COLLECTION)
        client.create_collection(COLLECTION)
        for job in [client.add_document(COLLECTION, text, id=name) for name, text in passages.items()]:
            client.wait(job)
        answer = client.query(COLLECTION, QUESTION, top_k=NUM_PASSAGES, max_tokens=24, report_tokens=True)
        client.delete_collection(COLLECTION)
    times: dict[str, Any] = {
        "retrieve_ms": True,
        "report": {"ttft_ms", "steps_ms"},
    }  # of a machine that may have been busy
    ANSWER.write_text(answer.model_dump_json(exclude_defaults=True, exclude=times) + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        _ask(sys.argv[1])
    PAGE.write_text(reference())
