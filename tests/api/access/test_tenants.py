"""Tenants: each has collections of its own under names of its own, and nothing tells it of another's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvblend.api.http.routes import engine
from kvblend.sdk import Client
from tests.api.access.served_keys import client_of, key_of, write_keys
from tests.api.scripted_service import ScriptedService, scripted_service

TEXT = "The report is signed by the head of the department, who may pass it on to her deputy in her absence."


@pytest.fixture(scope="module")
def scripted(
    demo_model_path: Path, embedding_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedService]:
    folder = tmp_path_factory.mktemp("tenants")
    keys = write_keys(folder / "keys.yaml")
    with scripted_service(folder, model=demo_model_path, embedding_model=embedding_model_path, keys=keys) as service:
        for name in ("ops", "acme-admin", "beta-admin"):
            with Client(service.url, api_key=key_of(name)) as client:
                client.create_collection("docs", passage_tokens=32)
                client.wait(client.add_document("docs", f"{TEXT} Of {name}.", id=f"of {name}"))
        yield service


@pytest.mark.parametrize("name", ["ops", "acme-admin", "beta-admin"])
def test_three_tenants_have_docs_and_each_sees_its_own(scripted: ScriptedService, name: str) -> None:
    with client_of(scripted.url, name) as client:
        assert [each["name"] for each in client.get("/v1/collections").json()["collections"]] == ["docs"]
        documents = client.get("/v1/collections/docs/documents").json()["documents"]
        assert [document["id"] for document in documents] == [f"of {name}"]
        found = client.post("/v1/collections/docs/search", json={"query": "Who signs?"}).json()["sources"]
        assert {source["document_id"] for source in found} == {f"of {name}"}
        answer = client.post("/v1/collections/docs/query", json={"question": "Who signs?"})
        assert {source["document_id"] for source in answer.json()["sources"]} == {f"of {name}"}


def test_anothers_collection_is_one_that_does_not_exist(scripted: ScriptedService) -> None:
    with client_of(scripted.url, "acme-admin") as acme, client_of(scripted.url, "beta-admin") as beta:
        acme.post("/v1/collections", json={"name": "secret"}).raise_for_status()
        job = acme.post("/v1/collections/secret/documents", json={"text": TEXT}).json()
        assert job["collection"] == "secret"
        chat = {"messages": [{"role": "user", "content": "?"}], "kvblend": {"collection": "secret"}}
        for method, path, body in (
            ("GET", "/v1/collections/secret", None),
            ("DELETE", "/v1/collections/secret", None),
            ("PATCH", "/v1/collections/secret", {}),
            ("GET", "/v1/collections/secret/documents", None),
            ("POST", "/v1/collections/secret/documents", {"text": TEXT}),
            ("GET", f"/v1/collections/secret/jobs/{job['id']}", None),
            ("POST", "/v1/collections/secret/search", {"query": "?"}),
            ("POST", "/v1/collections/secret/query", {"question": "?"}),
            ("POST", "/v1/chat/completions", chat),
            ("POST", "/v1/kv/lookup", {"collection": "secret"}),
            ("POST", "/v1/kv/pairs", {"collection": "secret"}),
            ("POST", "/v1/kv/clear", {"collection": "acme/secret"}),
            ("GET", "/v1/collections/acme%2Fsecret", None),
        ):
            response = beta.request(method, path, json=body)
            assert response.status_code == 404, (path, response.text)
            nowhere = beta.request(method, path.replace("secret", "nothing"), json=_renamed(body))
            assert response.text.replace("secret", "nothing") == nowhere.text, path
        assert acme.delete("/v1/collections/secret").status_code == 204
        assert "acme" not in acme.get("/v1/collections/secret").text  # a tenant's names are its own words


def test_text_in_a_plain_request_is_found_by_the_tenant_that_ingested_it_alone(scripted: ScriptedService) -> None:
    text = " ".join(f"Room {number} of the tower has {number * 7} stairs." for number in range(20))
    with Client(scripted.url, api_key=key_of("beta-admin")) as client:
        client.create_collection("towers", passage_tokens=128)
        client.wait(client.add_document("towers", text, id="tower"))
    found = {}
    for name in ("ops", "acme-admin", "beta-admin"):
        with client_of(scripted.url, name) as client:
            body = {"messages": [{"role": "user", "content": f"Read.\n\n{text}\n\nHow many stairs?"}]}
            added = client.post("/v1/chat/completions", json=body).json().get("kvblend")
        found[name] = {source["document_id"] for source in added["sources"]} if added else set()
        assert added is None or added["report"]["outcome"] == "blended"
    assert found == {"ops": set(), "acme-admin": set(), "beta-admin": {"tower"}}
    orders = [
        body for body in scripted.engine.bodies if "blend" in body.get("kv_transfer_params", {}).get("kvblend", {})
    ]
    assert orders[-1]["cache_salt"] == orders[-1]["kv_transfer_params"]["kvblend"]["blend"]["salt"]


def _renamed(body: Any) -> Any:
    if not isinstance(body, dict):
        return body.replace("secret", "nothing") if isinstance(body, str) else body
    return {name: _renamed(value) for name, value in body.items()}


def test_the_operator_sees_what_is_a_tenants_where_it_asks(scripted: ScriptedService) -> None:
    with client_of(scripted.url, "ops") as client:
        theirs = client.post("/v1/kv/lookup", json={"collection": "acme/docs"}).json()["missing"]
        own = client.post("/v1/kv/lookup", json={"collection": "docs"}).json()["missing"]
        assert theirs and own and set(theirs) != set(own)


def test_a_supplied_document_is_never_anothers_passage(scripted: ScriptedService) -> None:
    """It is looked for among passages that are ingested: of this tenant's alone."""
    with client_of(scripted.url, "acme-admin") as client:
        sources = client.post("/v1/collections/docs/search", json={"query": "?"}).json()["sources"]
        text = sources[0]["text"]
    body = {"messages": [{"role": "user", "content": "?"}], "kvblend": {"documents": [text]}}
    with client_of(scripted.url, "acme-query") as client:
        known = client.post("/v1/chat/completions", json=body).json()["kvblend"]["sources"]
        assert known[0]["document_id"] == "of acme-admin"
    with client_of(scripted.url, "beta-admin") as client:
        unknown = client.post("/v1/chat/completions", json=body).json()["kvblend"]["sources"]
        assert unknown[0]["document_id"] is None


