"""Which model `kvblend demo` shows: the best of those that have a name which this machine answers with in time."""

from dataclasses import dataclass

from kvblend.core.machine import Machine

__all__ = ["DemoModel", "choose_demo_model"]

QWEN_CODER_BYTES = 14 << 30
"""Of main memory: weights, vLLM's KV space, passage KV in the CPU tier, and the processes; measured on a CPU."""


@dataclass(frozen=True)
class DemoModel:
    """A model as commands name it, and why it is the one."""

    name: str
    reason: str


def choose_demo_model(machine: Machine) -> DemoModel:
    """Qwen2.5-Coder-1.5B-Instruct where prefill is fast and memory suffices, else SmolLM2-135M-Instruct.

    AVX-512 instructions for bf16 alone are no reason: without matrix units a prefill of 3,000 tokens takes a minute.
    """
    if not (machine.has_gpu or machine.has_bf16_units):
        return DemoModel("demo", "this CPU has no bf16 matrix units (AMX), and would take minutes with a larger one")
    if machine.memory_bytes < QWEN_CODER_BYTES:
        return DemoModel(
            "demo",
            f"{machine.memory_bytes / 2**30:.1f} GiB of memory are free, and a larger one needs "
            f"{QWEN_CODER_BYTES / 2**30:.0f}",
        )
    return DemoModel("qwen-coder", "this machine has a GPU" if machine.has_gpu else "this CPU has bf16 matrix units")
