"""Which model the demo shows on which machine."""

import pytest

from kvblend.cli.demo_model import QWEN_CODER_BYTES, choose_demo_model
from kvblend.cli.model_sources import NAMED_MODELS
from kvblend.core.machine import Machine

AVX2 = frozenset({"sse4_2", "avx2"})
AVX512 = AVX2 | {"avx512f", "avx512_bf16"}
AMX = AVX512 | {"amx_tile", "amx_bf16"}
ENOUGH = QWEN_CODER_BYTES


@pytest.mark.parametrize(
    ("machine", "name", "reason"),
    [
        (Machine(has_gpu=True, cpu_flags=AVX2, memory_bytes=ENOUGH), "qwen-coder", "has a GPU"),
        (Machine(has_gpu=False, cpu_flags=AMX, memory_bytes=ENOUGH), "qwen-coder", "has bf16 matrix units"),
        (Machine(has_gpu=False, cpu_flags=AMX, memory_bytes=ENOUGH - 1), "demo", "GiB of memory are free"),
        (Machine(has_gpu=True, cpu_flags=AVX2, memory_bytes=ENOUGH - 1), "demo", "GiB of memory are free"),
        (Machine(has_gpu=False, cpu_flags=AVX512, memory_bytes=ENOUGH), "demo", "no bf16 matrix units"),
        (Machine(has_gpu=False, cpu_flags=AVX2, memory_bytes=ENOUGH), "demo", "no bf16 matrix units"),
        (Machine(has_gpu=False, cpu_flags=frozenset(), memory_bytes=ENOUGH), "demo", "no bf16 matrix units"),
    ],
)
def test_the_larger_model_is_shown_where_it_is_fast_and_fits(machine: Machine, name: str, reason: str) -> None:
    chosen = choose_demo_model(machine)
    assert chosen.name == name
    assert reason in chosen.reason
    assert chosen.name in NAMED_MODELS