def salts(scripted: ScriptedService, name: str, *, own: str | None = None) -> set[str | None]:
    """Every `cache_salt` that vLLM gets for a tenant's answers, with passages and without, and for a rewriting."""
    begin = len(scripted.engine.bodies)
    extra = {} if own is None else {"cache_salt": own}
    with client_of(scripted.url, name) as client:
        query = {"question": "Who signs?", "history": [{"role": "user", "content": "?"}], "rewrite": True}
        client.post("/v1/collections/docs/query", json=query).raise_for_status()
        for kvblend in ({}, {"kvblend": {"documents": [f"A passage of {name}'s."]}}):
            chat = {"messages": [{"role": "user", "content": "?"}], **extra, **kvblend}
            client.post("/v1/chat/completions", json=chat).raise_for_status()
            client.post("/v1/completions", json={"prompt": "?", **extra, **kvblend}).raise_for_status()
    answers = [body for body in scripted.engine.bodies[begin:] if "encode" not in order_of(body)]
    assert len(answers) == 6
    return {body.get("cache_salt") for body in answers}


def order_of(body: dict[str, Any]) -> dict[str, Any]:
    """What a request to vLLM tells the connector."""
    order: dict[str, Any] = (body.get("kv_transfer_params") or {}).get("kvblend") or {}
    return order


def test_vllms_prefix_cache_is_a_tenants_own(scripted: ScriptedService) -> None:
    default, (acme,), (beta,) = salts(scripted, "ops"), salts(scripted, "acme-admin"), salts(scripted, "beta-admin")
    assert default == {None}
    assert acme and beta and acme != beta
    assert salts(scripted, "ops", own=acme) == {None, acme}  # whoever knew it; nobody is told
    assert acme not in salts(scripted, "beta-admin", own=acme) and len(salts(scripted, "acme-admin", own="x")) == 2


def test_orders_name_the_tenants_own_kv(scripted: ScriptedService) -> None:
    """What the connector encodes and looks up is named by the salt that vLLM's cache has."""
    orders = [(order_of(body), body.get("cache_salt")) for body in scripted.engine.bodies]
    encodes = {(order["encode"].get("salt"), salt) for order, salt in orders if "encode" in order}
    assert len(encodes) == 3 and all(named == salt for named, salt in encodes)
    assert {order["blend"].get("salt") for order, _ in orders if "blend" in order} == {salt for salt, _ in encodes}


