"""Every kernel checked against its reference, then timed against its floor, at the shapes of Llama-3.1-8B.

On CPU the references run at small shapes, to show that the benchmark does; there, nothing has a floor.
"""

from kvblend.triton_kernels.benchmark.result import KernelResult
from kvblend.triton_kernels.benchmark.results import kernel_results

__all__ = ["KernelResult", "kernel_results"]
