"""A conversation over a collection in the terminal: its history is kept here, each question brings passages anew."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from kvblend.cli.json_output import print_json
from kvblend.cli.report_line import report_line
from kvblend.cli.source_table import source_table
from kvblend.core.errors import KVBlendError

if TYPE_CHECKING:
    from rich.live import Live

    from kvblend.core.rest import BlendOptions
    from kvblend.sdk import BlendResult, Client

__all__ = ["chat"]

NEW = "/new"
BANNER = f"Ask {{collection}}. Ctrl-D ends the conversation, {NEW} begins another, Ctrl-C stops an answer."


def chat(client: Client, blend: BlendOptions, first: str | None, *, max_tokens: int, as_json: bool) -> None:
    """Answer `first` and then what is typed, or the lines of standard input, until its end. With `as_json`, one JSON
    object a line: `question`, `answer`, and `sources` and `report` where the answer came to its end.

    A question that the service refuses is said and forgotten on a terminal. Raises KVBlendError elsewhere.
    """
    console = Console(highlight=False)
    if sys.stdin.isatty() and not as_json:
        console.print(BANNER.format(collection=blend.collection), style="dim", markup=False)
    messages: list[dict[str, str]] = []
    for question in _questions(first, prompt="" if as_json else "\n> "):
        if question == NEW:
            messages.clear()
            continue
        messages.append({"role": "user", "content": question})
        shown = _Answer(console, is_live=not as_json)
        try:
            for chunk in client.stream_chat(messages, blend=blend, extra={"max_tokens": max_tokens}):
                shown.add("".join(choice.delta.content or "" for choice in chunk.choices), chunk.kvblend)
        except KVBlendError as error:
            messages.pop()
            if not sys.stdin.isatty():
                raise
            Console(stderr=True).print(error.message, style="red", markup=False, highlight=False)
            continue
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        finally:
            shown.end()
        messages.append({"role": "assistant", "content": shown.text})
        if as_json:
            made = shown.result.model_dump() if shown.result is not None else {}
            print_json({"question": question, "answer": shown.text, **made})


def _questions(first: str | None, prompt: str) -> Iterator[str]:
    """What is asked, without blank lines; on a terminal with a prompt and with editing, until Ctrl-D or Ctrl-C."""
    if first is not None:
        yield first
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    import readline  # noqa: F401 (`input` edits lines and has a history once it is imported)

    while True:
        try:
            line = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line


class _Answer:
    """One answer as it comes: on a terminal as Markdown that grows, elsewhere as text."""

    def __init__(self, console: Console, *, is_live: bool) -> None:
        self.text = ""
        self.result: BlendResult | None = None
        self._console, self._is_shown = console, is_live
        self._live: Live | None = None
        if is_live and console.is_terminal:
            from rich.live import Live

            # Transient: a screen that scrolls keeps the whole answer once, as `end` prints it.
            self._live = Live(console=console, transient=True, refresh_per_second=12)
            self._live.start()

    def add(self, text: str, result: BlendResult | None) -> None:
        self.text += text
        self.result = result or self.result
        if self._live is not None:
            from rich.markdown import Markdown

            self._live.update(Markdown(self.text))

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
        if self._is_shown and self.text:
            from rich.markdown import Markdown

            self._console.print(Markdown(self.text) if self._live is not None else self.text)
        if self._is_shown and self.result is not None:
            self._console.print()
            self._console.print(source_table(self.result.sources))
            self._console.print(report_line(self.result.report), style="dim", markup=False)
