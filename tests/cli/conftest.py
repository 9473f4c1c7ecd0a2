"""A service whose engine is scripted, for the commands of a client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.scripted_service import ScriptedService, scripted_service


@pytest.fixture(scope="session")
def scripted(
    tmp_path_factory: pytest.TempPathFactory, demo_model_path: Path, embedding_model_path: Path
) -> Iterator[ScriptedService]:
    """Its API key is `secret`."""
    folder = tmp_path_factory.mktemp("scripted")
    with scripted_service(
        folder, model=demo_model_path, embedding_model=embedding_model_path, api_key="secret"
    ) as service:
        yield service


@pytest.fixture
def asked(scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> ScriptedService:
    """The same service, named to the commands by the environment."""
    monkeypatch.setenv("KVBLEND_URL", scripted.url)
    monkeypatch.setenv("KVBLEND_API_KEY", "secret")
    monkeypatch.setenv("COLUMNS", "120")
    return scripted
