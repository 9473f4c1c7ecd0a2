"""Markdown (CommonMark with tables and front matter), its blocks kept as they were written."""

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.front_matter import front_matter_plugin

from kvblend.retriever.document import Block, ParsedDocument

__all__ = ["parse_markdown"]

LINE_BLOCKS = {"fence", "code_block", "table_open", "bullet_list_open", "ordered_list_open", "html_block"}


def parse_markdown(text: str) -> ParsedDocument:
    """Parse Markdown. The title is the first heading of level 1, else the front matter's `title`.

    Headings lose their marks; other blocks keep their source text, which language models read well.
    Link reference definitions, which are no block of their own, are kept as lines.
    """
    lines = text.split("\n")
    tokens = MarkdownIt("commonmark").enable("table").use(front_matter_plugin).parse(text)
    blocks: list[Block] = []
    front_title: str | None = None
    next_line = 0
    for index, token in enumerate(tokens):
        if token.level != 0 or token.nesting < 0 or token.map is None:
            continue
        start, end = token.map
        _append_lines(blocks, lines[next_line:start], lines_unit=True)
        next_line = max(next_line, end)
        if token.type == "heading_open":
            heading = _plain(tokens[index + 1])
            if heading:
                blocks.append(Block(heading, level=int(token.tag[1:])))
        elif token.type == "front_matter":
            front_title = _front_matter_title(token.content)
        elif token.type != "hr":
            _append_lines(blocks, lines[start:end], lines_unit=token.type in LINE_BLOCKS)
    _append_lines(blocks, lines[next_line:], lines_unit=True)
    title = next((block.text for block in blocks if block.level == 1), front_title)
    return ParsedDocument(tuple(blocks), title)


def _append_lines(blocks: list[Block], source: list[str], *, lines_unit: bool) -> None:
    first = next((number for number, line in enumerate(source) if line.strip()), len(source))
    text = "\n".join(source[first:]).rstrip()
    if text:
        blocks.append(Block(text if lines_unit else text.strip(), lines=lines_unit))


def _plain(inline: Token) -> str:
    """The text of a heading without its marks."""
    parts = [
        "\n" if child.type in ("softbreak", "hardbreak") else child.content for child in inline.children or [] if child
    ]
    return " ".join("".join(parts).split())


def _front_matter_title(front_matter: str) -> str | None:
    for line in front_matter.split("\n"):
        key, separator, value = line.partition(":")
        if separator and key.strip() == "title":
            return value.strip().strip("\"'") or None
    return None
