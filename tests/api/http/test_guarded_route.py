"""Every route says who may call it; what a key may not do is refused before anything is read."""

import contextlib
import re
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from kvblend.api import ServiceConfig, create_app
from kvblend.api.http.guarded_route import GuardedRoute, needs
from kvblend.core.settings import Settings
from tests.api.access.served_keys import client_of, key_of, write_keys
from tests.api.scripted_service import ScriptedService, scripted_service


@pytest.fixture(scope="module")
def scripted(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    folder = tmp_path_factory.mktemp("guarded")
    keys = write_keys(folder / "keys.yaml")
    with scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path, keys=keys) as service:
        yield service


def routes() -> list[GuardedRoute]:
    """All routes of the service, which need not run for this."""
    app = create_app(ServiceConfig("none", "none", [("http://127.0.0.1:1", "ipc:///none")], Settings()))
    others = [route for route in app.routes if not isinstance(route, GuardedRoute)]
    assert [getattr(route, "path", None) for route in others] == ["/console"], "files alone, which hold no data"
    return [route for route in app.routes if isinstance(route, GuardedRoute)]


ROUTES = [(method, route.path, route.need) for route in routes() for method in sorted(route.methods)]


def test_every_route_says_who_may_call_it() -> None:
    assert {path for _, path, need in ROUTES if need.rank is None} == {"/healthz", "/"}
    assert {path for _, path, need in ROUTES if need.open_as} == {
        "/readyz", "/metrics", "/docs", "/redoc", "/openapi.json",
    }  # fmt: skip
    assert all(need.rank != "query" for method, path, need in ROUTES if method in ("PATCH", "DELETE", "PUT"))


def test_a_route_that_does_not_say_it_cannot_be_made() -> None:
    router = APIRouter(route_class=GuardedRoute)
    with pytest.raises(TypeError, match="/odd does not say who may call it"):

        @router.get("/odd")
        async def odd() -> None: ...

    @router.get("/even")
    @needs("query")
    async def even() -> None: ...

    assert isinstance(router.routes[0], APIRoute)


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic b3BzOg=="}, {"x-api-key": "wrong"}],
    ids=["none", "wrong", "basic", "x-api-key"],
)
def test_without_a_valid_key_nothing_is_answered(scripted: ScriptedService, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=scripted.url, headers=headers, timeout=60) as client:
        for method, path, need in ROUTES:
            response = client.request(method, path.replace("{", "").replace("}", ""))
            if need.rank is None or need.open_as in ("readyz", "docs"):
                assert response.status_code < 300, path
                continue
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert method == "HEAD" or response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("send", [{"Authorization": "Bearer {}"}, {"authorization": "bearer  {}"}, {"x-api-key": "{}"}])
def test_a_key_may_be_sent_either_way(scripted: ScriptedService, send: dict[str, str]) -> None:
    headers = {name: value.format(key_of("acme-query")) for name, value in send.items()}
    assert httpx.get(f"{scripted.url}/v1/collections", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("key", "method", "path", "reason"),
    [
        (
            "acme-query",
            "POST",
            "/v1/collections",
            "the key 'acme-query' has the role query; POST .* needs the role ing",
        ),
        ("acme-query", "DELETE", "/v1/collections/docs", "needs the role ingest"),
        ("acme-query", "POST", "/v1/collections/docs/documents", "needs the role ingest"),
        ("acme-ingest", "GET", "/v1/kv/stats", "needs the role admin"),
        ("acme-ingest", "POST", "/v1/kv/clear", "needs the role admin"),
        ("acme-admin", "POST", "/v1/kv/verify", "tenant acme; POST /v1/kv/verify needs the role admin and the default"),
        ("acme-admin", "POST", "/v1/kv/sweep", "needs the role admin and the default tenant"),
        ("acme-admin", "GET", "/metrics", "needs the role admin and the default tenant"),
    ],
)
def test_a_role_that_is_too_small_is_refused(
    scripted: ScriptedService, key: str, method: str, path: str, reason: str
) -> None:
    with client_of(scripted.url, key) as client:
        response = client.request(method, path, content=b"{")
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "forbidden"
        assert re.search(reason, response.json()["error"]["message"]), response.text


def test_the_key_is_asked_for_before_the_body(scripted: ScriptedService) -> None:
    """Of a body that is announced and does not come, and so that the next request on a connection is answered."""
    url = httpx.URL(scripted.url)
    connection = HTTPConnection(url.host, url.port or 80, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/v1/collections")
        connection.putheader("Content-Length", "1000")
        connection.endheaders()
        assert connection.getresponse().status == 401
    with httpx.Client(base_url=scripted.url, timeout=60) as client:
        for _ in range(3):
            assert client.post("/v1/collections", content=b"{" * 1000).status_code == 401
        assert client.get("/healthz").status_code == 200


def test_the_operator_reads_metrics_and_others_do_not(scripted: ScriptedService) -> None:
    assert httpx.get(f"{scripted.url}/metrics").status_code == 401
    with client_of(scripted.url, "ops") as client:
        assert client.get("/metrics").status_code == 200
        assert client.post("/v1/kv/verify").status_code == 200


def test_the_schema_says_how_a_key_is_sent(scripted: ScriptedService) -> None:
    schema = httpx.get(f"{scripted.url}/openapi.json").json()
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
    assert schema["paths"]["/v1/collections"]["get"]["security"] == [{"bearer": []}, {"x-api-key": []}]
    assert "security" not in schema["paths"]["/healthz"]["get"]
    assert "4XX" in schema["paths"]["/v1/collections"]["post"]["responses"]


def test_the_settings_close_what_is_open(demo_model_path: Path, embedding_model_path: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"api_key": "single", "open_routes": "metrics"}
    with scripted_service(tmp_path, model=demo_model_path, embedding_model=embedding_model_path, **options) as service:
        assert httpx.get(f"{service.url}/metrics").status_code == 200
        for path in ("/readyz", "/docs", "/openapi.json"):
            assert httpx.get(service.url + path).status_code == 401
            assert httpx.get(service.url + path, headers={"x-api-key": "single"}).status_code == 200
