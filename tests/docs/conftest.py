"""The service that the pages' examples ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvblend.sdk import Client
from tests.api.scripted_service import scripted_service
from tests.docs.page_blocks import PASSAGE


@pytest.fixture(scope="module")
def url(demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service without a model, with collections `default` and `handbook`, each of one document, `rules`."""
    folder = tmp_path_factory.mktemp("pages")
    with scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path) as service:
        with Client(service.url) as client:
            for name in ("default", "handbook"):
                client.create_collection(name)
                client.wait(client.add_document(name, f"Of {name}. {PASSAGE}", id="rules"))
        yield service.url
