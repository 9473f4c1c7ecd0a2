"""Pages of other origins: none may call the service unless it is told so, nor by way of vLLM, which lets anybody's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from kvblend.core.settings import Settings
from tests.api.scripted_service import scripted_service

APP, OTHER = "https://app.example.com", "https://other.example.com"
ALLOWS = "access-control-allow-origin"


@pytest.fixture(scope="module", params=[None, f"{APP} http://localhost:3000", "*"])
def served(
    request: pytest.FixtureRequest,
    demo_model_path: Path,
    embedding_model_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[httpx.Client, str | None]]:
    folder = tmp_path_factory.mktemp("cors")
    options: dict[str, Any] = {"cors_origins": request.param, "api_key": "the key that there is"}
    with (
        scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path, **options) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        yield client, request.param


def allowed(client: httpx.Client, origin: str, path: str, *, key: bool = True) -> str | None:
    """Whom the answer to a page's request lets read it."""
    headers = {"Origin": origin, **({"Authorization": "Bearer the key that there is"} if key else {})}
    response = client.request("GET" if "collections" in path else "POST", path, headers=headers, json={})
    assert (response.status_code == 401) == (not key)
    assert "access-control-allow-credentials" not in response.headers
    found: str | None = response.headers.get(ALLOWS)
    return found


@pytest.mark.parametrize("path", ["/v1/collections", "/v1/embeddings", "/v1/chat/completions"])
def test_answers_are_for_the_pages_that_the_setting_names(served: tuple[httpx.Client, str | None], path: str) -> None:
    client, origins = served
    expected = {None: (None, None), "*": ("*", "*")}.get(origins, (APP, None))
    for key in (True, False):  # a refusal, too: else a page cannot read why
        assert (allowed(client, APP, path, key=key), allowed(client, OTHER, path, key=key)) == expected


def test_a_browser_may_ask_before_it_sends_a_key(served: tuple[httpx.Client, str | None]) -> None:
    client, origins = served
    for origin in (APP, OTHER):
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        response = client.options("/v1/chat/completions", headers=asked)
        if origins == "*" or (origins and origin in origins):
            assert response.status_code == 200 and response.headers[ALLOWS] in ("*", origin)
            assert "authorization" in response.headers["access-control-allow-headers"]
            assert "POST" in response.headers["access-control-allow-methods"]
        else:
            assert response.status_code >= 400 and ALLOWS not in response.headers


def test_vllm_is_not_told_whose_page_asks(served: tuple[httpx.Client, str | None]) -> None:
    """It would name that page, or anybody's, as one that may read the answer; what it says of it is not passed on."""
    client, _ = served
    headers = {
        "Origin": APP,
        "Authorization": "Bearer the key that there is",
        "X-Answer-Header": "Access-Control-Allow-Origin: https://named.by.vllm",
    }
    answer = client.post("/v1/embeddings", json={"input": "?"}, headers=headers)
    assert answer.status_code == 200 and "origin" not in dict(answer.json()["headers"])
    assert answer.headers["x-scripted"] == "yes" and answer.headers.get(ALLOWS) != "https://named.by.vllm"


@pytest.mark.parametrize("origins", ["app.example.com", f"{APP}/", f"* {APP}", "https://*", "", "null"])
def test_what_is_no_origin_is_refused(origins: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        Settings(cors_origins=origins)
