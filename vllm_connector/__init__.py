"""KVBlendConnector for vLLM V1: non-prefix reuse of passage KV in stock vLLM."""

from typing import Any

__all__ = ["KVBlendConnector"]


def __getattr__(name: str) -> Any:
    # vLLM loads our plugin early in every process; the connector comes only when it is asked for
    if name == "KVBlendConnector":
        from kvblend.vllm_connector.connector import KVBlendConnector

        return KVBlendConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
