"""What kvblend does not blend is refused when vLLM starts, with one clear sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import ParallelConfig

from kvblend.core.errors import UnsupportedModelError
from kvblend.vllm_connector.support import check_engine
from tests.preloaded import run_script

SCENARIO = Path(__file__).with_name("start_scenario.py")
VOCABULARY = {"vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2}


def assert_refused(model: Path, store: Path, sentence: str, **arguments: Any) -> None:
    """vLLM ends before it serves, and says why."""
    done = run_script(SCENARIO, model, store, json.dumps(arguments), timeout_s=200)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert sentence in said, said[-3000:]
    assert "STARTED" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
            "kvblend does not work with speculative decoding: leave speculative_config out",
        ),
        ({"kv_cache_dtype": "fp8"}, "kvblend does not work with a quantized KV cache: kv_cache_dtype is 'fp8"),
        pytest.param(
            {"pipeline_parallel_size": 2},
            "kvblend does not work with pipeline parallelism: pipeline_parallel_size is 2 and must be 1",
            marks=pytest.mark.extended,  # two ranks are started, to be refused
        ),
        ({"enable_lora": True}, "kvblend does not work with LoRA adapters: leave enable_lora out"),
    ],
)
def test_settings(
    arguments: dict[str, Any],
    sentence: str,
    tiny_model_path: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
) -> None:
    """Settings under which blended KV would be wrong."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    assert_refused(tiny_model_path("llama3rope"), tmp_path, sentence, dtype=dtype, **arguments)


def test_pipeline_parallelism() -> None:
    """The sentence that both ranks end with, asked of vLLM's own config: that they do, `test_settings` shows beside."""
    config = SimpleNamespace(parallel_config=ParallelConfig(), model_config=None, cache_config=None)
    config.parallel_config.pipeline_parallel_size = 2
    with pytest.raises(UnsupportedModelError, match="pipeline_parallel_size is 2 and must be 1"):
        check_engine(config)


def test_data_parallel_experts() -> None:
    """Ranks that exchange tokens in every forward; asked of vLLM's own config, since a CPU's vLLM refuses it first."""
    parallel = ParallelConfig()
    parallel.data_parallel_size = 2
    config = SimpleNamespace(parallel_config=parallel, model_config=SimpleNamespace(is_moe=True), cache_config=None)
    with pytest.raises(UnsupportedModelError, match="data_parallel_size is 2 and must be 1"):
        check_engine(config)


def test_context_parallelism() -> None:
    """Ranks that hold parts of a context's tokens; asked of vLLM's own config, since a CPU's vLLM refuses it first."""
    parallel = ParallelConfig()
    parallel.decode_context_parallel_size = 2
    config = SimpleNamespace(parallel_config=parallel, model_config=None, cache_config=None)
    with pytest.raises(UnsupportedModelError, match="decode_context_parallel_size is 2 and must be 1"):
        check_engine(config)


DEEPSEEK_V2 = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "first_k_dense_replace": 2,
    "q_lora_rank": None,
    "n_routed_experts": 2,
    "max_position_embeddings": 2048,
}


@pytest.mark.parametrize(
    ("architecture", "shape", "sentence"),
    [
        ("DeepseekV2", DEEPSEEK_V2, "kvblend does not work with multi-head latent attention (MLA)"),
        (
            "Mamba",
            {"hidden_size": 128, "num_hidden_layers": 2, "state_size": 8},
            "kvblend does not work with state-space layers: every layer must be attention",
        ),
        (
            "Bloom",
            {"hidden_size": 128, "n_layer": 2, "n_head": 2},
            "kvblend does not work with ALiBi: the model has no rotary attention",
        ),
    ],
)
def test_models_by_their_configuration(
    architecture: str, shape: dict[str, Any], sentence: str, demo_model_path: Path, tmp_path: Path, dtype: str
) -> None:
    """Models with MLA, with state-space layers, with ALiBi: before weights are read, of which the folder has none."""
    import transformers

    config = getattr(transformers, f"{architecture}Config")(**shape, **VOCABULARY)
    config.architectures = [f"{architecture}ForCausalLM"]
    config.save_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(demo_model_path).save_pretrained(tmp_path / "model")
    assert_refused(tmp_path / "model", tmp_path / "store", sentence, dtype=dtype)


def test_a_model_that_does_not_follow_its_rotary_embedding(demo_model_path: Path, tmp_path: Path, dtype: str) -> None:
    """Learned positions, of which the configuration says nothing: found by running the model."""
    import transformers

    config = transformers.GPT2Config(n_embd=128, n_layer=2, n_head=2, n_positions=1024, **VOCABULARY)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(demo_model_path).save_pretrained(tmp_path / "model")
    sentence = "keys of GPT2LMHeadModel do not follow its rotary embedding: they cannot be moved"
    assert_refused(tmp_path / "model", tmp_path / "store", sentence, dtype=dtype)
