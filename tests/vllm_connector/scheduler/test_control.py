"""The control channel's address, which one engine core has at a time."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from kvblend.core.control import EngineInfo
from kvblend.core.errors import InvalidRequestError
from kvblend.vllm_connector.scheduler.control import ControlServer, engine_address

INFO = EngineInfo(
    model="model",
    model_fingerprint="0",
    dtype="float32",
    block_size=16,
    max_model_len=64,
    head_ranges=[(0, 1)],
    token_bytes=1024,
    default_recompute_ratio=0.15,
    max_raw_logprobs=0,
)


def test_a_second_engine_does_not_take_it_away(tmp_path: Path) -> None:
    """ZeroMQ would rebind a local socket's path and leave the first engine's clients without an answer."""
    address = f"ipc://{tmp_path}/control.sock"
    server = ControlServer(address, INFO)
    with pytest.raises(InvalidRequestError, match="is another engine's: set KVBLEND_CONTROL"):
        ControlServer(address, INFO)
    server.close()
    ControlServer(address, INFO).close()  # it is free again


@pytest.mark.parametrize(
    ("address", "rank", "own"),
    [
        ("ipc:///tmp/control.sock", 0, "ipc:///tmp/control.sock"),
        ("ipc:///tmp/control.sock", 2, "ipc:///tmp/control.sock.dp2"),
        ("tcp://127.0.0.1:6000", 3, "tcp://127.0.0.1:6003"),
    ],
)
def test_data_parallel_ranks_have_one_each(address: str, rank: int, own: str) -> None:
    assert engine_address(address, SimpleNamespace(data_parallel_rank=rank)) == own