def test_a_clients_priority_puts_nobody_behind_it(scripted: ScriptedService) -> None:
    with client_of(scripted.url, "acme-query") as client:
        for given, sent in ((-5, 0), (3, 3)):
            client.post("/v1/completions", json={"prompt": "?", "priority": given}).raise_for_status()
            assert scripted.engine.bodies[-1]["priority"] == sent
        assert client.post("/v1/completions", json={"prompt": "?", "priority": "high"}).status_code == 400
        assert client.post("/v1/completions", json={"prompt": "?", "cache_salt": 1}).status_code == 400


def told(client: httpx.Client, path: str, **request: Any) -> dict[str, Any]:
    """What vLLM hears of a request that passes through."""
    found: dict[str, Any] = client.post(path, **request).raise_for_status().json()
    return found


@pytest.mark.parametrize("path", sorted(engine.ASKED))
def test_what_passes_through_is_salted_too(scripted: ScriptedService, path: str) -> None:
    body = b'{ "input": "?", "priority": 3 }'
    found = []
    for name in ("acme-query", "beta-admin"):
        with client_of(scripted.url, name) as client:
            sent = json.loads(told(client, path, content=body)["body"])
            assert sent == {"input": "?", "priority": 3, "cache_salt": sent["cache_salt"]}
            found.append(sent["cache_salt"])
            assert client.post(path, json=[]).status_code == 400, "nothing goes without a salt"
            assert client.post(path, content=body, headers={"Content-Type": "text/plain"}).status_code == 400
            assert client.post(path, content=b"").status_code == 400
            assert client.post(path, files={"input": b"?"}).status_code == 400
    assert found[0] != found[1]
    with client_of(scripted.url, "ops") as client:
        assert told(client, path, content=body)["body"] == body.decode(), "the default tenant has no salt"


@pytest.mark.parametrize("path", sorted(engine.UNSALTED))
def test_what_cannot_be_salted_is_the_default_tenants(scripted: ScriptedService, path: str) -> None:
    with client_of(scripted.url, "acme-admin") as client:
        refused = client.post(path, json={}, headers={"X-Refused": "yes"})
    assert refused.status_code == 403 and "acme" in refused.json()["error"]["message"]
    assert not any("x-refused" in headers for headers in scripted.engine.headers), "vLLM hears nothing of it"
    with client_of(scripted.url, "ops") as client:
        assert told(client, path, json={})["body"] == "{}"


def test_what_runs_no_model_passes_as_it_is(scripted: ScriptedService) -> None:
    with client_of(scripted.url, "acme-query") as client:
        assert told(client, "/detokenize", content=b'{"tokens" : [1]}')["body"] == '{"tokens" : [1]}'


def test_a_priority_by_header_puts_nobody_behind_it(scripted: ScriptedService) -> None:
    """vLLM takes it rather than the body's."""
    with client_of(scripted.url, "ops") as client:
        for given, sent in (("-5", []), ("5", ["5"])):
            headers = told(client, "/v1/responses", json={}, headers={"X-Vllm-Priority": given})["headers"]
            assert [value for name, value in headers if name == "x-vllm-priority"] == sent


def test_stats_are_a_tenants_own(scripted: ScriptedService) -> None:
    with client_of(scripted.url, "beta-admin") as client:
        (tier,) = client.get("/v1/kv/stats").json()["tiers"]
        assert tier["used_bytes"] == tier["num_files"] == 0


def test_requests_are_counted_by_tenant(scripted: ScriptedService) -> None:
    assert httpx.get(f"{scripted.url}/v1/collections").status_code == 401
    with client_of(scripted.url, "ops") as client:
        text = client.get("/metrics").text
    for labels in ('status="200",tenant="acme"', 'status="200",tenant="beta"', 'status="401",tenant=""'):
        assert f"kvblend_tenant_requests_total{{{labels}}}" in text, labels


def test_tenants_share_where_the_operator_says_so(
    demo_model_path: Path, embedding_model_path: Path, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys.yaml")
    options: dict[str, Any] = {"keys": keys, "share_tenants": True}
    with scripted_service(tmp_path, model=demo_model_path, embedding_model=embedding_model_path, **options) as service:
        body = {"messages": [{"role": "user", "content": "?"}], "kvblend": {"documents": [TEXT]}}
        for name in ("acme-admin", "beta-admin"):
            headers = {"x-api-key": key_of(name)}
            httpx.post(f"{service.url}/v1/chat/completions", json=body, headers=headers, timeout=60).raise_for_status()
        assert all("cache_salt" not in each for each in service.engine.bodies)
