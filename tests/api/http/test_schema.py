"""What the OpenAPI schema allows, and what it does not, by schemathesis: nothing is answered by a 5xx.

TEST_SCHEMA_CASES=1000 asks for so many cases of each route instead of a thousand of all together.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.schemas import BaseSchema

from tests.api.scripted_service import ScriptedService, scripted_service

NUM_CASES = int(os.environ.get("TEST_SCHEMA_CASES", "0")) or 40
HEADERS = {"Authorization": "Bearer the only key"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("schema")


@pytest.fixture(scope="module")
def scripted(demo_model_path: Path, embedding_model_path: Path, folder: Path) -> Iterator[ScriptedService]:
    options: dict[str, Any] = {"api_key": "the only key"}
    with scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path, **options) as service:
        yield service


@pytest.fixture(scope="module")
def schema(scripted: ScriptedService) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{scripted.url}/openapi.json")


def test_no_case_of_the_schema_is_answered_by_a_5xx(
    schema: BaseSchema, scripted: ScriptedService, folder: Path
) -> None:
    """Nor is anything written outside of the service's own folder."""
    before, here = set(folder.iterdir()), _working_folder()
    num_cases, routes = 0, []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        routes.append(operation.label)
        httpx.post(f"{scripted.url}/v1/collections", json={"name": "docs"}, headers=HEADERS)  # where it was deleted
        valid = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        invalid = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

        @settings(
            max_examples=NUM_CASES,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        )
        @given(valid | invalid)
        def check(case: Any) -> None:
            nonlocal num_cases
            num_cases += 1
            in_path = case.path_parameters
            if in_path and "collection" in in_path and num_cases % 4:
                in_path["collection"] = "docs"  # or all cases end at a collection that is not there
            response = case.call(headers=HEADERS)
            is_down = case.path == "/readyz" and response.status_code == 503
            assert response.status_code < 500 or is_down, f"{case.as_curl_command()}\n{response.text[:500]}"

        check()
    assert num_cases >= 1000 and len(routes) > 25, (num_cases, routes)
    assert set(folder.iterdir()) == before and _working_folder() == here
    assert httpx.get(f"{scripted.url}/v1/collections", headers=HEADERS).status_code == 200


def _working_folder() -> set[Path]:
    """What lies in it, but for what hypothesis itself writes there."""
    return set(Path.cwd().iterdir()) - {Path.cwd() / ".hypothesis"}


def test_the_upload_body_is_in_the_schema(scripted: ScriptedService) -> None:
    operation = httpx.get(f"{scripted.url}/openapi.json").json()["paths"]["/v1/collections/{collection}/documents"]
    content = operation["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    assert "text" in content["application/json"]["schema"]["properties"]
