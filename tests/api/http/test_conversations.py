"""Where documents go in a conversation: before the last user message, which they were retrieved for."""

from typing import Any

import pytest

from kvblend.api.http.openai_body import split_conversation
from kvblend.core.errors import InvalidRequestError


def turns(*roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": f"{index}"} for index, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("roles", "preamble", "earlier", "question", "later"),
    [
        ("u", None, "", "0", ""),
        ("su", "0", "", "1", ""),
        ("dsu", "0\n\n1", "", "2", ""),
        ("suau", "0", "12", "3", ""),
        ("suaua", "0", "12", "3", "4"),
        ("auaut", None, "012", "3", "4"),
        ("uu", None, "0", "1", ""),
    ],
)
def test_a_conversation_is_taken_apart_at_the_last_user_message(
    roles: str, preamble: str | None, earlier: str, question: str, later: str
) -> None:
    names = {"u": "user", "s": "system", "d": "developer", "a": "assistant", "t": "tool"}
    found = split_conversation(turns(*(names[role] for role in roles)))
    assert (found.preamble, found.question) == (preamble, question)
    assert "".join(turn["content"] for turn in found.earlier) == earlier
    assert "".join(turn["content"] for turn in found.later) == later


@pytest.mark.parametrize("roles", [["system"], ["assistant"], ["system", "assistant", "tool"]])
def test_without_a_user_message_there_is_no_place(roles: list[str]) -> None:
    with pytest.raises(InvalidRequestError, match="must be the user's"):
        split_conversation(turns(*roles))


def test_a_content_of_parts_is_its_text_and_says_what_else_it_holds() -> None:
    text = {"type": "text", "text": "a"}
    said = split_conversation([{"role": "user", "content": [text, {"type": "text", "text": "b"}]}])
    assert (said.question, said.has_media) == ("a\nb", False)
    shown = split_conversation([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, text]}])
    assert (shown.question, shown.has_media) == ("a", True)
