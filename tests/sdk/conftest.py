"""The small service that answers as the real one cannot be made to."""

from collections.abc import Iterator

import pytest

from tests.sdk import odd_service


@pytest.fixture(scope="session")
def odd_url() -> Iterator[str]:
    with odd_service.running() as url:
        yield url
