"""How a framework's chat model blends, as fields of it."""

from collections.abc import Sequence

from pydantic import BaseModel

from kvblend.core.plan import SelectorName
from kvblend.core.rest import BlendOptions, OrderName, Reuse, SuppliedDocument
from kvblend.core.rest.blending import Ratio, TargetKL

__all__ = ["BlendFields"]


class BlendFields(BaseModel):
    """Fields as of `kvblend.core.rest.BlendOptions`, mixed into a framework's model or held by it."""

    collection: str | None = None
    """Retrieved from where there are no documents; else whose preamble and KV the documents have."""
    recompute_ratio: Ratio | None = None
    target_kl: TargetKL | None = None
    selector: SelectorName | None = None
    reuse: Reuse = "blend"
    order: OrderName | None = None

    def blend_options(self, documents: Sequence[SuppliedDocument]) -> BlendOptions:
        """What a request over `documents` says of its blend."""
        own = {name: getattr(self, name) for name in BlendFields.model_fields}
        return BlendOptions(documents=list(documents), **own)
