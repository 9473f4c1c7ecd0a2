"""What counts as text: what UTF-8 can hold."""

import re

__all__ = ["is_text"]

SURROGATE = re.compile("[\ud800-\udfff]")


def is_text(text: str) -> bool:
    """Whether no lone surrogate is in it: the one kind of character that a str may have and UTF-8 has not."""
    return SURROGATE.search(text) is None
