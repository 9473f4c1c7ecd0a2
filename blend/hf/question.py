"""The last forward of a blend on a Hugging Face model: repair, and the question behind it."""

from torch import Tensor

from kvblend.blend.hf.model import HuggingFaceModel
from kvblend.blend.passes import Pass, Rows

__all__ = ["repair_with_question"]


def repair_with_question(model: HuggingFaceModel, rows: Rows) -> Tensor:
    """Repair a request's selected tokens and prefill its question in one forward; returns the last logits, fp32 [1, v].

    `rows` are the selected tokens, then the question's, for which the context has room. One forward does what two do:
    in each layer the repaired keys and values are there before a question token looks at them.
    """
    ready = Pass.of([rows])
    token_ids, positions = ready.token_ids.to(model.device), ready.contexts.positions
    return model.logits(token_ids, positions, ready.contexts.attend, num_last=1)
