"""What every parser makes of a document: headings and blocks of text in reading order."""

from dataclasses import dataclass

__all__ = ["Block", "ParsedDocument"]


@dataclass(frozen=True)
class Block:
    """A paragraph, or a heading where `level` is 1 (highest) to 6.

    Where `lines` is set the line is the unit that is not broken (tables, lists, code); else the sentence is.
    `text` has no blank space at its ends, except that the first line of code keeps its indentation.
    """

    text: str
    level: int = 0
    lines: bool = False


@dataclass(frozen=True)
class ParsedDocument:
    """A document's blocks, none of them empty, and its title where it names one."""

    blocks: tuple[Block, ...]
    title: str | None = None

    @property
    def text(self) -> str:
        """All the text, a blank line between blocks."""
        return "\n\n".join(block.text for block in self.blocks)
