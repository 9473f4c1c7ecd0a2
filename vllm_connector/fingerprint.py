"""Name a model so that no KV of another one is ever taken for its own."""

import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = ["model_fingerprint"]

SAMPLE_BYTES = 1 << 20


def model_fingerprint(model_config: Any) -> str:
    """SHA-256, in hex, of a vLLM model config: architecture, dtype, and the weights.

    Weights in a folder count with their names, sizes and first and last MiB; a hub model with its commit.
    """
    digest = hashlib.sha256()
    config = model_config.hf_config.to_dict()
    for of_the_reader in ("_name_or_path", "transformers_version"):
        config.pop(of_the_reader, None)
    revision = config.pop("_commit_hash", None) or getattr(model_config.hf_config, "_commit_hash", None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(json.dumps([str(model_config.dtype), model_config.quantization]).encode())
    folder = Path(model_config.model)
    if folder.is_dir():
        for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(SAMPLE_BYTES))
                file.seek(max(0, size - SAMPLE_BYTES))
                digest.update(file.read(SAMPLE_BYTES))
    else:
        digest.update(f"{model_config.model} {revision or model_config.revision}".encode())
    return digest.hexdigest()
