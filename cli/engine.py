"""The command line and environment of the vLLM server that `kvblend serve` runs as its child."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from kvblend.cli.extras import require_vllm
from kvblend.core.machine import Machine, runs_on_cpu, this_machine
from kvblend.core.settings import Settings, TracingSettings

__all__ = ["default_dtype", "dtype_of", "engine_command", "engine_environment", "free_port", "watching_arguments"]

CONNECTOR = {
    "kv_connector": "KVBlendConnector",
    "kv_connector_module_path": "kvblend.vllm_connector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}

BF16_PRODUCTS = {"avx512_bf16", "amx_bf16"}


def engine_command(
    model: str,
    *,
    port: int,
    dtype: str | None = None,
    max_model_len: int | None = None,
    tensor_parallel_size: int = 1,
    served_name: str | None = None,
    blends: bool = True,
    extra: Sequence[str] = (),
) -> list[str]:
    """The command line of a vLLM server on the loopback interface; `extra` are vLLM's own arguments, as they are.

    Without `blends` it is a plain vLLM without the connector. Raises KVBlendError where vLLM is not installed.
    """
    require_vllm()
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enable-prompt-tokens-details"]
    command += ["--tensor-parallel-size", str(tensor_parallel_size)]
    if "--disable-log-stats" not in extra:
        command.append("--enable-per-request-metrics")  # an answer that is not streamed has its time to first token
    if served_name:
        command += ["--served-model-name", served_name]
    if dtype:
        command += ["--dtype", dtype]
    if max_model_len:
        command += ["--max-model-len", str(max_model_len)]
    if blends:
        command += ["--scheduling-policy", "priority"]  # encodes go behind answers
        command += ["--kv-transfer-config", json.dumps(CONNECTOR), "--load-format", "kvblend"]
    return [*command, *extra]


def watching_arguments(settings: Settings, tracing: TracingSettings, extra: Sequence[str] = ()) -> list[str]:
    """vLLM's own arguments by which its log is written, and its spans sent, as the service's are; beside `extra`."""
    arguments = ["--logging-config.formatter", "json"] if settings.log_format == "json" else []
    if tracing.traces_endpoint is not None and "--disable-log-stats" not in extra:  # vLLM makes its spans of these
        arguments += ["--otlp-traces-endpoint", tracing.traces_endpoint]
    return arguments


def engine_environment(*, control: str, tensor_parallel_size: int = 1) -> dict[str, str]:
    """This process's environment with what the vLLM server needs; what is set already stays, but the control address.

    On a CPU one core is left to the service, and threads are not bound to cores: a thread of vLLM's that waits for a
    busy core makes all others spin. There, too, what vLLM has compiled is found by the next start: vLLM 0.32 and 0.33
    write a whole compiled model there that they cannot read (`no attribute 'finalize_loading'`) and compile it again,
    while Inductor's own cache serves, if it lies where files stay.
    """
    environment = dict(os.environ)
    if runs_on_cpu():
        num_threads = max(1, (len(os.sched_getaffinity(0)) - 1) // tensor_parallel_size)
        environment.setdefault("OMP_NUM_THREADS", str(num_threads))
        environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
        environment.setdefault("VLLM_USE_AOT_COMPILE", "0")
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_vllm_cache() / "inductor"))
    environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    tracing = TracingSettings()
    if tracing.exporter_otlp_endpoint is not None:
        environment.setdefault("OTEL_SERVICE_NAME", "vllm")
        environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = tracing.exporter_otlp_protocol
    return {**environment, "KVBLEND_CONTROL": control, "PYTHONSAFEPATH": "1"}


def _vllm_cache() -> Path:
    """Where vLLM keeps what it has compiled."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VLLM_CACHE_ROOT") or Path(cache, "vllm")).expanduser()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def default_dtype() -> str | None:
    """The dtype that a model is served in on this machine where the user names none; None leaves it to vLLM."""
    return dtype_of(this_machine())


def dtype_of(machine: Machine) -> str | None:
    """`float32` on an x86 CPU without bf16 products, where vLLM prefills in bf16 three times slower; else None."""
    lacks_bf16 = machine.cpu_flags and not machine.cpu_flags & BF16_PRODUCTS
    return "float32" if lacks_bf16 and not machine.has_gpu else None
