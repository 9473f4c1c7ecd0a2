"""Real small documents of each kind, and what is none."""

import io
import logging

import pytest
from pypdf import PdfReader, PdfWriter
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

from kvblend.core.errors import UnsupportedDocumentError
from kvblend.retriever import Block, guess_media_type, parse_document

MARKDOWN = b"""---
title: From the front
---
# Head *one* and `code`

First line.
Second line.

- a
- b
  more

```python
  x = 1

  y = 2
```

| a | b |
|---|---|
| 1 | 2 |

Set text
--------

> quoted

[ref]: http://example.org
"""

HTML = b"""<html><head><title> The
 title</title><style>p {}</style></head><body><nav>menu</nav><h1>He<b>ad</b></h1>
<p>a <b>b</b>c
 d<br>e</p>tail<ul><li>one</li><li><p>two</p><ul><li>three</li></ul></li></ul>
<table><tr><th>A</th><th>B</th></tr><tr><td><p>1</p></td><td>2</td></tr></table>
<pre>  x
   y</pre><script>no()</script><!-- no --><p hidden>no</p>&#xD800;&nbsp;z</body></html>"""


def make_pdf(pages: list[list[str]], outline: dict[int, str] | None = None, *, title: str = "A small PDF") -> bytes:
    """A PDF with a line of text per string; `outline` names pages."""
    file = io.BytesIO()
    canvas = Canvas(file, pagesize=A4)
    canvas.setTitle(title)
    for number, lines in enumerate(pages):
        if outline and number in outline:
            canvas.bookmarkPage(str(number))
            canvas.addOutlineEntry(outline[number], str(number))
        for row, line in enumerate(lines):
            canvas.drawString(72, 760 - 16 * row, line)
        canvas.showPage()
    canvas.save()
    return file.getvalue()


def encrypt(pdf: bytes, *, user_password: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf)))
    writer.encrypt(user_password=user_password, owner_password="owner", algorithm="AES-256")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def test_plain_text_splits_at_blank_lines() -> None:
    parsed = parse_document("\ufeffOne.\r\nStill one.\r\n  \r\n\r\n  Two. \n".encode(), None, name="a.txt")
    assert parsed.blocks == (Block("One.\nStill one."), Block("Two."))
    assert parsed.title is None


def test_markdown() -> None:
    parsed = parse_document(MARKDOWN, None, name="a.md")
    assert parsed.title == "Head one and code"
    assert parsed.blocks == (
        Block("Head one and code", level=1),
        Block("First line.\nSecond line."),
        Block("- a\n- b\n  more", lines=True),
        Block("```python\n  x = 1\n\n  y = 2\n```", lines=True),
        Block("| a | b |\n|---|---|\n| 1 | 2 |", lines=True),
        Block("Set text", level=2),
        Block("> quoted"),
        Block("[ref]: http://example.org", lines=True),
    )


def test_markdown_without_a_heading_takes_its_title_from_the_front_matter() -> None:
    parsed = parse_document(b"---\ntitle: 'From the front'\n---\nText with trailing blanks.  \n", None, name="a.md")
    assert (parsed.title, parsed.text) == ("From the front", "Text with trailing blanks.")


def test_html() -> None:
    parsed = parse_document(HTML, "text/html; charset=utf-8", name="a")
    assert parsed.title == "The title"
    assert parsed.blocks == (
        Block("Head", level=1),
        Block("a bc d\ne"),
        Block("tail"),
        Block("- one\n- two\n- three", lines=True),
        Block("A | B\n1 | 2", lines=True),
        Block("  x\n   y", lines=True),
        Block("\ufffd z"),
    )


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        ("<p>caf\u00e9".encode("latin-1"), "text/html; charset=latin-1"),
        ('<meta charset="iso-8859-1"><p>caf\u00e9'.encode("latin-1"), "text/html"),
        ("<p>caf\u00e9".encode(), "text/html"),
        ("<p>caf\u00e9".encode("utf-16"), "application/xhtml+xml"),
    ],
)
def test_html_encodings(data: bytes, media_type: str) -> None:
    assert parse_document(data, media_type, name="a").text == "caf\u00e9"


def test_pdf_joins_pages_and_hyphenated_words_and_takes_headings_from_the_outline() -> None:
    pages = [["Overview", "The first page ends with a hyphen-", "ated word and goes"], ["on here.", "Done."]]
    parsed = parse_document(make_pdf(pages, {0: "Overview"}), None, name="a.pdf")
    assert parsed.title == "A small PDF"
    assert parsed.blocks[0] == Block("Overview", level=1)
    assert " ".join(parsed.text.split()) == (
        "Overview The first page ends with a hyphenated word and goes on here. Done."
    )


def test_pdf_whose_writer_was_given_no_title_has_none() -> None:
    assert parse_document(make_pdf([["Hello"]], title="Untitled"), None, name="a.pdf").title is None


def test_pdf_without_a_text_layer_has_no_blocks() -> None:
    assert parse_document(make_pdf([[]]), "application/pdf", name="scan.pdf").blocks == ()


def test_pdf_that_anyone_may_open_is_read() -> None:
    assert "Hello" in parse_document(encrypt(make_pdf([["Hello"]]), user_password=""), None, name="a.pdf").text


def test_encrypted_pdf_is_refused() -> None:
    with pytest.raises(UnsupportedDocumentError, match=r"'a\.pdf' is an encrypted PDF"):
        parse_document(encrypt(make_pdf([["Secret"]]), user_password="pass"), None, name="a.pdf")


def test_broken_pdfs_are_refused_or_read_but_never_crash(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="pypdf")
    whole = make_pdf([["Hello world"], ["More text"]], {0: "Hello world"})
    refused = 0
    for broken in [b"", b"%PDF-1.4", b"no pdf", *(whole[:end] for end in range(0, len(whole), 97))]:
        try:
            parse_document(broken, None, name="a.pdf")
        except UnsupportedDocumentError as error:
            assert "'a.pdf'" in error.message
            refused += 1
    for position in range(0, len(whole), 31):
        flipped = bytearray(whole)
        flipped[position] ^= 0x55
        try:
            parse_document(bytes(flipped), None, name="a.pdf")
        except UnsupportedDocumentError:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize(
    ("data", "media_type", "message"),
    [
        (b"caf\xe9", "text/plain", "byte 3 cannot be decoded"),
        (b"a\0b", "text/markdown", "NUL"),
        (b"\xff\xfea", "text/plain", "utf-16"),
        (b"text", "text/plain; charset=klingon", "unknown text encoding"),
        (b"text", "text/plain; charset=rot13", "unknown text encoding"),
        (b"<p>caf\xe9", "text/html", "cannot be decoded"),
        (b"<div>" * 3000, "text/html", "more than 2000 deep"),
        (b"PK", "application/zip", "of media type 'application/zip'; supported: application/pdf"),
        (b"?", "", "of a kind that its name does not tell"),
    ],
)
def test_what_is_no_document_is_refused(data: bytes, media_type: str, message: str) -> None:
    with pytest.raises(UnsupportedDocumentError, match=message) as raised:
        parse_document(data, media_type, name="thing")
    assert "'thing'" in raised.value.message


def test_media_types_are_guessed_from_names() -> None:
    names = {"a.TXT": "text/plain", "x/y.md": "text/markdown", "c:\\z.htm": "text/html", "b.pdf": "application/pdf"}
    assert {name: guess_media_type(name) for name in names} == names
    assert guess_media_type("a.exe") is None
    assert guess_media_type("txt") is None
