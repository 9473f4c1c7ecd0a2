"""Tiny random models of every architecture that kvblend blends, for tests on a real vLLM, and one that sees images.

A random model is of use only if a wrong KV shows: attention must move the logits and the next-token
distribution must be neither flat nor a single token. `tests/test_tiny_models.py` measures that.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = ["IMAGE_TOKEN", "NUM_IMAGE_TOKENS", "TINY_MODELS", "TinyModel", "make_tiny_model", "make_tiny_vision_model"]

MAX_TOKENS = 4096
INITIALIZER_RANGE = 0.2
SHAPE: Mapping[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": MAX_TOKENS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class TinyModel:
    """One recipe: a transformers architecture, what differs from the common shape, and how weights are drawn.

    `qk_norm` fills the weights of the norms on queries and keys, where the architecture has them: these norms
    undo a wide initialisation, so that attention over random weights would be nearly uniform. `embedding_scale`
    and `final_norm` are for tied embeddings: small ones, or a random model repeats its last token, and a last norm
    that makes up for it in the logits. Gemma's norms add one to the weight.
    """

    architecture: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    qk_norm: float = 2.0
    embedding_scale: float = 1.0
    final_norm: float | None = None
    seed: int = 0

    @property
    def digest(self) -> str:
        """12 hex digits that change with anything that the weights depend on."""
        return _digest(sorted(SHAPE.items()), INITIALIZER_RANGE, self)


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": MAX_TOKENS // 8,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": MAX_TOKENS // 4,
}
GEMMA = {"sliding_window": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True}
GEMMA2 = TinyModel("Gemma2", GEMMA, qk_norm=1.0, embedding_scale=0.15, final_norm=6.0)
GEMMA3_LAYERS = {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}

TINY_MODELS: Mapping[str, TinyModel] = {
    "llama3rope": TinyModel("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "qwen2": TinyModel("Qwen2"),
    "qwen3": TinyModel("Qwen3"),
    "qwen3_yarn": TinyModel("Qwen3", {"rope_parameters": YARN_ROPE}),
    "qwen3moe": TinyModel("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}),
    "mistral": TinyModel("Mistral", {"sliding_window": None}),
    "mistral_sw": TinyModel("Mistral", {"sliding_window": 64}),
    "gemma2": GEMMA2,
    "gemma3": replace(GEMMA2, architecture="Gemma3", overrides={**GEMMA, **GEMMA3_LAYERS}),
}

VISION: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 112,
    "patch_size": 14,
}
SCALE_FACTOR = 2
"""How many patches, in height and in width, are one token."""
IMAGE_TOKEN = "<image>"
NUM_IMAGE_TOKENS = (VISION["image_size"] // VISION["patch_size"] // SCALE_FACTOR) ** 2
"""Of an image of any size, in a prompt of the vision model."""


def make_tiny_model(name: str, folder: Path, *, tokenizer_path: Path) -> Path:
    """Return the model's folder inside `folder`, in float32 with the tokenizer of `tokenizer_path`.

    It is made where it is not there, by one rename; a changed recipe makes another folder.
    Raises KeyError where no recipe has the name.
    """
    recipe = TINY_MODELS[name]
    return _made_once(
        folder, f"tiny-{name}-{recipe.digest}", lambda model_path: _save(recipe, model_path, tokenizer_path)
    )


def make_tiny_vision_model(folder: Path, *, tokenizer_path: Path) -> Path:
    """Likewise an Idefics3, as SmolVLM is: a Llama of the common shape that sees images through SigLIP.

    The tokenizer has `IMAGE_TOKEN` besides, and those that Idefics3 puts around an image.
    """
    digest = _digest(sorted(SHAPE.items()), INITIALIZER_RANGE, sorted(VISION.items()), SCALE_FACTOR)
    return _made_once(
        folder, f"tiny-idefics3-{digest}", lambda model_path: _save_vision_model(model_path, tokenizer_path)
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _made_once(folder: Path, name: str, save: Callable[[Path], None]) -> Path:
    model_path = folder / name
    if model_path.is_dir():
        return model_path
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{name}.", dir=folder) as scratch:
        made = Path(scratch, "model")
        save(made)
        try:
            made.rename(model_path)
        except OSError:
            if not model_path.is_dir():  # else another process was first
                raise
    return model_path


def _save(recipe: TinyModel, model_path: Path, tokenizer_path: Path) -> None:
    import torch
    import transformers

    text = "Text" if recipe.architecture == "Gemma3" else ""
    config_class = getattr(transformers, f"{recipe.architecture}{text}Config")
    model_class = getattr(transformers, f"{recipe.architecture}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = model_class(config_class(**{**SHAPE, **recipe.overrides}, initializer_range=INITIALIZER_RANGE))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                weight.fill_(recipe.qk_norm)
        model.get_input_embeddings().weight.mul_(recipe.embedding_scale)
        if recipe.final_norm is not None:
            model.model.norm.weight.fill_(recipe.final_norm)
    model.save_pretrained(model_path)
    transformers.AutoTokenizer.from_pretrained(tokenizer_path).save_pretrained(model_path)


def _save_vision_model(model_path: Path, tokenizer_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    edge = {"longest_edge": VISION["image_size"]}
    images = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    processor = Idefics3Processor(images, tokenizer, image_seq_len=NUM_IMAGE_TOKENS)  # adds its tokens
    config = Idefics3Config(
        text_config={**SHAPE, "vocab_size": len(tokenizer), "initializer_range": INITIALIZER_RANGE},
        vision_config={**VISION, "initializer_range": INITIALIZER_RANGE},
        image_token_id=processor.image_token_id,
        scale_factor=SCALE_FACTOR,
        pad_token_id=SHAPE["pad_token_id"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Idefics3ForConditionalGeneration(config)
    model.save_pretrained(model_path)
    processor.save_pretrained(model_path)
