"""The last forward of a blend on a Hugging Face model: repair, and the question behind it."""

from torch import Tensor

from kvblend.blend.hf.model import HuggingFaceModel
from kvblend.blend.passes import BeforeLayer, Rows, loading, rows_batch

__all__ = ["repair_with_question"]


def repair_with_question(model: HuggingFaceModel, rows: Rows, *, before_layer: BeforeLayer | None = None) -> Tensor:
    """Repair a request's selected tokens and prefill its question in one forward; returns the last logits, fp32 [1, v].

    `rows` are the selected tokens, then the question's, for which the context has room. One forward does what two do:
    in each layer the repaired keys and values are there before a question token looks at them.
    """
    batch = rows_batch([rows])
    attend = loading(batch.attend, before_layer)
    return model.logits(rows.token_ids.to(model.device), batch.positions, attend, num_last=1)
