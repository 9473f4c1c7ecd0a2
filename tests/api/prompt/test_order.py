"""The order of prompts' passages over HTTP, and the variants that the service encodes of itself, on real vLLM."""

import re
import time
from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest

from kvblend.api.prompt.neighbours import VariantLedger
from kvblend.api.prompt.neighbours.order import ORDER_NAMES
from kvblend.core.errors import InvalidRequestError
from kvblend.core.rest import BlendOptions, Source
from kvblend.sdk import Client
from tests.service import RunningService

ORM = "\n\n".join(
    f"The river Orm, reach {number}. Here the river Orm is {40 + number} metres wide, and its bed is of {stone}. The "
    f"boatmen of the Orm call this reach the {name}, and pass it by day alone, for its eddies are strong."
    for number, (stone, name) in enumerate(
        [
            ("slate", "Long Calm"),
            ("granite", "Narrows"),
            ("sand", "Broad Water"),
            ("clay", "Mirror"),
            ("gravel", "Stairs"),
        ]
    )
)
QUESTION = "What do the boatmen call the reach of the river Orm whose bed is of sand?"


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@pytest.fixture(scope="module")
def river(client: Client) -> Iterator[str]:
    """A collection of one document of some passages in a row, and one of another."""
    client.create_collection("river", passage_tokens=64)
    client.wait(client.add_document("river", ORM, id="orm"), timeout_s=120)
    client.wait(client.add_document("river", "The boats of Halden on the Orm are built of birch.", id="boats"))
    yield "river"
    client.delete_collection("river")


def _metric(service: RunningService, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{service.url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _in_document(source: Source) -> int:
    return ORM.index(source.text[:40])


def test_passages_stand_as_the_request_says(client: Client, river: str) -> None:
    """By rank each source's place is its own number; by document the passages of one go by their places there; where
    they fit, the best one is first, and another stands directly behind the one in front of it in the document."""
    by_rank, by_document, fitting = (
        client.query(river, QUESTION, top_k=5, max_tokens=2, order=order) for order in ("rank", "document", "fit")
    )
    assert [source.place for source in by_rank.sources] == [0, 1, 2, 3, 4]
    for answer in (by_document, fitting):
        assert [source.passage_id for source in answer.sources] == [source.passage_id for source in by_rank.sources]
        assert sorted(source.place for source in answer.sources if source.place is not None) == [0, 1, 2, 3, 4]
        assert answer.report.missed_passages == 0
    places = [(source.place, _in_document(source)) for source in by_document.sources if source.document_id == "orm"]
    assert [begin for _, begin in sorted(places)] == sorted(begin for _, begin in places)
    assert fitting.sources[0].place == 0
    ratios = {round(passage.recompute_ratio, 6) for passage in fitting.report.passages}
    assert 0.05 in ratios and max(ratios) <= 0.15, "a third of the default for what fits"
    everywhere = sorted(_in_document(source) for source in fitting.sources if source.document_id == "orm")
    placed = sorted((source.place, source) for source in fitting.sources if source.document_id == "orm")
    in_row = [_in_document(source) for _, source in placed]
    assert any(everywhere.index(b) == everywhere.index(a) + 1 for a, b in pairwise(in_row))


def test_a_collection_has_an_order(client: Client, river: str) -> None:
    assert client.get_collection(river).order == "rank"
    assert client.update_collection(river, order="document").order == "document"
    sources = client.query(river, QUESTION, top_k=4, max_tokens=2).sources
    begins = {source.place: _in_document(source) for source in sources if source.document_id == "orm"}
    assert [begins[place] for place in sorted(begins)] == sorted(begins.values())  # type: ignore[type-var]
    assert client.update_collection(river, order=None).order == "rank"
    with pytest.raises(InvalidRequestError, match="order"):
        client.query(river, QUESTION, order="best")  # type: ignore[arg-type]


def test_supplied_passages_stand_as_supplied(client: Client) -> None:
    documents = ["The lamp of Vik burns seal oil.", "The clock of Vik strikes thirteen."]
    for order in ORDER_NAMES:
        blend = BlendOptions(documents=[*documents], order=order)
        completion = client.chat([{"role": "user", "content": "What burns?"}], blend=blend, extra={"max_tokens": 2})
        assert completion.kvblend is not None
        assert [source.place for source in completion.kvblend.sources] == [0, 1]


def test_what_prompts_bring_together_is_encoded_used_and_deleted(service: RunningService, client: Client) -> None:
    """A pair that is asked for again and again gets KV behind one another while vLLM idles, and is exact then; with one
    of its documents both passages' variants go."""

    def variant_files() -> set[tuple[str, str]]:
        ledger = VariantLedger(service.home / "kv_variants.sqlite3")
        names = {each.name for each in ledger.of_collection("pair")}
        ledger.close()
        roots = (service.cpu_path, service.home / "kv")
        files = [path for root in roots for path in root.rglob("*.kv")]
        return {name for name in names if any(name[0] in str(file) and name[1] in str(file) for file in files)}

    client.create_collection("pair", passage_tokens=64)
    for name, text in (("lamp", "The lamp of Vik burns seal oil."), ("clock", "The clock of Vik strikes thirteen.")):
        client.wait(client.add_document("pair", text, id=name))
    question = "What of Vik burns?"
    before = client.query("pair", question, top_k=2, max_tokens=8, order="fit")
    assert _metric(service, 'kvblend_standing_tokens_total{standing="reused"}') > 0
    deadline = time.monotonic() + 300
    while len(variant_files()) < 2:
        assert time.monotonic() < deadline, "no variant was encoded"
        time.sleep(1)
        client.query("pair", question, top_k=2, max_tokens=1, order="fit")
        time.sleep(2)
    assert _metric(service, "kvblend_encoded_variants_total") >= 2
    exact = _metric(service, 'kvblend_standing_tokens_total{standing="exact"}')
    after = client.query("pair", question, top_k=2, max_tokens=8, order="fit", recompute_ratio=0.0)
    assert _metric(service, 'kvblend_standing_tokens_total{standing="exact"}') > exact
    assert after.report.missed_passages == 0
    assert [passage.exact for passage in after.report.passages] == [True, True]
    assert after.sources[0].place == 0
    client.delete_document("pair", "lamp")
    assert variant_files() <= {name for name in variant_files() if name[1] != before.sources[0].passage_id}
    assert len(variant_files()) <= 1
    client.delete_collection("pair")
    assert variant_files() == set()
