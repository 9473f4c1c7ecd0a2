"""Where tests get their models from, and the environment that they and their subprocesses run in."""

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Before torch, transformers or vLLM is imported. Only what the caller has not set.
for name, value in {
    "OMP_NUM_THREADS": "1",  # cores are shared by servers and tests; oversubscribed threads are many times slower
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TORCH_COMPILE_DISABLE": "1",  # whoever asks vLLM for logprobs has a function compiled, in each of its processes
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONSAFEPATH": "1",
}.items():
    os.environ.setdefault(name, value)
# A developer's own settings do not reach the tests.
for name in [name for name in os.environ if name.startswith("KVBLEND_")]:
    del os.environ[name]
# `python -m pytest` puts the repository on the path, where vLLM would take our folders for packages of its own.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]

import httpx
import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from httpx._transports import default as transports
from hypothesis import settings

from kvblend.cli.models import fetch_demo_model, fetch_embedding_model
from tests.dtype import add_dtype_option, dtype
from tests.service import service
from tests.tiny_models import make_tiny_model
from tests.tolerances import tolerances

__all__ = ["demo_model_path", "dtype", "embedding_model_path", "service", "tiny_model_path", "tolerances"]

MODELS = ROOT / ".cache" / "models"

LONGEST = (
    "service",
    "tests/vllm_connector/test_models.py",
    "tests/store/peers/test_peer_faults.py",
    "tests/store/peers/test_peer_tier.py",
    "tests/cli/test_calibrate.py",
    "tests/store/peers/test_peer_claims.py",
    "tests/vllm_connector/test_faults.py",
    "tests/vllm_connector/test_refusals.py",
    "tests/api/engine/test_two_servers.py",
    "tests/blend/paged/test_interpreted.py",
    "tests/vllm_connector/test_stepping.py",
    "tests/vllm_connector/worker/test_interpreted.py",
)
"""The groups that come first under xdist, the longest one of all at the head: what is short fills the workers' ends."""

settings.register_profile("kvblend", deadline=None)  # servers of other tests share the cores
settings.load_profile("kvblend")
for name in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, name, 60.0)  # s; for the same reason
# Each client, and each `httpx.get` of a loop that waits, would read all certificates: 30 ms of a core.
vars(transports)["create_ssl_context"] = cache(httpx.create_ssl_context)


def pytest_addoption(parser: pytest.Parser) -> None:
    add_dtype_option(parser)
    parser.addoption(
        "--extended", action="store_true", help="run the tests that are marked so, too: `make test-extended`"
    )


def pytest_report_header(config: pytest.Config) -> str:
    return f"dtype: {config.getoption('dtype')}"


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under xdist, one worker runs everything that asks the service, and a module's slow fixture is made once."""
    if not config.getoption("extended"):
        extended = [item for item in items if item.get_closest_marker("extended")]
        config.hook.pytest_deselected(items=extended)
        items[:] = [item for item in items if not item.get_closest_marker("extended")]
    places = dict[pytest.Item, int]()
    for item in items:
        asks_service = "service" in getattr(item, "fixturenames", ())
        group = "service" if asks_service else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
        places[item] = LONGEST.index(group) if group in LONGEST else len(LONGEST)
        if item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=2))
    items.sort(key=places.__getitem__)


@pytest.fixture(scope="session")
def demo_model_path() -> Path:
    """The folder of SmolLM2-135M-Instruct: a real chat model, in bfloat16."""
    return fetch_demo_model(MODELS)


@pytest.fixture(scope="session")
def embedding_model_path() -> Path:
    """The folder of all-MiniLM-L6-v2, for sentence-transformers."""
    return fetch_embedding_model(MODELS)


@pytest.fixture(scope="session")
def tiny_model_path(demo_model_path: Path) -> Callable[[str], Path]:
    """From a name in `tests.tiny_models.TINY_MODELS` to the folder of that model, with the demo's tokenizer."""
    return lambda name: make_tiny_model(name, MODELS, tokenizer_path=demo_model_path)
