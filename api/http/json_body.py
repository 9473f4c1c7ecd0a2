"""JSON bodies, strictly: text that UTF-8 can hold, numbers that JSON has, nested no deeper than anybody needs.

Python's own reader takes more: lone surrogates, NaN, floats beyond a double, integers of any length. Once such a value
is in the catalog, or on its way to vLLM, whoever writes it out again fails.
"""

import json
import math
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from kvblend.core.errors import InvalidRequestError

__all__ = ["StrictRoute", "read_json"]

MAX_DEPTH = 100
LEAST_INTEGER, GREATEST_INTEGER = -(1 << 63), (1 << 64) - 1
MOST_DIGITS = 20
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SURROGATE = re.compile("[\ud800-\udfff]")


class StrictRoute(APIRoute):
    """A route whose JSON bodies are read by `read_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return read_json(body)
        except InvalidRequestError as error:
            raise HTTPException(400, error.message) from error  # what FastAPI lets through where it reads a body


class _NoNumber(str):
    """A number as it was written, in place of one that no JSON number can be."""


def read_json(body: bytes) -> Any:
    """The value of a JSON body.

    Raises InvalidRequestError that names the field, and json.JSONDecodeError where it is no JSON at all.
    """
    try:
        text = body.decode(json.detect_encoding(body))
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the body is not UTF-8: byte {error.start} cannot be decoded") from error
    num_refused = 0

    def refused(written: str) -> _NoNumber:
        nonlocal num_refused
        num_refused += 1
        return _NoNumber(written)

    def read_integer(written: str) -> int | _NoNumber:
        value = int(written) if len(written) <= MOST_DIGITS else None
        return refused(written) if value is None or not LEAST_INTEGER <= value <= GREATEST_INTEGER else value

    def read_float(written: str) -> float | _NoNumber:
        value = float(written)
        return value if math.isfinite(value) else refused(written)

    try:
        value = json.loads(text, parse_constant=refused, parse_int=read_integer, parse_float=read_float)
    except RecursionError as error:
        raise _too_deep("") from error
    may_nest_deep = text.count("[") + text.count("{") > MAX_DEPTH
    if num_refused or may_nest_deep or ESCAPED_SURROGATE.search(text):
        _check(value)
    return value


def _check(body: Any) -> None:
    """Raise for the first thing in a body that is no text or no number, or that stands too deep."""
    waiting: list[tuple[Any, tuple[str, ...]]] = [(body, ())]
    while waiting:
        value, path = waiting.pop()
        if isinstance(value, _NoNumber):
            shown = value if len(value) <= 40 else f"{value[:20]}... of {len(value)} digits"
            bound = "a finite number; integers have 64 bits"
            raise InvalidRequestError(f"{_named(path)}: {shown} is not {bound}", param=_param(path))
        if isinstance(value, str):
            _check_text(value, path)
        elif isinstance(value, dict | list):
            if len(path) >= MAX_DEPTH:
                raise _too_deep(_named(path[:3]))
            waiting.extend(reversed(list(_items(value, path))))


def _items(value: dict[str, Any] | list[Any], path: tuple[str, ...]) -> Iterator[tuple[Any, tuple[str, ...]]]:
    if isinstance(value, list):
        yield from ((item, (*path, str(index))) for index, item in enumerate(value))
        return
    for key, item in value.items():
        _check_text(key, path)
        yield item, (*path, key)


def _check_text(text: str, path: tuple[str, ...]) -> None:
    found = SURROGATE.search(text)
    if found:
        raise InvalidRequestError(
            f"{_named(path)} holds half a surrogate pair at character {found.start()}, which is no text",
            param=_param(path),
        )


def _named(path: tuple[str, ...]) -> str:
    return _param(path) or "the body"


def _param(path: tuple[str, ...]) -> str | None:
    return ".".join(path)[:200] or None


def _too_deep(where: str) -> InvalidRequestError:
    return InvalidRequestError(f"{where or 'the body'}: JSON nests more than {MAX_DEPTH} deep", param=where or None)
