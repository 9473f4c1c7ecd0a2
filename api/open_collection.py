"""A collection as the service uses it: the catalog's settings, with its preamble and encode context in tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvblend.api.kv.document_windows import document_windows
from kvblend.api.kv.encode_context import EncodeContext
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.core.calibration import EncodeKind
from kvblend.core.rest import OrderName, SearchMode

__all__ = ["OpenCollection"]


@dataclass(frozen=True)
class OpenCollection:
    """A collection whose tokens are those of the model that is served."""

    name: str
    preamble: str
    encode_context: EncodeContext
    """Of a passage that nothing of its own precedes."""
    window_tokens: int | None = None
    """Of its documents, which are prefilled in windows; None: every passage stands behind `encode_context` alone."""
    owner: str | None = None
    """Whose the KV of its documents' passages is."""
    tenant_owner: str | None = None
    """Whose that of its preamble is, and of passages that a caller supplies beside its documents; None: nobody's."""
    kv_quota_bytes: int | None = None
    kv_ttl_s: float | None = None
    is_neutral: bool = True
    """Whether the service's own text stands before what nothing of its own precedes."""
    order: OrderName = "rank"
    """Of passages in prompts, where a request names none."""
    mode: SearchMode = "hybrid"
    """How passages are searched, where a request does not say."""

    def runs(self, passages: Sequence[tuple[int, ...]]) -> list[EncodeRun]:
        """How a document's passages are encoded: all of them, in order."""
        if self.window_tokens is None:
            return [EncodeRun.alone(self.encode_context, passage) for passage in passages]
        return document_windows(self.encode_context, passages, window_tokens=self.window_tokens)

    def kind(self, context: str) -> EncodeKind:
        """What kind of encode context one of the collection's passages has."""
        if context != self.encode_context.hash:
            return "document"
        return "neutral" if self.is_neutral else "own"

    def contexts(self, stored: Sequence[str]) -> tuple[str, ...]:
        """The encode contexts that the catalog has of a passage's places; "" is the collection's own."""
        return tuple(dict.fromkeys(context or self.encode_context.hash for context in stored))
