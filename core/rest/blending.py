"""How a prompt is blended, where a request says so."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from kvblend.core.choices import OrderName, Reuse, SelectorName
from kvblend.core.rest.request import Name, Request
from kvblend.core.rest.retrieval import RetrievalChoices

__all__ = [
    "BlendChoices",
    "BlendOptions",
    "OrderName",
    "Ratio",
    "Reuse",
    "SuppliedDocument",
    "TargetKL",
]

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
TargetKL = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class BlendChoices(Request):
    """How to blend, where a request says so: at a ratio, or at the smallest that is calibrated for a mean KL to full
    prefill (nats) of at most `target_kl`; by which selector; and `reuse`: `blend`, or, for comparison, vLLM's
    `prefix_cache` alone, or `none`.

    `order` is that of the passages in the prompt, by default the collection's: `rank`, as retrieved; `document`,
    those of one document together and in its order; `fit`, the best one first and the others where their KV fits.
    `report_tokens`: the report tells the fate of every context token. `report_divergence`: once the answer is there,
    its prompt is prefilled in full as well, and the report tells how far each of the answer's first 256 tokens is from
    that.
    """

    recompute_ratio: Ratio | None = None
    """The share of reused tokens that is computed anew."""
    target_kl: TargetKL | None = None
    selector: SelectorName | None = None
    """Which tokens these are; the engine's own choice where not given."""
    reuse: Reuse = "blend"
    order: OrderName | None = None
    report_tokens: bool = False
    report_divergence: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.recompute_ratio is not None and self.target_kl is not None:
            raise ValueError("give one of recompute_ratio and target_kl")
        return self


class SuppliedDocument(Request):
    """A passage that the caller retrieved itself."""

    text: Annotated[str, Field(min_length=1)]
    """What is blended."""
    id: str | None = None
    """What it is called in the sources."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Whatever else is to be in the sources."""


class BlendOptions(BlendChoices, RetrievalChoices):
    """The `kvblend` field of an OpenAI request: passages to blend in front of the last user message, supplied or, where
    there are none, retrieved from a collection."""

    documents: list[SuppliedDocument | Annotated[str, Field(min_length=1)]] = Field(default_factory=list, max_length=64)
    """Passages of the caller, in their order; a text is one without id and metadata."""
    collection: Name | None = None
    """Where to retrieve from; of passages supplied, whose preamble and stored KV are theirs."""
