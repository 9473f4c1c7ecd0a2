"""The demo's corpus is there on every machine, and large enough."""

from pathlib import Path

from transformers import AutoTokenizer

from kvblend.cli.demo_service import QUESTIONS
from kvblend.eval.corpus import MODULES, module_document
from kvblend.retriever import PassageTokenizer, Splitter, parse_document


def test_it_makes_at_least_200_passages_and_the_same_ones_each_time(demo_model_path: Path) -> None:
    splitter = Splitter(PassageTokenizer(AutoTokenizer.from_pretrained(demo_model_path)), 256)
    documents = {name: module_document(name) for name in MODULES}
    assert documents == {name: module_document(name) for name in MODULES}
    ids = {
        passage.passage_id
        for name, text in documents.items()
        for passage in splitter.split(parse_document(text.encode(), "text/markdown", name=name))
    }
    assert len(ids) >= 200
    assert len(QUESTIONS) >= 5
    assert "textwrap.dedent(text)" in documents["textwrap"]


def test_no_address_of_this_process_is_in_it() -> None:
    """Or its passages would be others in every process: a default that is a function shows where it lies."""
    assert "copy_function=<function copy2>" in module_document("shutil")
    assert not any(" at 0x" in module_document(name) for name in MODULES)
