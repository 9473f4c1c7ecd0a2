"""What is read of the machine, and the dtype that follows from it."""

import os
from pathlib import Path

import pytest

from kvblend.cli.engine import dtype_of
from kvblend.core.machine import Machine, cpu_flags, free_memory_bytes, this_machine

CPUINFO = """processor\t: 0
model name\t: Some CPU
vmx flags\t: vnmi
flags\t\t: fpu avx2 amx_bf16
bugs\t\t: spectre_v1

processor\t: 1
flags\t\t: fpu
"""
MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"
AVAILABLE = 8_000_000 * 1024


def test_the_first_cpu_s_flags_are_taken() -> None:
    assert cpu_flags(CPUINFO) == {"fpu", "avx2", "amx_bf16"}


@pytest.mark.parametrize("cpuinfo", ["", "processor\t: 0\nFeatures\t: fp asimd bf16\n"])
def test_a_cpu_that_is_not_x86_has_no_flags(cpuinfo: str) -> None:
    assert cpu_flags(cpuinfo) == frozenset()


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (["", ""], AVAILABLE),
        (["max\n", ""], AVAILABLE),
        (["2147483648\n", ""], 1 << 31),
        (["", "9223372036854771712\n"], AVAILABLE),
    ],
)
def test_memory_is_what_is_available_within_the_containers_limit(limits: list[str], expected: int) -> None:
    assert free_memory_bytes(MEMINFO, limits) == expected


def test_memory_that_is_not_known_is_none() -> None:
    assert free_memory_bytes("", ["max\n"]) == 0


def test_this_machine_is_read() -> None:
    machine = this_machine()
    assert 0 < machine.memory_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.has_bf16_units == ("amx_bf16" in Path("/proc/cpuinfo").read_text().split())


@pytest.mark.parametrize(
    ("has_gpu", "flags", "dtype"),
    [
        (False, {"avx2"}, "float32"),
        (False, {"avx2", "avx512f"}, "float32"),
        (False, {"avx2", "avx512f", "avx512_bf16"}, None),
        (False, {"avx512f", "amx_bf16"}, None),
        (False, set(), None),
        (True, {"avx2"}, None),
    ],
)
def test_float32_is_for_x86_cpus_without_bf16_products(has_gpu: bool, flags: set[str], dtype: str | None) -> None:
    assert dtype_of(Machine(has_gpu=has_gpu, cpu_flags=frozenset(flags), memory_bytes=0)) == dtype
