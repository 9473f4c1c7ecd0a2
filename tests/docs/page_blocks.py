"""Blocks of code on a page."""

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["DEFAULT_URL", "FENCED", "PASSAGE", "shell"]

DEFAULT_URL = "http://127.0.0.1:8000"
PASSAGE = (
    "The harbour master signs the report, in the evening and in ink, once the last boat is moored and the lamp at the "
    "end of the mole is lit. Boats over nine metres pay forty crowns a night, and their masters sign for it too."
)
FENCED = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^|\n\n)((?: {4,}\S.*\n)(?: {4,}.*\n)*)")
SHELL = re.compile(
    r"^(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?"
    r"(kvblend|curl|vllm|make|pip|docker|helm|kubectl|export|valkey-server|python|mooncake_master|[A-Z_]+=)"
)


def shell(page: Path) -> Iterator[str]:
    """The indented blocks that are for a shell."""
    for block in INDENTED.findall(FENCED.sub("", page.read_text())):
        if SHELL.match(block.strip()):
            yield block
