"""Selective recompute of reused passage KV: rerotate, probe, select, repair, whatever the engine."""

from kvblend.blend.context_kv import ContextBatch, ContextKV
from kvblend.blend.dense_context import DenseContextKV
from kvblend.blend.flops import ModelFlops
from kvblend.blend.model import Attend, BlendModel
from kvblend.blend.passes import Pass, Rows, probe, repair
from kvblend.blend.rotary import RotaryTable, rerotate, rerotate_into, rerotate_layers, rotation_tolerance
from kvblend.blend.selectors import SELECTORS, LabPrompt, LabSelector, Selector, num_selected
from kvblend.triton_kernels import AttentionSpec

__all__ = [
    "SELECTORS",
    "Attend",
    "AttentionSpec",
    "BlendModel",
    "ContextBatch",
    "ContextKV",
    "DenseContextKV",
    "LabPrompt",
    "LabSelector",
    "ModelFlops",
    "Pass",
    "RotaryTable",
    "Rows",
    "Selector",
    "num_selected",
    "probe",
    "repair",
    "rerotate",
    "rerotate_into",
    "rerotate_layers",
    "rotation_tolerance",
]
