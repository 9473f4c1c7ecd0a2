"""What a CPU runs on paged KV: loading, attention from scattered tokens, and the probe. Tensors in, tensors out.

The kernels are C++ (`csrc/`), compiled at first use (`build.py`); where they cannot be had or a cache is not in an
order that they know, callers do the same in plain PyTorch or by the engine's own attention.
"""

from kvblend.host_kernels.attention import Rows, attend, probe
from kvblend.host_kernels.build import HostKernels, host_kernels
from kvblend.host_kernels.loading import ExtentSpan, KernelLoading, LayerTarget, SpanFailure
from kvblend.host_kernels.pages import HostPagedKV

__all__ = [
    "ExtentSpan",
    "HostKernels",
    "HostPagedKV",
    "KernelLoading",
    "LayerTarget",
    "Rows",
    "SpanFailure",
    "attend",
    "host_kernels",
    "probe",
]
