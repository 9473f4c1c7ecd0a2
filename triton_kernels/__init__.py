"""Triton kernels on paged KV: tensors in, tensors out, with a plain PyTorch reference of each."""

from kvblend.triton_kernels.attention_spec import AttentionSpec
from kvblend.triton_kernels.codecs import Codec
from kvblend.triton_kernels.gather_quantize import gather_quantize
from kvblend.triton_kernels.kv_deviation import kv_deviation
from kvblend.triton_kernels.load_rerotate import LoadPlan, load_rerotate
from kvblend.triton_kernels.paged_kv import PagedKV, PagedLayers
from kvblend.triton_kernels.probe_scores import ProbedContext, probe_scores
from kvblend.triton_kernels.queries import Queries
from kvblend.triton_kernels.selective_attention import selective_attention
from kvblend.triton_kernels.staged import StagedPassage
from kvblend.triton_kernels.write_kv import write_kv

__all__ = [
    "AttentionSpec",
    "Codec",
    "LoadPlan",
    "PagedKV",
    "PagedLayers",
    "ProbedContext",
    "Queries",
    "StagedPassage",
    "gather_quantize",
    "kv_deviation",
    "load_rerotate",
    "probe_scores",
    "selective_attention",
    "write_kv",
]
