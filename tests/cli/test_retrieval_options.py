"""The option --filter of `kvblend query`."""

import pytest

from kvblend.cli.retrieval_options import parse_filter
from kvblend.core.errors import InvalidRequestError


def test_a_filter_is_a_json_object() -> None:
    assert parse_filter('{"year": {"gte": 2020}}') == {"year": {"gte": 2020}}
    assert parse_filter(None) is None
    for text in ("year > 2020", "[1]", '"year"'):
        with pytest.raises(InvalidRequestError, match="--filter"):
            parse_filter(text)
