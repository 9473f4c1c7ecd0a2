"""What passage KV takes, reckoned and real."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from kvblend.cli.app import app
from kvblend.cli.kv_size import kv_size
from kvblend.core.settings import CodecName
from kvblend.store import PassageKVKey
from kvblend.store.codecs import codec_spec
from kvblend.store.content import TensorContent
from tests.deploy.tools import CHART, kinds, rendered


@pytest.mark.parametrize("tensor_parallel", [1, 3])
def test_it_is_what_a_file_takes(demo_model_path: Path, tensor_parallel: int) -> None:
    """Reference: the files themselves, of every rank."""
    size = kv_size(str(demo_model_path))
    assert (size.token_bytes, size.num_parameters) == (23040, 134_515_008)
    heads = size.num_kv_heads // tensor_parallel
    kv = torch.randn(size.num_layers, 2, 100, heads, size.head_dim).bfloat16()
    key = PassageKVKey("model", "0" * 64, "1" * 64, 0, heads)
    ratios: dict[CodecName, float] = {"raw": 1.0, "int8": 0.505}
    for name, ratio in ratios.items():
        real = TensorContent(key, kv, capture_position=0, codec=codec_spec(name, size.head_dim)).num_bytes
        reckoned = size.file_bytes(100, ratio=ratio, tensor_parallel=tensor_parallel) / tensor_parallel
        assert reckoned == pytest.approx(real, rel=0.02 if name == "raw" else 0.15)


def test_the_command(demo_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVBLEND_CPU_BYTES", "0")
    monkeypatch.setenv("KVBLEND_DISK_BYTES", str(1 << 30))
    command = ["kv", "size", str(demo_model_path), "--tokens-per-second", "512"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0 and "entropy" in shown.output
    assert "0.50 s" in " ".join(shown.output.split())
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert told["passage_seconds"] == 0.5 and {row["codec"] for row in told["codecs"]} >= {"raw", "int8", "entropy"}
    for row in told["codecs"]:
        assert row["fit_disk"] == (1 << 30) // row["passage_bytes"] and "fit_cpu" not in row


def test_values_for_the_chart(demo_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have room for what they are to hold, and Helm renders the chart with them."""
    monkeypatch.setenv("KVBLEND_CODEC", "raw")
    command = ["kv", "size", str(demo_model_path), "--passages", "20000", "--passage-tokens", "500", "--helm"]
    values = yaml.safe_load(CliRunner().invoke(app, command).output)
    size = kv_size(str(demo_model_path))
    assert values["tiers"]["diskGiB"] << 30 >= 20_000 * size.file_bytes(500)
    assert values["engine"]["memoryGiB"] << 30 > size.num_parameters * 2 + (values["engine"]["kvCacheGiB"] << 30)
    assert values["engine"]["kvCacheGiB"] << 30 >= 65_536 * size.token_bytes
    assert values["settings"] == {"KVBLEND_CODEC": "raw"}
    arguments = [
        f"--set={group}.{name}={value}"
        for group in ("tiers", "home", "engine")
        for name, value in values[group].items()
    ]
    manifests = rendered(CHART, f"--set=model={values['model']}", *arguments)
    (claim,) = kinds(manifests, "PersistentVolumeClaim")
    assert claim["spec"]["resources"]["requests"]["storage"] == f"{values['home']['storageGiB']}Gi"
