"""Compile a launch for a GPU that is not here, and read what it takes of it."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvblend.triton_kernels.launch import Launch
from kvblend.triton_kernels.variant import variant_of

__all__ = ["CAPABILITIES", "FIELDS", "Resources", "compile_launch", "resource_rows"]

CAPABILITIES = (80, 90, 100)
FIELDS = (
    "kernel",
    "variant",
    "architecture",
    "num_warps",
    "num_stages",
    "registers",
    "spilled_bytes",
    "shared_bytes",
    "triton",
)


@dataclass(frozen=True)
class Resources:
    """What ptxas says of one kernel on one architecture."""

    registers: int
    """Of a thread."""
    spilled_bytes: int
    """Stores and loads of a thread that registers could not hold."""
    shared_bytes: int
    """Of a program."""
    ptx: str


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compile to a cubin for `capability` (80, 90, 100), specialised as the just-in-time compiler would.

    Raises what Triton raises where the kernel does not compile.
    """
    import triton
    from triton.backends.compiler import BaseBackend, GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, parameter in enumerate(variant_of(launch).parameters):
        signature[parameter.name] = parameter.type
        if parameter.type == "constexpr":
            constants[(index,)] = parameter.known
        elif parameter.known:
            attributes[(index,)] = BaseBackend.parse_attr(parameter.known)
    compiled = triton.compile(
        ASTSource(launch.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options=launch.options(),
    )
    assembly = compiled.asm["ptx"]
    log = subprocess.run(
        [
            get_ptxas(capability).path,
            "-v",
            "--regAllocOptLevel=2",
            f"--gpu-name={sm_arch_from_capability(capability)}",
            "-o",
            "/dev/null",
            "/dev/stdin",
        ],
        input=assembly,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    registers = re.search(r"Used (\d+) registers", log)
    assert registers is not None, log
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes spill", log))
    return Resources(int(registers[1]), spilled, compiled.metadata.shared, assembly)


def resource_rows(capabilities: Sequence[int] = CAPABILITIES) -> Iterator[dict[str, str]]:
    """A row of the table for each architecture and representative launch."""
    import triton

    from kvblend.triton_kernels.representative import representative_launches

    for capability in capabilities:
        for variant, launch in representative_launches(capability):
            found = compile_launch(launch, capability)
            cells = (
                launch.kernel.__name__,
                variant,
                f"sm_{capability}",
                launch.num_warps,
                launch.num_stages,
                found.registers,
                found.spilled_bytes,
                found.shared_bytes,
                triton.__version__,
            )
            yield dict(zip(FIELDS, map(str, cells), strict=True))


def main() -> None:
    """Print the table of `benchmarks/results/kernels_ptxas.csv`."""
    import csv
    import sys

    writer = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(resource_rows())


if __name__ == "__main__":
    main()
