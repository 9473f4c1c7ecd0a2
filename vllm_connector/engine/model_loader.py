"""The loaded model, without patching vLLM: a loader that remembers it, or the runner that holds it."""

import copy
import inspect
import weakref
from typing import Any

from torch import nn

from kvblend.core.errors import UnsupportedModelError
from kvblend.vllm_connector.support import check_engine

__all__ = ["loaded_model", "register_loader"]

LOAD_FORMAT = "kvblend"
_loaded: list[weakref.ref[nn.Module]] = []


def register_loader() -> None:
    """Register the load format `kvblend`: vLLM's `auto`, with the model remembered for the connector.

    What its configuration rules out is refused before a weight is read: vLLM loads the model first and makes the
    connector after it, and may fail in between, in words of its own.
    """
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER, register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    if LOAD_FORMAT in _LOAD_FORMAT_TO_MODEL_LOADER:
        return

    class RememberingLoader(DefaultModelLoader):  # type: ignore[misc]
        def __init__(self, load_config: Any) -> None:
            automatic = copy.copy(load_config)
            automatic.load_format = "auto"
            super().__init__(automatic)

        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
            check_engine(vllm_config)
            model: nn.Module = super().load_model(vllm_config, model_config, prefix)
            _loaded.append(weakref.ref(model))
            return model

    register_model_loader(LOAD_FORMAT)(RememberingLoader)


def loaded_model() -> nn.Module:
    """The model of this worker; called from within `register_kv_caches`.

    Without the load format, the model runner is found among the callers: it is what registers the caches.
    Raises UnsupportedModelError where neither gives a model.
    """
    for reference in reversed(_loaded):
        model = reference()
        if model is not None:
            return model
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        runner_model = getattr(caller, "model", None)
        if hasattr(caller, "kv_caches") and isinstance(runner_model, nn.Module):
            return runner_model
        frame = frame.f_back
    raise UnsupportedModelError(f"kvblend did not find the loaded model: start vLLM with --load-format {LOAD_FORMAT}")
