"""A client's request carries no orders of its own to the connector: the gate and the service's reports hold."""

from typing import Any

import httpx
import pytest

from tests.api.scripted_service import ScriptedService

ORDER = {"kvblend": {"version": 2, "report_id": "mine", "encode": {"spans": [[0, 1]], "owners": ["someone"]}}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "?"}]}


@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [("/v1/completions", {"prompt": "?"}), ("/v1/chat/completions", CHAT)])
def test_no_order_of_a_client_reaches_vllm(
    scripted: ScriptedService, path: str, body: dict[str, Any], stream: bool, blended: bool
) -> None:
    """Negative control: what else is in `vllm_xargs` does."""
    documents = {"kvblend": {"documents": ["A passage."], "reuse": "prefix_cache"}} if blended else {}
    smuggled = {
        "kv_transfer_params": ORDER,
        "vllm_xargs": {"kv_transfer_params": "x", "kvblend": "y", "session": "z", "weights": [1, 0.5, "a"]},
    }
    answer = httpx.post(f"{scripted.url}{path}", json={**body, **documents, **smuggled, "stream": stream}, timeout=60)
    assert answer.status_code == 200, answer.text
    sent = scripted.engine.bodies[-1]
    assert set(sent.get("kv_transfer_params", ())) <= {"prompt_token_ids"}, "a chat's prompt, which is the service's"
    assert "kvblend" not in sent
    assert sent["vllm_xargs"] == {"session": "z", "weights": [1, 0.5, "a"]}


@pytest.mark.parametrize("xargs", ["x", ["x"], 5, {"a": {"b": 1}}, {"a": None}, {"a": [{"b": 1}]}])
@pytest.mark.parametrize(("path", "body"), [("/v1/completions", {"prompt": "?"}), ("/v1/chat/completions", CHAT)])
def test_arguments_of_a_wrong_type_are_the_clients_mistake(
    scripted: ScriptedService, path: str, body: dict[str, Any], xargs: Any
) -> None:
    answer = httpx.post(f"{scripted.url}{path}", json={**body, "vllm_xargs": xargs}, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("vllm_xargs")


def test_an_order_of_our_own_does_reach_vllm(scripted: ScriptedService) -> None:
    """The negative control of the first test."""
    httpx.post(f"{scripted.url}/v1/collections", json={"name": "own"}).raise_for_status()
    body = {"prompt": "?", "kvblend": {"documents": ["A passage."]}, "kv_transfer_params": {"kvblend": "mine"}}
    answer = httpx.post(f"{scripted.url}/v1/completions", json=body, timeout=60)
    assert answer.json()["kvblend"]["report"]["outcome"] == "blended"
    params = [sent.get("kv_transfer_params", {}) for sent in scripted.engine.bodies]
    assert any("blend" in given.get("kvblend", {}) for given in params)


@pytest.mark.parametrize("value", [[], "x", 5, [{}]])
@pytest.mark.parametrize(("path", "body"), [("/v1/completions", {"prompt": "?"}), ("/v1/chat/completions", CHAT)])
def test_what_vllm_would_fail_on_is_the_clients_mistake(
    scripted: ScriptedService, path: str, body: dict[str, Any], value: Any
) -> None:
    answer = httpx.post(f"{scripted.url}{path}", json={**body, "structured_outputs": value, "kvblend": {}}, timeout=60)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "structured_outputs"
    fine = httpx.post(f"{scripted.url}{path}", json={**body, "structured_outputs": {"choice": ["a"]}}, timeout=60)
    assert fine.status_code == 200 and scripted.engine.bodies[-1]["structured_outputs"] == {"choice": ["a"]}
