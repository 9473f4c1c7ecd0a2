"""What a model's name in the store hangs on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kvblend.vllm_connector.fingerprint import model_fingerprint


def fingerprint(folder: Path, dtype: str = "torch.bfloat16", **config: Any) -> str:
    hf_config = SimpleNamespace(to_dict=lambda: {"hidden_size": 64, "transformers_version": "5.19.0", **config})
    return model_fingerprint(SimpleNamespace(model=str(folder), dtype=dtype, quantization=None, hf_config=hf_config))


def test_another_reader_is_the_same_model(tmp_path: Path) -> None:
    """Reference: the model as one version of transformers reads it. Ours: as another does, from another folder."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path, transformers_version="5.20.1", _name_or_path="elsewhere") == first


def test_another_model_is_another(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path, hidden_size=65) != first
    assert fingerprint(tmp_path, "torch.float32") != first
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert fingerprint(tmp_path) != first
