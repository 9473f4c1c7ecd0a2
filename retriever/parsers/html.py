"""HTML as browsers read it (html5lib), reduced to the text that a reader sees."""

import re
from collections.abc import Iterator

from bs4 import BeautifulSoup, Tag
from bs4.dammit import EncodingDetector
from bs4.element import NavigableString, PreformattedString

from kvblend.core.errors import UnsupportedDocumentError
from kvblend.retriever.document import Block, ParsedDocument
from kvblend.retriever.parsers.decoding import decode_text

__all__ = ["parse_html"]

HEADINGS = {f"h{level}": level for level in range(1, 7)}
HIDDEN = {"head", "script", "style", "template", "noscript", "svg", "nav", "iframe", "object", "select"}
LISTS = {"ul", "ol", "dl", "table"}
MAX_DEPTH = 2000
TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
UNCLOSED = {  # elements without an end tag, or whose end tag may be left out
    "area", "base", "body", "br", "col", "colgroup", "dd", "dt", "embed", "head", "hr", "html", "img", "input", "li",
    "link", "meta", "optgroup", "option", "p", "param", "rp", "rt", "source", "tbody", "td", "tfoot", "th", "thead",
    "tr", "track", "wbr",
}  # fmt: skip
WHITESPACE = re.compile(r"\s+")
LINE_ELEMENTS = {"li", "tr", "dt", "dd", "option"}
BLOCK_ELEMENTS = {
    *HEADINGS, *LINE_ELEMENTS, "address", "article", "aside", "blockquote", "body", "caption", "center", "details",
    "dialog", "div", "dl", "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend",
    "main", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "ul",
}  # fmt: skip


def parse_html(data: bytes, *, charset: str | None, name: str) -> ParsedDocument:
    """Parse HTML. Scripts, styles, navigation and whatever is hidden are left out; the title is `<title>`'s.

    The encoding is that of the byte order mark, the `charset` given, the document's own declaration, or UTF-8.

    Raises:
        UnsupportedDocumentError: the bytes are not text in that encoding, or elements nest too deep.
    """
    declared = EncodingDetector.find_declared_encoding(data, is_html=True)
    text = decode_text(data, charset=charset or declared, name=name)
    if _depth(text) > MAX_DEPTH:
        raise UnsupportedDocumentError(f"document {name!r} nests HTML elements more than {MAX_DEPTH} deep")
    soup = BeautifulSoup(text, "html5lib")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    reader = _Reader()
    for node, entering in _walk(soup.body or soup):
        reader.visit(node, entering=entering)
    reader.flush()
    return ParsedDocument(tuple(reader.blocks), title or None)


def _depth(text: str) -> int:
    """How deep elements nest, roughly: the time that parsing takes grows with its square."""
    depth = deepest = 0
    for match in TAG.finditer(text):
        if match[2].lower() not in UNCLOSED:
            depth = max(0, depth + (-1 if match[1] else 1))
            deepest = max(deepest, depth)
    return deepest


def _walk(root: Tag) -> Iterator[tuple[Tag | NavigableString, bool]]:
    """Walk the visible tree in document order, without recursion; a tag comes twice: entered and left."""
    stack: list[tuple[Tag | NavigableString, bool]] = [(root, True)]
    while stack:
        node, entering = stack.pop()
        yield node, entering
        if entering and isinstance(node, Tag):
            stack.append((node, False))
            visible = (child for child in reversed(node.contents) if not _hidden(child))
            stack.extend((child, True) for child in visible if isinstance(child, Tag | NavigableString))


def _hidden(node: object) -> bool:
    if isinstance(node, Tag):
        return node.name in HIDDEN or node.has_attr("hidden")
    return isinstance(node, PreformattedString)  # comments, doctypes, processing instructions


class _Reader:
    """Gathers inline text and turns it into a block at each block element's start and end."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._inline: list[str] = []
        self._level = 0  # of the heading that is open
        self._depth = {"pre": 0, "line": 0, "cell": 0}  # how many such elements are open
        self._marker = ""  # a list item's, in front of its first text
        self._joins_lines = False  # the last block is a list or table that the next line may continue

    def visit(self, node: Tag | NavigableString, *, entering: bool) -> None:
        if isinstance(node, NavigableString):
            self._inline.append(str(node) if self._depth["pre"] else WHITESPACE.sub(" ", node))
        elif node.name == "br":
            self._inline.append("\n" if entering else "")
        elif node.name in ("td", "th"):
            self._depth["cell"] += 1 if entering else -1
            self._inline.append(" | " if entering and "".join(self._inline).strip() else "")
        elif node.name in BLOCK_ELEMENTS:
            if self._depth["cell"] and node.name in ("p", "div"):
                self._inline.append(" ")  # a paragraph in a cell does not break its row
            else:
                self._cross(node.name, entering=entering)

    def _cross(self, name: str, *, entering: bool) -> None:
        self.flush()
        change = 1 if entering else -1
        self._depth["pre"] += change * (name == "pre")
        self._depth["line"] += change * (name in LINE_ELEMENTS)
        if name in HEADINGS:
            self._level = HEADINGS[name] if entering else 0
        if name == "li":
            self._marker = "- " if entering else ""
        if name in LISTS and not self._depth["line"]:
            self._joins_lines = False

    def flush(self) -> None:
        raw = "".join(self._inline)
        self._inline.clear()
        if self._depth["pre"]:
            self._append(raw.strip("\n").rstrip(), lines=True, joins=False)
        elif self._level:
            heading = " ".join(raw.split())
            if heading:
                self.blocks.append(Block(heading, level=self._level))
                self._joins_lines = False
        else:
            text = "\n".join(line for line in (" ".join(line.split()) for line in raw.split("\n")) if line)
            is_line = self._depth["line"] > 0
            self._append(self._marker + text if text else "", lines=is_line, joins=is_line)

    def _append(self, text: str, *, lines: bool, joins: bool) -> None:
        if not text.strip():
            return
        if joins and self._joins_lines:
            self.blocks[-1] = Block(f"{self.blocks[-1].text}\n{text}", lines=True)
        else:
            self.blocks.append(Block(text, lines=lines))
        self._joins_lines = joins
        self._marker = ""
