"""The connector in vLLM's scheduler process."""

from kvblend.vllm_connector.scheduler.half import SchedulerHalf

__all__ = ["SchedulerHalf"]
