"""OpenAI's answer shapes, made of vLLM's completion chunks."""

from collections.abc import Mapping, Sequence
from typing import Any

from kvblend.core.report import BlendReport
from kvblend.core.rest import Source

__all__ = ["ChatShape", "CompletionShape", "kvblend_field"]

Json = dict[str, Any]
LOGPROB_LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def kvblend_field(report: BlendReport, sources: Sequence[Source]) -> Json:
    """What an answer of ours holds beside OpenAI's fields."""
    return {
        "kvblend": {
            "report": report.model_dump(mode="json"),
            "sources": [source.model_dump(mode="json") for source in sources],
        }
    }


class CompletionShape:
    """Text completions: chunks as vLLM gives them, and the whole that they add up to."""

    def chunk(self, chunk: Json) -> Json:
        """One streamed chunk."""
        return chunk

    def whole(self, chunks: list[Json]) -> Json:
        """The answer that is not streamed."""
        choices: dict[int, Json] = {}
        usage: Json = {}
        for chunk in chunks:
            usage = chunk.get("usage") or usage
            for piece in chunk["choices"]:
                choice = choices.setdefault(piece["index"], {"index": piece["index"], "text": "", "logprobs": None})
                _append(choice, piece)
        first = chunks[0]
        return {
            "id": first["id"],
            "object": "text_completion",
            "created": first["created"],
            "model": first["model"],
            "choices": [choices[index] for index in sorted(choices)],
            "usage": usage,
        }


class ChatShape:
    """Chat completions, made of text completions."""

    def __init__(self) -> None:
        self._begun: set[int] = set()
        self._text = CompletionShape()

    def chunk(self, chunk: Json) -> Json:
        """One streamed chunk: the first of each choice names the role."""
        choices = []
        for piece in chunk["choices"]:
            delta = {"content": piece["text"]}
            if piece["index"] not in self._begun:
                self._begun.add(piece["index"])
                delta = {"role": "assistant", **delta}
            choices.append(
                {
                    "index": piece["index"],
                    "delta": delta,
                    "logprobs": _chat_logprobs(piece.get("logprobs")),
                    "finish_reason": piece.get("finish_reason"),
                }
            )
        usage = {"usage": chunk["usage"]} if chunk.get("usage") else {}
        return {**self._envelope(chunk, "chat.completion.chunk"), "choices": choices, **usage}

    def whole(self, chunks: list[Json]) -> Json:
        """The answer that is not streamed."""
        text = self._text.whole(chunks)
        choices = [
            {
                "index": choice["index"],
                "message": {"role": "assistant", "content": choice["text"]},
                "logprobs": _chat_logprobs(choice["logprobs"]),
                "finish_reason": choice.get("finish_reason"),
            }
            for choice in text["choices"]
        ]
        return {**self._envelope(text, "chat.completion"), "choices": choices, "usage": text["usage"]}

    def _envelope(self, completion: Json, kind: str) -> Json:
        return {
            "id": completion["id"].replace("cmpl-", "chatcmpl-", 1),
            "object": kind,
            "created": completion["created"],
            "model": completion["model"],
        }


def _append(choice: Json, piece: Json) -> None:
    """Add a chunk's piece of a choice to what came before it."""
    choice["text"] += piece["text"]
    logprobs = piece.get("logprobs")
    if logprobs:
        sums = choice["logprobs"] or {name: [] for name in LOGPROB_LISTS}
        choice["logprobs"] = {name: sums[name] + (logprobs.get(name) or []) for name in LOGPROB_LISTS}
    for name, value in piece.items():
        if name == "token_ids" and value is not None:
            choice[name] = [*choice.get(name, []), *value]
        elif name not in ("index", "text", "logprobs", "token_ids") and (value is not None or name not in choice):
            choice[name] = value


def _chat_logprobs(logprobs: Mapping[str, Any] | None) -> Json | None:
    """The chat API's log probabilities, from the completions API's."""
    if not logprobs:
        return None
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    content = [
        {
            **_token(token, logprob),
            "top_logprobs": [_token(*pair) for pair in (top or {}).items()],
        }
        for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    ]
    return {"content": content}


def _token(token: str, logprob: float) -> Json:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
