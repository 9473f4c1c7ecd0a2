"""Server-sent events from a stream of text.

Lines end in LF, CRLF or CR and in nothing else: `str.splitlines` and `httpx.Response.iter_lines` would also
break a JSON string that holds U+2028 or U+0085.
Based on the HTML Living Standard, section 9.2.6 (https://html.spec.whatwg.org/multipage/server-sent-events.html).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["EventDecoder", "ServerSentEvent"]

LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class ServerSentEvent:
    """One event; `data` joins its data lines by newlines."""

    event: str
    data: str


@dataclass
class EventDecoder:
    """Turns text, cut anywhere, into events. One that the stream's end cuts off is dropped, as the standard asks."""

    _text: str = ""
    _event: str = ""
    _data: list[str] = field(default_factory=list)

    def feed(self, text: str) -> Iterator[ServerSentEvent]:
        """Take the next text of the stream and yield the events that it completes."""
        self._text += text
        start = 0
        for end in LINE_END.finditer(self._text):
            if end.group() == "\r" and end.end() == len(self._text):
                break  # the first half of a CRLF, or a CR: what comes next tells
            line, start = self._text[start : end.start()], end.end()
            if (event := self._take(line)) is not None:
                yield event
        self._text = self._text[start:]

    def _take(self, line: str) -> ServerSentEvent | None:
        if line:
            name, _, value = line.partition(":")  # a comment has no name
            value = value.removeprefix(" ")
            if name == "event":
                self._event = value
            elif name == "data":
                self._data.append(value)
            return None
        event = ServerSentEvent(self._event or "message", "\n".join(self._data)) if self._data else None
        self._event, self._data = "", []
        return event
