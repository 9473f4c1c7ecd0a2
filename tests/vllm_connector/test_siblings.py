"""Beside which connectors this one works, and what blends need there; out of vLLM's own MultiConnector."""

from typing import Any

import pytest
from vllm.config import KVTransferConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector

from kvblend.core.errors import UnsupportedModelError
from kvblend.vllm_connector import siblings
from kvblend.vllm_connector.siblings import NO_SIBLINGS, Siblings, siblings_of_caller


def beside(*names: str, **extra: Any) -> Siblings:
    return Siblings([{"kv_connector": name, "kv_connector_extra_config": extra} for name in names])


def test_what_a_blend_needs_beside_others() -> None:
    """(prefills for others, needs the plan's salt, follows hashes)"""
    facts = {
        (): (False, False, False),
        ("KVBlendConnector",): (False, False, False),
        ("KVBlendConnector", "OffloadingConnector"): (False, False, True),
        ("NixlConnector", "KVBlendConnector"): (True, True, True),
        ("KVBlendConnector", "NixlConnector", "OffloadingConnector"): (True, True, True),
        ("KVBlendConnector", "LMCacheConnectorV1"): (False, True, True),
    }
    for names, (prefills, needs, follows) in facts.items():
        found = beside(*names)
        found.check()
        assert (found.prefills_for_others, found.needs_plan_salt, found.follows_hashes) == (prefills, needs, follows)


def test_what_it_does_not_work_beside() -> None:
    with pytest.raises(UnsupportedModelError, match="put KVBlendConnector in front of it"):
        beside("OffloadingConnector", "KVBlendConnector").check()
    with pytest.raises(UnsupportedModelError, match="bidirectional_kv_xfer, by which NixlConnector"):
        beside("NixlConnector", "KVBlendConnector", bidirectional_kv_xfer=True).check()


class LooksAround(KVConnectorBase_V1):  # type: ignore[misc]
    """Made by a MultiConnector as any connector is; it takes down who stands beside it."""

    seen: Siblings = NO_SIBLINGS

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        type(self).seen = siblings_of_caller()

    get_num_new_matched_tokens = update_state_after_alloc = build_connector_meta = None
    start_load_kv = wait_for_layer_load = save_kv_layer = wait_for_save = None


def test_the_others_are_found_out_of_vllms_own_multi_connector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siblings, "LooksAround", LooksAround, raising=False)
    own = {"kv_connector": "LooksAround", "kv_connector_module_path": siblings.__name__, "kv_role": "kv_both"}
    other = {**own, "kv_role": "kv_producer"}
    config = VllmConfig(
        kv_transfer_config=KVTransferConfig(
            kv_connector="MultiConnector", kv_role="kv_both", kv_connector_extra_config={"connectors": [own, other]}
        )
    )
    config.scheduler_config.disable_hybrid_kv_cache_manager = True
    assert siblings_of_caller() == NO_SIBLINGS
    MultiConnector(config, KVConnectorRole.SCHEDULER, None)
    assert [each["kv_role"] for each in LooksAround.seen.configs] == ["kv_both", "kv_producer"]
