"""The small service, one for all tests of the SDK, empty at the start of each."""

from collections.abc import Iterator

import pytest

from tests.sdk import small_service


@pytest.fixture(scope="session")
def small_service_url() -> Iterator[str]:
    with small_service.running() as url:
        yield url


@pytest.fixture
def url(small_service_url: str) -> str:
    """The URL of the service, with nothing in it."""
    small_service.collections.clear()
    small_service.jobs.clear()
    return small_service_url
