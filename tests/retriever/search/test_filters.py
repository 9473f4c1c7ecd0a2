"""Metadata filters, against a plain reading of their documents in Python, and their errors."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kvblend.core.rest import MetadataFilter, SearchRequest
from kvblend.core.rest.filters import MetadataCondition
from kvblend.retriever import Retriever
from kvblend.retriever.search import matching, passage_search

NAMES = st.sampled_from(["n", "a.b", 'q"t', "lang"])
VALUES = st.sampled_from([0, 1, -3, 2.5, 1.0, True, False, "", "1", "true", "b", "é", "2026-01-31"])
ORDERED = VALUES.filter(lambda value: not isinstance(value, bool))
RANGES = st.fixed_dictionaries({}, optional=dict.fromkeys(["gt", "gte", "lt", "lte"], ORDERED))
CONDITIONS = st.builds(
    lambda ranges, among: {**ranges, "in": among}, RANGES, st.lists(VALUES, min_size=1, max_size=3)
) | RANGES.filter(bool)
FIELDS = st.dictionaries(NAMES, VALUES | CONDITIONS, max_size=2)
FILTERS = st.recursive(
    FIELDS,
    lambda inner: st.builds(
        lambda fields, parts: {**fields, **parts},
        FIELDS,
        st.fixed_dictionaries(
            {},
            optional={
                "and": st.lists(inner, min_size=1, max_size=2),
                "or": st.lists(inner, min_size=1, max_size=3),
                "not": inner,
            },
        ),
    ),
    max_leaves=6,
)


def is_same(value: object, other: object) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def holds(asked: Any, value: object) -> bool:
    """Whether one field's value is as asked."""
    if not isinstance(asked, dict):
        return is_same(asked, value)
    kind = str if isinstance(value, str) else (int, float)
    ranges = {
        "gt": lambda bound: value > bound,
        "gte": lambda bound: value >= bound,
        "lt": lambda bound: value < bound,
        "lte": lambda bound: value <= bound,
    }
    for name, bound in asked.items():
        if name == "in":
            if not any(is_same(each, value) for each in bound):
                return False
        elif isinstance(value, bool) or not isinstance(bound, kind) or not ranges[name](bound):
            return False
    return True


def lets_through(filter: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """Reference: what a filter means."""
    fields = {name: asked for name, asked in filter.items() if name not in ("and", "or", "not")}
    return (
        all(name in metadata and holds(asked, metadata[name]) for name, asked in fields.items())
        and all(lets_through(part, metadata) for part in filter.get("and", []))
        and ("or" not in filter or any(lets_through(part, metadata) for part in filter["or"]))
        and ("not" not in filter or not lets_through(filter["not"], metadata))
    )


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return [
        {},
        *({"n": value} for value in (0, 1, 2.5, True, False, "1", "b", "2026-01-31")),
        {"n": 1, "lang": "b"},
        {"n": -3, "a.b": "é", 'q"t': True},
        {"a.b": 2.5, 'q"t': "", "lang": "true"},
    ]


def put(retriever: Retriever, documents: list[dict[str, Any]]) -> None:
    for number, metadata in enumerate(documents):
        text = f"Document {number} has words of its own{number}."
        retriever.commit_document(retriever.plan_ingest("c", text, document_id=str(number), metadata=metadata))


@pytest.mark.parametrize("mode", ["hybrid", "vector", "keyword"])
@pytest.mark.parametrize("many", [False, True])
def test_a_filter_lets_through_what_it_says(
    retriever: Retriever, documents: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, mode: Any, many: bool
) -> None:
    """Reference: `lets_through`. Ours: SQL, by the list of all that match, or (`many`) by wider and wider searches."""
    if many:
        monkeypatch.setattr(matching, "MAX_LISTED", 0)
        monkeypatch.setattr(passage_search, "WIDENED", 2)
    put(retriever, documents)

    @given(filter=FILTERS)
    @settings(max_examples=60)
    def check(filter: dict[str, Any]) -> None:
        chosen = MetadataFilter.model_validate(filter)
        hits = retriever.search("c", "document words", top_k=64, mode=mode, filter=chosen)
        expected = {str(number) for number, metadata in enumerate(documents) if lets_through(filter, metadata)}
        assert {hit.document_id for hit in hits} == expected
        few = retriever.search("c", "document words", top_k=2, mode=mode, filter=chosen)
        assert len(few) == min(2, len(expected)) and {hit.document_id for hit in few} <= expected

    check()


def test_a_passage_of_several_documents_is_found_in_the_one_that_matches(retriever: Retriever) -> None:
    for name, lang in (("one", "en"), ("two", "de")):
        plan = retriever.plan_ingest("c", "Shared words.", document_id=name, metadata={"lang": lang})
        retriever.commit_document(plan)
    for name, lang in (("one", "en"), ("two", "de")):
        (hit,) = retriever.search("c", "words", top_k=3, filter=MetadataFilter.model_validate({"lang": lang}))
        assert (hit.document_id, hit.metadata) == (name, {"lang": lang})
    assert retriever.search("c", "words", top_k=3, filter=MetadataFilter.model_validate({"lang": "fr"})) == []


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ({"year": None}, "filter.year"),
        ({"year": [2020]}, "filter.year"),
        ({"year": {}}, "at least one of in, gt, gte, lt and lte"),
        ({"year": {"gte": None}}, "at least one of in, gt, gte, lt and lte"),
        ({"year": {"from": 2020}}, "filter.year"),
        ({"year": {"gt": True}}, "filter.year"),
        ({"year": {"in": []}}, "filter.year"),
        ({"year": float("nan")}, "filter.year"),
        ({"or": []}, "filter.or"),
        ({"not": [{"a": 1}]}, "filter.not"),
        ({"or": [{"a": 1}] * 257}, "at most 256 items"),
        ({"and": [{"or": [{"a": 1}] * 200}] * 2}, "at most 256 conditions"),
        ("year > 2020", "filter"),
    ],
)
def test_what_is_no_filter_is_refused(filter: object, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        SearchRequest.model_validate({"query": "q", "filter": filter})
    told = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.value.errors()]
    assert any(message in each for each in told), told


def test_a_filter_may_not_nest_deep() -> None:
    filter: dict[str, Any] = {"a": 1}
    for _ in range(16):
        filter = {"not": filter}
    with pytest.raises(ValidationError, match="16 deep"):
        MetadataFilter.model_validate(filter)
    assert MetadataFilter.model_validate(filter["not"]).model_dump(by_alias=True, exclude_none=True) == filter["not"]


def test_a_filter_is_sent_as_it_was_given() -> None:
    filter = {"lang": "en", "year": {"gte": 2020, "in": [1, True]}, "or": [{"a": 1.5}, {"not": {"b": False}}]}
    sent = SearchRequest(query="q", filter=MetadataFilter.model_validate(filter)).model_dump(
        mode="json", by_alias=True, exclude_none=True
    )
    assert sent["filter"] == filter
    assert isinstance(MetadataFilter(year=MetadataCondition(in_=[1])).fields["year"], MetadataCondition)
