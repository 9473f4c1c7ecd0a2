"""Every route that vLLM has, as its source has it, passes through or stands in a list that says why it does not."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from kvblend.api.http.guarded_route import GuardedRoute
from kvblend.api.http.routes import engine, health, openai

Route = tuple[str, str]
"""(method, path)"""

METHODS = {"get", "post", "put", "patch", "delete", "head", "options", "websocket"}
REFUSED: dict[str, set[Route]] = {
    "it stops the engine, or says whether it is stopped": {
        ("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping"), ("POST", "/release_kv_cache_memory"),
        ("POST", "/pause"), ("POST", "/resume"), ("GET", "/is_paused"),
    },
    "it ends requests, which may be another tenant's": {("POST", "/abort_requests")},
    "it empties caches that all tenants use": {
        ("POST", "/reset_prefix_cache"), ("POST", "/reset_mm_cache"), ("POST", "/reset_encoder_cache"),
    },
    "it runs whatever it is told in the engine's processes": {("POST", "/collective_rpc")},
    "it changes the model that all tenants ask, or tells of its weights": {
        ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/init_weight_transfer_engine"), ("POST", "/shutdown_weight_transfer_engine"),
        ("POST", "/start_weight_update"), ("POST", "/start_draft_weight_update"), ("POST", "/update_weights"),
        ("POST", "/finish_weight_update"), ("POST", "/update_weight_version"), ("GET", "/weight_info"),
        ("POST", "/weight_checker"),
    },
    "it changes how many engines there are, or tells of that": {
        ("POST", "/scale_elastic_ep"), ("POST", "/is_scaling_elastic_ep"), ("GET", "/get_world_size"),
        ("POST", "/fault_tolerance/apply"), ("GET", "/fault_tolerance/status"),
    },
    "it slows all requests down, and writes files": {("POST", "/start_profile"), ("POST", "/stop_profile")},
    "it tells the engine's whole configuration, and of its own network": {
        ("GET", "/server_info"), ("GET", "/kv_event_sources"),
    },
    "its orders to the connector are in places that are not looked into": {("POST", "/inference/v1/generate")},
    "no WebSocket passes": {("WEBSOCKET", "/v1/realtime")},
    "the service has pages of its own there": {("GET", "/docs")},
    "a supervisor of several engines has it, which answers no requests": {("GET", "/ready")},
}  # fmt: skip
"""By the reason; all but the WebSocket's are the operator's where KVBLEND_ENGINE_ADMIN is set."""


def routes_of_vllm() -> dict[Route, Path]:
    """Every route of vLLM's HTTP servers, whatever makes a server have it, and the file that it stands in."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0], "entrypoints")
    return {route: file for file in sorted(folder.rglob("*.py")) for route in _routes(ast.parse(file.read_text()))}


def _routes(tree: ast.Module) -> Iterator[Route]:
    """Of decorators such as `@router.post("/path", ...)`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for call in node.decorator_list:
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in METHODS):
                continue
            given = [*call.args, *(word.value for word in call.keywords if word.arg == "path")]
            path = next((each.value for each in given if isinstance(each, ast.Constant)), None)
            if isinstance(path, str) and path.startswith("/"):
                yield call.func.attr.upper(), path


def passing() -> set[Route]:
    """Every route that goes to vLLM, or has the same answer from the service."""
    routes = [*engine.router.routes, *openai.router.routes, *health.router.routes]
    return {(method, route.path) for route in routes if isinstance(route, GuardedRoute) for method in route.methods}


def test_vllms_source_says_what_routes_there_are() -> None:
    """Negative control of the others: they would hold of nothing, too."""
    found = routes_of_vllm()
    assert len(found) > 50
    assert {("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("WEBSOCKET", "/v1/realtime")} <= set(found)


def test_every_route_of_vllm_passes_or_is_refused_for_a_reason() -> None:
    refused = set().union(*REFUSED.values())
    found = {route: file for route, file in routes_of_vllm().items() if route not in passing() | refused}
    assert not found, "give each a place in api/http/routes/engine.py, or a reason here"
    assert not passing() & refused


def test_what_is_listed_is_there() -> None:
    found = set(routes_of_vllm())
    assert set().union(*REFUSED.values()) <= found
    listed = engine.READ | engine.TOLD | engine.ASKED | engine.UNSALTED
    assert listed <= {path for _, path in found}
