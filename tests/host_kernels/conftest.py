from tests.host_kernels.session_kernels import kernels

__all__ = ["kernels"]
