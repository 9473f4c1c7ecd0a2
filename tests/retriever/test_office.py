"""Word, PowerPoint, Excel and CSV documents, made by the tests, through the parsers and through a worker process."""

import io
import zipfile

import openpyxl
import pytest
from pptx import Presentation

from kvblend.core.errors import InvalidRequestError, UnsupportedDocumentError
from kvblend.retriever import PassageTokenizer, SplitLimits, SplitPool, parse_document

CONTENT_TYPES = """<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Override PartName="/word/document.xml"
ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>"""
RELATIONSHIPS = """<?xml version="1.0"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1"
Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/>
</Relationships>"""
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def docx(*paragraphs: tuple[str, str], padding: bytes = b"") -> bytes:
    """A Word document of paragraphs, each a style ("" for none) and a text."""
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    document = f'<?xml version="1.0"?><w:document xmlns:w="{WORD}"><w:body>{body}'.encode()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("[Content_Types].xml", CONTENT_TYPES)
        file.writestr("_rels/.rels", RELATIONSHIPS)
        file.writestr("word/document.xml", document + padding + b"</w:body></w:document>")
    return data.getvalue()


def pptx() -> bytes:
    presentation = Presentation()
    for title, text in (("The bridge", "Opened in 1902."), ("The mill", "Older than that.")):
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = title, text
    data = io.BytesIO()
    presentation.save(data)
    return data.getvalue()


def xlsx() -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Prices"
    for row in (["Item", "Price"], ["Lamp", 12], ["Bell", None]):
        sheet.append(row)
    book.create_sheet("Dates").append(["Vik", "1902"])
    data = io.BytesIO()
    book.save(data)
    return data.getvalue()


def blocks(data: bytes, name: str) -> list[tuple[int, str]]:
    return [(block.level, block.text) for block in parse_document(data, None, name=name).blocks]


def test_word_documents_keep_their_headings() -> None:
    data = docx(("Heading1", "The valley"), ("", "It has a bridge."), ("Heading2", "The mill"), ("", "It is old."))
    assert blocks(data, "a.docx") == [(1, "The valley"), (0, "It has a bridge."), (2, "The mill"), (0, "It is old.")]


def test_slides_are_sections() -> None:
    found = blocks(pptx(), "a.pptx")
    assert found == [(1, "The bridge"), (0, "Opened in 1902."), (1, "The mill"), (0, "Older than that.")]


def test_sheets_are_sections_with_a_table() -> None:
    heading, table, *rest = blocks(xlsx(), "a.xlsx")
    assert heading == (2, "Prices")
    assert [cell.strip() for cell in table[1].splitlines()[0].split("|")[1:-1]] == ["Item", "Price"]
    assert "Lamp" in table[1] and "12" in table[1] and "NaN" not in table[1]
    assert rest[0] == (2, "Dates")


def test_values_are_a_table() -> None:
    ((_, table),) = blocks('name,year\nVik,1902\n"a, b",é\n'.encode(), "a.csv")
    assert [line.strip("| ").split(" | ") for line in table.splitlines()] == [
        ["name", "year"],
        ["---", "---"],
        ["Vik", "1902"],
        ["a, b", "é"],
    ]


@pytest.mark.parametrize("name", ["a.docx", "a.pptx", "a.xlsx"])
@pytest.mark.parametrize("broken", ["nothing", "cut", "another", "empty zip"])
def test_what_is_broken_is_refused(name: str, broken: str) -> None:
    whole = {"a.docx": docx(("", "text")), "a.pptx": pptx(), "a.xlsx": xlsx()}
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    data = {
        "nothing": b"PK\x03\x04",
        "cut": whole[name][:-200],
        "another": whole["a.xlsx" if name != "a.xlsx" else "a.pptx"],
        "empty zip": empty.getvalue(),
    }[broken]
    with pytest.raises(UnsupportedDocumentError, match=f"is no {name[2:]} that can be read"):
        parse_document(data, None, name=name)


def test_workers_split_them_within_bounds(passage_tokenizer: PassageTokenizer) -> None:
    """A file that unpacks to more than may be taken ends its own parse; the next one is split."""
    pool = SplitPool(passage_tokenizer, SplitLimits(seconds=30, memory_bytes=1 << 30), num_workers=1)
    try:
        (passage,) = pool.split(docx(("", "It has a bridge.")), "", "a.docx", 64)
        assert passage.text == "It has a bridge."
        bomb = docx(("", "x"), padding=b" " * (1 << 30))
        with pytest.raises(InvalidRequestError, match="bytes of memory"):
            pool.split(bomb, "", "bomb.docx", 64)
        assert "Lamp" in pool.split(xlsx(), "", "a.xlsx", 64)[0].text
    finally:
        pool.close()
