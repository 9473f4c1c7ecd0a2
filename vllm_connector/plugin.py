"""What vLLM's plugin entry point calls in each of its processes."""

__all__ = ["register"]


def register() -> None:
    """Make `--load-format kvblend` and the connector's name known to vLLM. May be called again."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    from kvblend.vllm_connector.engine.model_loader import register_loader

    register_loader()
    if "KVBlendConnector" not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector("KVBlendConnector", "kvblend.vllm_connector", "KVBlendConnector")
