"""Selective recompute of reused passage KV: rerotate, probe, select, repair, whatever the engine."""

from kvblend.blend.attention import AttentionSpec
from kvblend.blend.context_kv import ContextKV, DenseContextKV
from kvblend.blend.flops import ModelFlops
from kvblend.blend.model import Attend, BlendModel
from kvblend.blend.passes import Rows, probe, repair
from kvblend.blend.rotary import RotaryTable, rerotate, rerotate_layers, rotation_tolerance
from kvblend.blend.selectors import LAB_SELECTORS, SELECTORS, LabPrompt, LabSelector, Selector, num_selected

__all__ = [
    "LAB_SELECTORS",
    "SELECTORS",
    "Attend",
    "AttentionSpec",
    "BlendModel",
    "ContextKV",
    "DenseContextKV",
    "LabPrompt",
    "LabSelector",
    "ModelFlops",
    "RotaryTable",
    "Rows",
    "Selector",
    "num_selected",
    "probe",
    "repair",
    "rerotate",
    "rerotate_layers",
    "rotation_tolerance",
]
