"""The dtype that a benchmark measures in."""

from kvblend.cli.bench.vllm_environment import set_vllm_environment
from kvblend.cli.engine import default_dtype

__all__ = ["served_dtype"]


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
