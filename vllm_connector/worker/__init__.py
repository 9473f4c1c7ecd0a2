"""The connector in a vLLM worker: the life of a blend, and encodes."""

from kvblend.vllm_connector.worker.half import WorkerHalf

__all__ = ["WorkerHalf"]
