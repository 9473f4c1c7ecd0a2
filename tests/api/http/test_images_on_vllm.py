"""A chat with documents and an image is laid out and prefilled by vLLM, which serves a model that sees images."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from transformers import AutoTokenizer

from tests.service import RunningService, running_service
from tests.tiny_models import IMAGE_TOKEN, NUM_IMAGE_TOKENS, make_tiny_vision_model
from tests.tolerances import Tolerances

pytestmark = pytest.mark.extended

DOCUMENTS = ["The old bridge of Vik is closed in winter.", "The ferry of Vik runs all year, from the north pier."]
SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = "Is this the ferry?"
ASKED = "Passages:\n\n" + "".join(f"{text}\n\n" for text in DOCUMENTS) + f"Question: {QUESTION}"
BLEND: dict[str, Any] = {"kvblend": {"documents": DOCUMENTS}}
TOKEN_ID = 1000
"""Of a word: what the model is let say, so that two answers are of the same tokens."""


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Path:
    return make_tiny_vision_model(demo_model_path.parent, tokenizer_path=demo_model_path)


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return AutoTokenizer.from_pretrained(model)


@pytest.fixture(scope="module")
def seeing(
    model: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory, dtype: str
) -> Iterator[RunningService]:
    home = tmp_path_factory.mktemp("home")
    with running_service(model, embedding_model_path, home=home, dtype=dtype) as service:
        yield service


def image(colour: str) -> dict[str, Any]:
    """A part of a message: a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def chat(*images: dict[str, Any], text: str = QUESTION, **fields: Any) -> dict[str, Any]:
    """A request whose answer is of one token, as often as it may be, and tells those of its prompt."""
    messages = [SYSTEM, {"role": "user", "content": [{"type": "text", "text": text}, *images]}]
    sampling = {"max_tokens": 6, "allowed_token_ids": [TOKEN_ID], "logprobs": True, "return_token_ids": True}
    return {"messages": messages, **sampling, **fields}


def ask(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole answer, or a stream's chunks."""
    answer = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        return [answer.json()]
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def logprobs(answer: list[dict[str, Any]]) -> list[float]:
    """Of an answer's tokens."""
    said = [choice["logprobs"]["content"] for chunk in answer for choice in chunk["choices"] if choice["logprobs"]]
    return [token["logprob"] for tokens in said for token in tokens]


def deviation(answer: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """The largest difference of a token's log-probability."""
    return max(abs(one - another) for one, another in zip(logprobs(answer), logprobs(other), strict=True))


@pytest.mark.parametrize("stream", [False, True])
def test_an_image_beside_passages(seeing: RunningService, tokenizer: Any, tolerances: Tolerances, stream: bool) -> None:
    """Reference: vLLM alone, told the passages by its client. Negative control: an image of another colour."""
    ours = ask(seeing.url, chat(image("red"), stream=stream, **BLEND))
    field = ours[-1]["kvblend"]
    assert (field["report"]["outcome"], field["report"]["reason"]) == ("prefilled", "the messages hold more than text")
    assert field["report"]["context_tokens"] > 0
    assert [source["text"] for source in field["sources"]] == DOCUMENTS
    prompt = tokenizer.decode(ours[0]["prompt_token_ids"])
    assert prompt.count(IMAGE_TOKEN) == NUM_IMAGE_TOKENS and ASKED in prompt

    theirs, other = (ask(seeing.engine_url, chat(image(colour), text=ASKED)) for colour in ("red", "blue"))
    assert ours[0]["prompt_token_ids"] == theirs[0]["prompt_token_ids"] == other[0]["prompt_token_ids"]
    assert deviation(ours, theirs) < tolerances.logprob
    assert deviation(other, theirs) > tolerances.control * tolerances.logprob


def test_an_image_before_the_question(seeing: RunningService, tokenizer: Any) -> None:
    """Such a message begins with the passages, and ends with the question."""
    content = [image("red"), {"type": "text", "text": QUESTION}]
    (answer,) = ask(seeing.url, {**chat(**BLEND), "messages": [{"role": "user", "content": content}]})
    assert answer["kvblend"]["report"]["outcome"] == "prefilled"
    prompt = tokenizer.decode(answer["prompt_token_ids"])
    assert prompt.count(IMAGE_TOKEN) == NUM_IMAGE_TOKENS
    assert all(prompt.index(text) < prompt.index(QUESTION) for text in DOCUMENTS)


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_question_without_an_image_is_blended(seeing: RunningService, tokenizer: Any, stream: bool) -> None:
    """The first use of a document is a miss; its KV is made in the background, and the next use reuses it."""
    for _ in range(20):
        answer = ask(seeing.url, chat(stream=stream, **BLEND))
        report = answer[-1]["kvblend"]["report"]
        if not report["missed_passages"]:
            break
    assert report["outcome"] == "blended" and report["reused_tokens"] > 0
    assert [source["text"] for source in answer[-1]["kvblend"]["sources"]] == DOCUMENTS
    prompt = tokenizer.decode(answer[0]["prompt_token_ids"])
    assert ASKED in prompt and IMAGE_TOKEN not in prompt
