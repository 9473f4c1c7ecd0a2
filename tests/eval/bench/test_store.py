"""What `kvblend bench store` says of tiers: near ones, remote ones, and lookups among many passages."""

from pathlib import Path

import pytest

from kvblend.cli.engine import free_port
from kvblend.core.errors import InvalidRequestError
from kvblend.eval.bench import store_lookup
from kvblend.eval.bench.store_io import io_rows
from kvblend.eval.bench.store_lookup import lookup_rows
from kvblend.eval.bench.store_remote import remote_rows
from kvblend.store.codecs import CodecSpec, codec_spec
from tests.store.remote.mooncake_server import MooncakeServer, needs_mooncake
from tests.store.remote.servers import AWS, S3Server, Server, ValkeyServer

SIZE = 1 << 20
CODECS: tuple[CodecSpec, ...] = (codec_spec("raw", 128), codec_spec("entropy", 128))
COLUMNS = {"tier", "codec", "op", "num_bytes", "gb_per_s_p50", "floor_gb_per_s"}


def test_near_tiers(tmp_path: Path) -> None:
    rows = list(io_rows(tmp_path, tmp_path, [SIZE], CODECS))
    expected = [(tier, codec.name, op) for codec in CODECS for tier in ("cpu", "disk") for op in ("put", "get")]
    assert [(row["tier"], row["codec"], row["op"]) for row in rows] == expected
    assert all(set(row) == COLUMNS and row["gb_per_s_p50"] > 0 for row in rows)


@pytest.mark.parametrize("kind", ["a server of its own", "redis", "s3", pytest.param("mooncake", marks=needs_mooncake)])
def test_remote_tiers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside TCP; nothing is left there."""
    if kind == "a server of its own":
        check_rows(list(remote_rows([], [SIZE], CODECS, valkey_port=free_port())), "redis")
        return
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    kinds = {"redis": lambda: ValkeyServer(tmp_path), "s3": S3Server, "mooncake": MooncakeServer}
    server: Server = kinds[kind]()
    with server:
        check_rows(list(remote_rows([server.url], [SIZE], CODECS, valkey_port=free_port())), kind)
        assert server.num_keys() == 0


def check_rows(rows: list[dict[str, object]], tier: str) -> None:
    expected = [(tier, codec.name, op) for codec in CODECS for op in ("put", "get")]
    assert [(row["tier"], row["codec"], row["op"]) for row in rows] == expected
    for row in rows:
        assert set(row) == COLUMNS and row["num_bytes"] == SIZE
        assert isinstance(row["gb_per_s_p50"], float) and isinstance(row["floor_gb_per_s"], float)
        assert row["gb_per_s_p50"] > 0 and row["floor_gb_per_s"] > 0


def test_a_remote_tier_that_does_not_answer_is_named() -> None:
    with pytest.raises(InvalidRequestError, match=r"the redis tier at redis://127.0.0.1:1/0: .*refused"):
        list(remote_rows(["redis://127.0.0.1:1/0"], [SIZE], CODECS, valkey_port=free_port()))


def test_lookups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a CPU tier, which is gone afterwards; on a disk where tmpfs has no room for the names."""
    rows = lookup_rows(tmp_path / "memory", tmp_path / "disk", [100, 300])
    assert [(row["tier"], row["num_passages"]) for row in rows] == [("cpu", 100), ("cpu", 300)]
    monkeypatch.setattr(store_lookup, "INODES_A_FILE", 1e12)
    (on_disk,) = lookup_rows(tmp_path / "memory", tmp_path / "disk", [100])
    assert on_disk["tier"] == "disk"
    for row in (*rows, on_disk):
        assert 0 < row["us_p50"] <= row["us_p99"] and row["evict_ms"] > 0 and row["delete_ms"] > 0
    assert not list(tmp_path.rglob("*.kv"))
