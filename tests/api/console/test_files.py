"""What the service sends for the console, without a browser."""

import re
from pathlib import Path

import httpx
import pytest

from kvblend.api import console

FOLDER = Path(console.__file__).parent
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.*") if path.suffix in TYPES)
FOREIGN = re.compile(r"""^import .*["'](?!\.)[^"']*["'];|import\(|https?://(?!www\.w3\.org/)""", re.M)


def test_the_page_needs_no_key_and_runs_nothing_but_its_own_files(lone_url: str) -> None:
    page = httpx.get(f"{lone_url}/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"<script(?![^>]*src=)|<style|\bstyle=|\bon\w+=|https?://", page.text)
    assert httpx.get(f"{lone_url}/v1/collections").status_code == 401


def test_each_file_is_sent_as_what_it_is(lone_url: str) -> None:
    with httpx.Client(base_url=lone_url) as client:
        for name in FILES:
            sent = client.get(f"/console/{name}")
            assert sent.status_code == 200 and sent.text == (FOLDER / name).read_text()
            assert sent.headers["content-type"].startswith(TYPES[Path(name).suffix]), name
            assert "default-src 'none'" in sent.headers["content-security-policy"], name
            assert not FOREIGN.search(sent.text), f"{name} asks for what is not ours"


@pytest.mark.parametrize("name", ["", "__init__.py", "../app.py", "%2e%2e/app.py", "nothing.js", "ask"])
def test_nothing_else_is_sent(lone_url: str, name: str) -> None:
    assert httpx.get(f"{lone_url}/console/{name}").status_code == 404


def test_the_api_lists_no_page(lone_url: str) -> None:
    paths = httpx.get(f"{lone_url}/openapi.json").json()["paths"]
    assert "/" not in paths and "/v1/calibration" in paths and "/v1/collections/{collection}/passages" in paths
