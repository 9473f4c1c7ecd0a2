"""A hook of mkdocs.yml: links that leave docs/ are for readers of the repository, and on the site the text alone."""

import re
from typing import Any

__all__ = ["on_page_markdown"]

LINK = re.compile(r"!?\[(?P<words>[^\]]+)\]\((?P<up>(?:\.\./)+)(?P<path>[^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return a page's text, each link to a file outside docs/ as its words and the file's path in the repository."""
    depth = page.file.src_uri.count("/")

    def named(link: re.Match[str]) -> str:
        if link["up"].count("../") <= depth:
            return link[0]
        return (
            f"`{link['path']}`" if link["words"].strip("`/") in link["path"] else f"{link['words']} (`{link['path']}`)"
        )

    return LINK.sub(named, markdown)
