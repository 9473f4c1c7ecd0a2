"""What vLLM reads from the environment when a benchmark imports it."""

import os

__all__ = ["set_vllm_environment"]


def set_vllm_environment() -> None:
    """Keep the engine in this process and its log off standard output; what is set already stays.

    How many threads it runs is the caller's: `OMP_NUM_THREADS`.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is the result's alone
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
