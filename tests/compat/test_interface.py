"""What a version of vLLM lacks is told in a sentence: planted in a module that uses the one that is installed."""

import ast
from typing import Any

import pytest
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

from tests.compat.interface import Uses, changed_methods, main

SOUND = """
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorTransferResults

class Connector(KVConnectorBase_V1):
    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._half = vllm.__version__, vllm_config.model_config.max_model_len, self._kv_transfer_config

    def on_new_request(self, request: Any) -> None:
        request.block_hashes.clear()
        request.update_block_hashes()
        self._half.append(request.cache_salt)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        cached, self.asked = scheduler_output.scheduled_cached_reqs, True
        return cached.req_ids, [new.req_id for new in scheduler_output.scheduled_new_reqs]

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        return KVConnectorTransferResults(finished_recving=set(), failed_recving=set())

def ours(request: ControlRequest) -> str:
    return request.op
"""


def test_the_connector_lacks_nothing_of_the_version_that_is_installed() -> None:
    assert main() == []


@pytest.mark.parametrize(
    ("used", "renamed", "problem"),
    [
        ("import vllm\n", "import vllm\nfrom vllm.tracing import trace_ctx\n", "vllm.tracing.trace_ctx is gone"),
        ("vllm.__version__", "vllm.version_text", "vllm has no version_text"),
        ("self._kv_transfer_config", "self._kv_config", "KVConnectorBase_V1 has no _kv_config"),
        ("max_model_len", "longest", "ModelConfig has no longest"),
        ("request.block_hashes", "request.hashes", "Request has no hashes"),
        ("cached.req_ids", "cached.ids", "CachedRequestData has no ids"),
        ("new.req_id", "new.id", "NewRequestData has no id"),
        ("role=role", "part=role", "takes other parameters: missing a required argument: 'role'"),
        ("finished_recving=", "received=", "KVConnectorTransferResults takes other parameters"),
        ("update_block_hashes()", "update_block_hashes(1)", "Request.update_block_hashes takes other parameters"),
    ],
)
def test_what_is_gone_or_renamed_is_told(used: str, renamed: str, problem: str) -> None:
    """Control: as it is, the module lacks nothing."""
    assert not Uses(ast.parse(SOUND)).problems
    assert used in SOUND
    (told,) = Uses(ast.parse(SOUND.replace(used, renamed))).problems
    assert problem in told


class Renamed(KVConnectorBase_V1):  # type: ignore[misc]
    """Its parameters have other names than vLLM's; one of its methods vLLM does not have."""

    def on_new_request(self, new_request: Any) -> None: ...

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def start_load_kv(self, context: Any, **kwargs: Any) -> None: ...

    def bind_block_pool(self, pool: Any) -> None: ...


def test_a_method_that_vllm_would_call_otherwise_is_told() -> None:
    assert list(changed_methods([Renamed])) == [
        "on_new_request is given request (Renamed)",
        "start_load_kv is given forward_context (Renamed)",
        "bind_block_pool is no method of vLLM's any more (Renamed)",
    ]
