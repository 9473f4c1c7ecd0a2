"""What requests say of retrieval reaches it: search, query and the field `kvblend`, over REST."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from kvblend.core.errors import InvalidRequestError
from kvblend.sdk import Client
from tests.api.scripted_service import ScriptedService, scripted_service
from tests.retriever.model_server import model_server

FILLER = "It goes on for a while about this and about that, so that the passage is full and the next one begins. "


def story(name: str) -> str:
    return "\n\n".join(f"# Part {number}\n\nThe {name}{number} appears. {FILLER * 2}" for number in range(6))


@pytest.fixture(scope="module")
def scripted(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    folder = tmp_path_factory.mktemp("retrieval")
    with (
        model_server() as server,
        scripted_service(
            folder, model=demo_model_path, embedding_model=embedding_model_path, reranker=f"{server.url}/rerank"
        ) as service,
    ):
        with Client(service.url) as client:
            client.create_collection("c", passage_tokens=64)
            for name, lang, year in (("apple", "en", 2019), ("birne", "de", 2021), ("cherry", "en", 2023)):
                client.wait(client.add_document("c", story(name), id=name, metadata={"lang": lang, "year": year}))
        yield service


@pytest.fixture
def client(scripted: ScriptedService) -> Iterator[Client]:
    with Client(scripted.url) as client:
        yield client


def test_search_takes_all_that_says_how(client: Client) -> None:
    (best,) = client.search("c", "Where is cherry4?", top_k=1, mode="keyword")
    assert best.document_id == "cherry" and "cherry4" in best.text and not best.neighbor
    assert client.search("c", "Where is cherry4?", mode="keyword", filter={"lang": "de"}) != []
    found = client.search("c", "Where is cherry4?", filter={"lang": "en", "year": {"lt": 2020}})
    assert {source.document_id for source in found} == {"apple"}
    found = client.search("c", "cherry4", top_k=1, mode="keyword", neighbors=1)
    assert [source.neighbor for source in found] in ([True, False, True], [True, False])
    assert [source.score is None for source in found] == [source.neighbor for source in found]
    assert client.search("c", "cherry4", min_score=0.999) == []
    with pytest.raises(InvalidRequestError, match="more than 256 passages"):
        client.search("c", "cherry4", top_k=64, neighbors=8)


def test_query_and_chat_retrieve_as_told(client: Client, scripted: ScriptedService) -> None:
    choices: dict[str, Any] = {"mode": "keyword", "filter": {"or": [{"lang": "de"}, {"year": {"in": [2023]}}]}}
    answer = client.query("c", "birne2 or apple2?", top_k=2, neighbors=1, **choices)
    assert {source.document_id for source in answer.sources} <= {"birne", "cherry"}
    assert answer.sources[0].document_id == "birne" and any(source.neighbor for source in answer.sources)
    assert sorted(source.place for source in answer.sources if source.place is not None) == list(
        range(len(answer.sources))
    )
    body = {
        "messages": [{"role": "user", "content": "birne2 or apple2?"}],
        "kvblend": {"collection": "c", "top_k": 2, "neighbors": 1, **choices},
    }
    chat = httpx.post(f"{scripted.url}/v1/chat/completions", json=body, timeout=60)
    assert chat.status_code == 200, chat.text
    told = chat.json()["kvblend"]["sources"]
    assert [source["passage_id"] for source in told] == [source.passage_id for source in answer.sources]


def test_a_collection_says_how_it_is_searched(client: Client) -> None:
    assert client.get_collection("c").mode == "hybrid"
    assert client.update_collection("c", mode="keyword").mode == "keyword"
    keyword = client.search("c", "cherry4 of the story")
    assert keyword == client.search("c", "cherry4 of the story", mode="keyword")
    assert keyword != client.search("c", "cherry4 of the story", mode="hybrid")
    assert client.update_collection("c", mode=None).mode == "hybrid"


def test_what_was_found_is_reranked(client: Client) -> None:
    """The server's rule: the share of a passage's words that are the question's, of which "it" is one."""
    found = client.search("c", "it appears.", top_k=3, mode="keyword", rerank=True, rerank_candidates=64)
    scores = [source.score for source in found if source.score is not None]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    words = found[0].text.lower().split()
    assert scores[0] == pytest.approx(sum(word in ("it", "appears.") for word in words) / len(words))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"filter": {"year": {"after": 2020}}}, "filter.year"),
        ({"filter": {"year": {"gte": None}}}, "filter.year"),
        ({"mode": "fuzzy"}, "mode"),
        ({"neighbors": 9}, "neighbors"),
        ({"min_score": "high"}, "min_score"),
        ({"rerank_candidates": 0}, "rerank_candidates"),
    ],
)
def test_what_is_wrong_is_named(scripted: ScriptedService, fields: dict[str, Any], param: str) -> None:
    response = httpx.post(f"{scripted.url}/v1/collections/c/search", json={"query": "q", **fields})
    assert response.status_code == 400
    assert param in str(response.json()["error"]), response.text


def test_the_schema_says_what_a_filter_is(scripted: ScriptedService) -> None:
    schemas = httpx.get(f"{scripted.url}/openapi.json").json()["components"]["schemas"]
    assert {"and", "or", "not"} == set(schemas["MetadataFilter"]["properties"])
    assert schemas["MetadataFilter"]["additionalProperties"]
    assert {"in", "gt", "gte", "lt", "lte"} == set(schemas["MetadataCondition"]["properties"])


def test_a_conversation_stands_before_the_question(
    client: Client, scripted: ScriptedService, demo_model_path: Path
) -> None:
    history = [
        {"role": "user", "content": "Tell me of cherry4."},
        {"role": "assistant", "content": "It appears."},
    ]
    scripted.engine.bodies.clear()
    answer = client.query("c", "When does it?", history=history, mode="keyword")
    assert answer.rewritten is None
    (sent,) = [body["prompt"] for body in scripted.engine.bodies if body.get("stream")]
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path)
    text = tokenizer.decode(sent)
    places = [text.index(part) for part in ("Tell me of cherry4.", "It appears.", "Passages:", "When does it?")]
    assert places == sorted(places)
    assert "Tell me of" not in tokenizer.decode(_sent(client, scripted, "When does it?"))


def _sent(client: Client, scripted: ScriptedService, question: str) -> list[int]:
    scripted.engine.bodies.clear()
    client.query("c", question)
    (sent,) = [body["prompt"] for body in scripted.engine.bodies if body.get("stream")]
    assert isinstance(sent, list)
    return sent


def test_passages_are_retrieved_for_the_rewritten_question(client: Client, scripted: ScriptedService) -> None:
    """The engine rewrites everything to "xxx", which no passage has."""
    history = [{"role": "user", "content": "Tell me of cherry4."}, {"role": "assistant", "content": "It appears."}]
    scripted.engine.bodies.clear()
    answer = client.query("c", "When does cherry4 appear?", history=history, rewrite=True, mode="keyword")
    assert (answer.rewritten, answer.sources) == ("xxx", [])
    (rewriting,) = [body for body in scripted.engine.bodies if "messages" in body]
    told = rewriting["messages"][1]["content"]
    assert told.splitlines() == [
        "User: Tell me of cherry4.",
        "Assistant: It appears.",
        "Last question: When does cherry4 appear?",
    ]
    assert (rewriting["temperature"], rewriting["max_tokens"]) == (0.0, 96)
    alone = client.query("c", "When does cherry4 appear?", rewrite=True, mode="keyword", top_k=1)
    assert alone.rewritten == "When does cherry4 appear?" and "cherry4" in alone.sources[0].text
