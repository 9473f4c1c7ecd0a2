"""JSON bodies, strictly: text that UTF-8 can hold, numbers that JSON has, nested no deeper than anybody needs.

Python's own reader takes more: lone surrogates, NaN, floats beyond a double, integers of any length. Once such a value
is in the catalog, or on its way to vLLM, whoever writes it out again fails.
"""

import json
import math
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from kvblend.api.http.body_threads import read_beside
from kvblend.core.errors import InvalidRequestError

__all__ = ["StrictRoute", "read_json"]

MAX_DEPTH = 100
LEAST_INTEGER, GREATEST_INTEGER = -(1 << 63), (1 << 64) - 1
MOST_DIGITS = 20
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SURROGATE = re.compile("[\ud800-\udfff]")
CHECKED = (str, dict, list)


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
            return await read_beside(read_json, body)
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
        _check(value, [])
    return value


Path = list[str | int]
"""Keys and indexes that lead to a value; one list for a whole body, which may be wide."""


def _check(value: Any, path: Path) -> None:
    """Raise for the first thing in a value that is no text or no number, or that stands too deep."""
    if isinstance(value, _NoNumber):
        shown = value if len(value) <= 40 else f"{value[:20]}... of {len(value)} digits"
        bound = "a finite number; integers have 64 bits"
        raise InvalidRequestError(f"{_named(path)}: {shown} is not {bound}", param=_param(path))
    if isinstance(value, str):
        _check_text(value, path)
        return
    if len(path) >= MAX_DEPTH:
        raise _too_deep(_named(path[:3]))
    for key, item in _items(value):
        if isinstance(key, str):
            _check_text(key, path)
        if isinstance(item, CHECKED):
            path.append(key)
            _check(item, path)
            path.pop()


def _items(value: dict[str, Any] | list[Any]) -> Iterable[tuple[str | int, Any]]:
    return enumerate(value) if isinstance(value, list) else value.items()


def _check_text(text: str, path: Path) -> None:
    found = None if text.isascii() else SURROGATE.search(text)
    if found:
        raise InvalidRequestError(
            f"{_named(path)} holds half a surrogate pair at character {found.start()}, which is no text",
            param=_param(path),
        )


def _named(path: Path) -> str:
    return _param(path) or "the body"


def _param(path: Path) -> str | None:
    return ".".join(map(str, path))[:200] or None


def _too_deep(where: str) -> InvalidRequestError:
    return InvalidRequestError(f"{where or 'the body'}: JSON nests more than {MAX_DEPTH} deep", param=where or None)
