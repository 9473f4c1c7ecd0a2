"""The kernels, compiled for this machine once and kept where the service keeps them."""

import platform

import pytest
from platformdirs import user_cache_path

from kvblend.host_kernels import HostKernels, host_kernels

__all__ = ["kernels"]


@pytest.fixture(scope="session")
def kernels() -> HostKernels:
    made = host_kernels(user_cache_path("kvblend") / "kernels")
    if made is None and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"the kernels are for x86, this is {platform.machine()}")
    assert made is not None, "the kernels do not compile or load here: see the warning in the log"
    return made
