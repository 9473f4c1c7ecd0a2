"""What a benchmark's model runs in, as `kvblend serve` would have it on this machine."""

import os
from typing import Any

from kvblend.cli.engine import default_dtype, engine_environment
from kvblend.core.machine import cpu_name
from kvblend.eval.bench.vllm_environment import set_vllm_environment

__all__ = ["served_dtype", "served_machine"]


def served_dtype(model: str, dtype: str | None = None) -> str:
    """Name the dtype that `kvblend serve` would run a model in on this machine, as torch does (`bfloat16`).

    `dtype`, where it is given, is the one that `serve` would be told.
    """
    asked = dtype or default_dtype() or "auto"
    if asked != "auto":
        return asked
    set_vllm_environment()
    from vllm.engine.arg_utils import EngineArgs

    return str(EngineArgs(model=model, dtype=asked).create_model_config().dtype).removeprefix("torch.")


def served_machine(model: str, dtype: str | None = None) -> dict[str, Any]:
    """The machine of a benchmark over the service: {cpu, cores, threads, dtype}, the last two of its vLLM."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": int(engine_environment(control="").get("OMP_NUM_THREADS", 0)) or None,
        "dtype": served_dtype(model, dtype),
    }
