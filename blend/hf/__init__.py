"""`blend/` on Hugging Face models: an adapter for any decoder with rotary attention; needs transformers."""

from kvblend.blend.hf.extend import PassageEncoder, extend, prefill
from kvblend.blend.hf.lay_out import EncodedPassage, lay_out
from kvblend.blend.hf.model import HuggingFaceModel
from kvblend.blend.hf.question import repair_with_question

__all__ = [
    "EncodedPassage",
    "HuggingFaceModel",
    "PassageEncoder",
    "extend",
    "lay_out",
    "prefill",
    "repair_with_question",
]
