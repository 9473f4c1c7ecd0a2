"""The connectors beside this one in vLLM's MultiConnector."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector

from kvblend.core.errors import UnsupportedModelError

__all__ = ["NO_SIBLINGS", "Siblings", "siblings_of_caller"]

OWN = "KVBlendConnector"
BETWEEN_ENGINES = frozenset({
    "MooncakeConnector", "MoRIIOConnector", "NixlConnector", "NixlPullConnector", "NixlPushConnector",
})  # fmt: skip
"""They take KV from prefill nodes to decode nodes, for requests that say so, by block and not by hash."""
BY_HASH = frozenset({"OffloadingConnector"})
"""They know KV by the hashes that vLLM's prefix cache knows it by, as these are when it is scheduled."""


@dataclass(frozen=True)
class Siblings:
    """`configs`: those of all connectors of a MultiConnector, this one's among them, in their order."""

    configs: Sequence[Mapping[str, Any]]

    @property
    def prefills_for_others(self) -> bool:
        """Whether one hands KV from engine to engine."""
        return bool(self._names & BETWEEN_ENGINES)

    @property
    def needs_plan_salt(self) -> bool:
        """Whether one may know KV by what a private salt of block hashes does not change."""
        return bool(self._names - BY_HASH)

    @property
    def follows_hashes(self) -> bool:
        """Whether one may have taken down a request's block hashes once this one has answered."""
        return bool(self._names)

    def check(self) -> None:
        """Raise UnsupportedModelError where this connector would come too late, or get KV that it cannot tell apart."""
        for config in self.configs:
            name = config["kv_connector"]
            if name == OWN:
                break
            if name not in BETWEEN_ENGINES:
                raise UnsupportedModelError(
                    f"kvblend does not work behind {name}, which would load the beginning of a prompt in a blend's "
                    f"place: put {OWN} in front of it in MultiConnector's connectors"
                )
        for config in self.configs:
            if (config.get("kv_connector_extra_config") or {}).get("bidirectional_kv_xfer"):
                raise UnsupportedModelError(
                    f"kvblend does not work with bidirectional_kv_xfer, by which {config['kv_connector']} would give a "
                    "later prompt the KV of an answer that was blended: leave it out"
                )

    @property
    def _names(self) -> set[str]:
        return {config["kv_connector"] for config in self.configs} - {OWN}


NO_SIBLINGS = Siblings(())


def siblings_of_caller() -> Siblings:
    """Those of the MultiConnector that is making this one: it gives each of its connectors a configuration of its own,
    which names no other."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, MultiConnector):
            return Siblings(caller._kv_transfer_config.kv_connector_extra_config["connectors"])
        frame = frame.f_back
    return NO_SIBLINGS
