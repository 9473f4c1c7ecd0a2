"""Wide bodies are read in about the room and the time that their values take, while others are answered."""

import asyncio
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from kvblend.api.http.body_threads import read_beside
from kvblend.api.http.json_body import read_json
from kvblend.api.http.openai_body import ChatRequest, CompletionRequest
from kvblend.core.errors import InvalidRequestError
from kvblend.core.rest import DocumentCreate, KVSelection, SearchRequest

WIDE = 100_000
ESCAPED = b'"\\ud83d\\ude00"'
WIDE_BODIES = {
    "brackets": b'{"a": [' + b"[]," * WIDE + b"1]}",
    "token ids": json.dumps({"prompt": list(range(WIDE)), "user": "\U0001f600"}).encode(),
    "texts": b"[" + b'"a",' * WIDE + ESCAPED + b"]",
    "fields": json.dumps({f"field {number}": [number] for number in range(WIDE // 4)} | {"x": "\U0001f600"}).encode(),
}


def peak_bytes(read: Callable[[bytes], Any], body: bytes) -> int:
    """The most memory that reading a body takes at a time."""
    tracemalloc.start()
    try:
        read(body)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("body", WIDE_BODIES.values(), ids=WIDE_BODIES)
def test_a_wide_body_takes_no_more_room_than_its_value(body: bytes) -> None:
    """Reference: Python's own reader."""
    assert read_json(body) == json.loads(body)
    assert peak_bytes(read_json, body) < 1.2 * peak_bytes(json.loads, body) + (64 << 10)


@pytest.mark.parametrize("body", WIDE_BODIES.values(), ids=WIDE_BODIES)
async def test_others_have_their_turn_meanwhile(body: bytes) -> None:
    reading = asyncio.create_task(read_beside(read_json, body))
    num_turns = 0
    while not reading.done():
        num_turns += 1
        await asyncio.sleep(0)
    assert await reading == json.loads(body) and num_turns > 2


async def test_a_small_body_waits_for_no_thread() -> None:
    reading = asyncio.create_task(read_beside(read_json, b"[1]"))
    await asyncio.sleep(0)
    assert reading.done() and reading.result() == [1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("NaN", "NaN is not a finite number"),
        ("1e999", "1e999 is not a finite number"),
        (r'"\ud800"', "half a surrogate pair at character 0"),
        (r'"\ude00\ud83d"', "half a surrogate pair at character 0"),
        (r'"\\\ud83d"', "half a surrogate pair at character 1"),
        ("[" * 98 + "]" * 98, "nests more than 100 deep"),
    ],
)
def test_what_is_wrong_is_found_behind_much_that_is_not(wrong: str, said: str) -> None:
    body = f'{{"rows": [{"[]," * 1000} {{"a": [1, "x", {wrong}]}}]}}'
    with pytest.raises(InvalidRequestError, match=said) as refusal:
        read_json(body.encode())
    assert refusal.value.param == ("rows.1000.a" if "deep" in said else "rows.1000.a.2")


def test_what_nests_as_deep_as_may_be_is_read() -> None:
    """The negative control; one more is refused."""
    body = b"[" * 100 + b"]" * 100
    assert read_json(body) == json.loads(body)
    with pytest.raises(InvalidRequestError, match="deep"):
        read_json(b"[" + body + b"]")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, {"prompt": [None] * WIDE, "kvblend": {}}),
        (CompletionRequest, {"prompt": [[None] * WIDE], "kvblend": {}}),
        (CompletionRequest, {"prompt": "?", "kvblend": dict.fromkeys(map(str, range(WIDE)))}),
        (CompletionRequest, {"prompt": "?", "kvblend": {"documents": [None] * WIDE}}),
        (CompletionRequest, {"prompt": "?", "kvblend": {}, "vllm_xargs": dict.fromkeys(map(str, range(WIDE)))}),
        (CompletionRequest, {"prompt": "?", "kvblend": {}, "vllm_xargs": {"a": [None] * WIDE}}),
        (ChatRequest, {"messages": [None] * WIDE, "kvblend": {}}),
        (ChatRequest, {"messages": [{}], "tools": [None] * WIDE, "kvblend": {}}),
        (DocumentCreate, {"text": "x", "metadata": dict.fromkeys(map(str, range(WIDE)))}),
        (SearchRequest, {"query": "?", "filter": {"or": [None] * WIDE}}),
        (SearchRequest, {"query": "?", "filter": {"year": {"in": [None] * WIDE}}}),
        (SearchRequest, {"query": "?", "filter": dict.fromkeys(map(str, range(WIDE)))}),
        (KVSelection, {"collection": "docs", "passage_ids": [None] * WIDE}),
    ],
)
def test_wide_nonsense_is_not_refused_item_by_item(kind: Any, body: dict[str, Any]) -> None:
    """Each error takes room and time of its own."""
    with pytest.raises(ValidationError) as refusal:
        TypeAdapter(kind).validate_python(body)
    assert refusal.value.error_count() < 1000
