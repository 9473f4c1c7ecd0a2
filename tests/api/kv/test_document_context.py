"""Passages encoded behind their own document's text, from the ingest to the answer and back to nothing."""

import random
import time
from collections.abc import Callable, Iterator

import pytest

from kvblend.core.rest import KVFile
from kvblend.sdk import Client
from tests.service import RunningService

TOWNS = ("Sund", "Vik", "Tarn", "Holm", "Ness", "Borg", "Skog", "Fell")


def paragraph(number: int) -> str:
    """Some sixty tokens, of each number others."""
    draw = random.Random(number)
    words = " ".join(draw.choice(("mill", "ferry", "bridge", "salt", "tide", "lamp", "harbour")) for _ in range(30))
    return f"Paragraph {number} is about {TOWNS[number % 8]} and its {words}."


def text(numbers: range | list[int]) -> str:
    return "\n\n".join(paragraph(number) for number in numbers)


@pytest.fixture
def client(service: RunningService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@pytest.fixture
def make_collection(client: Client, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    made: list[str] = []

    def make(warm_context: str | None = None) -> str:
        made.append(f"{request.node.name.removeprefix('test_')[:50]}-{len(made)}")
        client.create_collection(made[-1], passage_tokens=64, warm_context=warm_context)
        return made[-1]

    yield make
    for name in made:
        client.delete_collection(name)


def contexts(files: list[KVFile]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for file in files:
        found.setdefault(file.passage_id, set()).add(file.encode_context)
    return found


def test_every_passage_has_a_context_of_its_own(client: Client, make_collection: Callable[..., str]) -> None:
    """Without document context there is one for all; an answer says which one was used."""
    own, neutral = make_collection(), make_collection("neutral")
    assert client.get_collection(own).warm_context == "document"
    for name in (own, neutral):
        job = client.wait(client.add_document(name, text(range(12)), id="a"))
        assert job.status == "succeeded" and job.passages_encoded + job.passages_reused == job.passages_total
    found = contexts(client.kv_lookup(own).files)
    assert len(found) > 10 and all(len(each) == 1 for each in found.values())
    assert len(set.union(*found.values())) == len(found)
    (shared,) = set.union(*contexts(client.kv_lookup(neutral).files).values())
    answer = client.query(own, "What of Sund?", top_k=6, max_tokens=2)
    by_start = {
        source.passage_id: passage for source, passage in zip(answer.sources, answer.report.passages, strict=True)
    }
    assert answer.report.outcome == "blended" and answer.report.missed_passages == 0
    assert all(passage.encode_context in found[passage_id] for passage_id, passage in by_start.items())
    answer = client.query(neutral, "What of Sund?", top_k=6, max_tokens=2)
    assert {passage.encode_context for passage in answer.report.passages} == {shared}


def test_an_edit_keeps_what_stands_before_it(client: Client, make_collection: Callable[..., str]) -> None:
    name = make_collection()
    first = client.wait(client.add_document(name, text(range(40)), id="a"))
    before = contexts(client.kv_lookup(name).files)
    edited = client.wait(client.add_document(name, text([*range(30), 999, *range(31, 40)]), id="a"))
    after = contexts(client.kv_lookup(name).files)
    assert 0 < edited.passages_encoded < first.passages_total / 2
    assert edited.passages_reused >= 20
    assert not client.kv_lookup(name).missing
    replaced = {(id, each) for id, own in before.items() for each in own} - {
        (id, each) for id, own in after.items() for each in own
    }
    assert replaced, "what stood behind the old paragraph is gone from every tier"


def test_a_passage_of_two_documents_goes_with_each(client: Client, make_collection: Callable[..., str]) -> None:
    """Two places, two variants; a deleted document takes its own along, and is in no KV that is left."""
    name = make_collection()
    client.wait(client.add_document(name, text([1, 2, 3]), id="a"))
    client.wait(client.add_document(name, text([7, 8, 3]), id="b"))
    shared = [id for id, own in contexts(client.kv_lookup(name).files).items() if len(own) == 2]
    assert len(shared) == 1
    of_b = contexts(client.kv_lookup(name, document_id="b").files)
    client.delete_document(name, "a")
    assert contexts(client.kv_lookup(name).files) == of_b
    source = client.search(name, "Paragraph 3", top_k=1)[0]
    assert (source.passage_id, source.document_id) == (shared[0], "b")


def test_what_an_answer_misses_is_encoded_behind_its_document(
    client: Client, make_collection: Callable[..., str]
) -> None:
    name = make_collection()
    client.wait(client.add_document(name, text(range(6)), id="a"))
    before = contexts(client.kv_lookup(name).files)
    client.kv_clear(name)
    report = client.query(name, "What of Tarn?", top_k=3, max_tokens=2).report
    assert report.outcome == "prefilled"
    deadline = time.monotonic() + 60
    while len(found := contexts(client.kv_lookup(name).files)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert all(before[id] == own for id, own in found.items())


def test_a_text_of_the_callers_own_stands_before_every_passage(
    client: Client, make_collection: Callable[..., str]
) -> None:
    name = make_collection("Salt was the first trade of the coast, long before the ferries came. " * 20)
    client.wait(client.add_document(name, text(range(3)), id="a"))
    assert len(set.union(*contexts(client.kv_lookup(name).files).values())) == 1
