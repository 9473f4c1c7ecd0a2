"""Turn a chat model in GGUF, llama.cpp's format, into a bfloat16 folder in Hugging Face's layout.

A GGUF file names its tokenizer's parts where Hugging Face's spells them out, and transformers does not know all names:
what it gets wrong is said here for each model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["GGUFModel", "convert_gguf", "mend_qwen2_tokenizer", "mend_smollm2_tokenizer"]


@dataclass(frozen=True)
class GGUFModel:
    """What transformers does not learn from a model's GGUF file.

    `mend_tokenizer` changes a Hugging Face fast tokenizer in place. `tied_embeddings`: the file has the matrix that
    embeds tokens and predicts them twice, and keeps more bits of the latter, which is then taken for both.
    """

    mend_tokenizer: Callable[[Any], None]
    tied_embeddings: bool = False


def convert_gguf(gguf: Path, model_path: Path, model: GGUFModel) -> None:
    """Dequantize `gguf` to bfloat16 safetensors at `model_path`, with its tokenizer and chat template.

    Takes about 4 bytes of memory a parameter.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers 5.19 warns that weights stay quantized in bfloat16; these do not
    try:
        weights = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    finally:
        logging.set_verbosity(verbosity)
    # transformers keeps a GGUF quantizer on the already dequantized model and then refuses to save it.
    weights.hf_quantizer, weights.is_quantized = None, False
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(weights.config, name):
            delattr(weights.config, name)
    if model.tied_embeddings:
        weights.config.tie_word_embeddings = True
        weights.get_input_embeddings().weight = weights.get_output_embeddings().weight
    model.mend_tokenizer(tokenizer)
    tokenizer.model_max_length = weights.config.max_position_embeddings
    weights.save_pretrained(model_path)
    tokenizer.save_pretrained(model_path)


def mend_smollm2_tokenizer(tokenizer: Any) -> None:
    """Split digits: for the pre-tokenizer named "smollm" transformers takes GPT-2's, which keeps them together."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def mend_qwen2_tokenizer(tokenizer: Any) -> None:
    """Compose characters (NFC) as Qwen's own tokenizer does, and name no first token, since there is none."""
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.bos_token = None
