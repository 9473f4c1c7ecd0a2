"""Triton kernels on paged KV: tensors in, tensors out, with a plain PyTorch reference of each."""

from kvblend.triton_kernels.codecs import Codec
from kvblend.triton_kernels.gather_quantize import gather_quantize
from kvblend.triton_kernels.load_rerotate import load_rerotate
from kvblend.triton_kernels.paged_kv import PagedKV, PagedLayers
from kvblend.triton_kernels.staged import StagedPassage

__all__ = ["Codec", "PagedKV", "PagedLayers", "StagedPassage", "gather_quantize", "load_rerotate"]
