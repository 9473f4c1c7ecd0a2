"""The versioned orders that a vLLM request carries: `kvblend` in `kv_transfer_params`, or as JSON text in `vllm_xargs`.

A prompt is laid out as

    [exact: preamble][passage]...[fresh]...[passage][question ...]
    '------------------ the plan's spans -----------'

and a plan lists the spans only by kind and length: the token ids are the prompt's own, so a plan can
never name KV of other tokens than those it stands for. What follows the last span is the question.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from kvblend.core.choices import SelectorName

__all__ = ["ORDER", "REPORT", "ContextPlan", "Cut", "EncodeOrder", "KVBlendParams", "SelectorName", "Span"]

ORDER, REPORT = "kvblend", "kvblend_report"
"""Under which a request has its order, and `kv_transfer_params` of the answer the report: they differ, since a decode
node gets as its request's what the prefill node's answer had."""

SCHEMA_VERSION: Literal[2] = 2
MAX_ENCODE_CONTEXTS = 8
MAX_ENCODE_SPANS = 1024
MAX_CUT_TOKENS = 1 << 16
Owner = Annotated[str, StringConstraints(min_length=1, max_length=128)]
RecomputeRatio = Annotated[float, Field(ge=0.0, le=1.0, strict=False)]
TokenRange = Annotated[tuple[Annotated[int, Field(ge=0)], int], Field(strict=False)]
TokenIds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=1 << 63)], ...], Field(max_length=MAX_CUT_TOKENS, strict=False)
]
TokenHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Schema(BaseModel, defer_build=True):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Cut(_Schema):
    """What a stored passage has and the prompt does not: its tokens in front of the span, and those behind it.

    They are named by their ids, so that a plan with a cut, too, can name no KV but that of its own tokens.
    """

    before: TokenIds = ()
    after: TokenIds = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.before and not self.after:
            raise ValueError("a cut leaves out at least one token")
        return self


class Span(_Schema):
    """A run of context tokens.

    `exact`: the preamble, or whatever else begins a prompt: its own KV, if it is stored, is right as it is.
    `passage`: KV stored behind the tokens that one of `encode_contexts` hashes (`core.identity.token_hash`), the best
    one first: the first that is stored is used. `recompute_ratios`: of each of them, in place of the plan's: a passage
    that fits where it stands needs less repair than one that does not.
    `cut`: the span is a part of a passage, the rest of which the prompt does not hold; its KV is that part of the
    passage's. A connector that knows no cuts refuses the plan, and the prompt is prefilled.
    `fresh`: anything else; repaired in full.
    """

    kind: Literal["exact", "passage", "fresh"]
    num_tokens: Annotated[int, Field(ge=1)]
    encode_contexts: Annotated[tuple[TokenHash, ...], Field(max_length=MAX_ENCODE_CONTEXTS, strict=False)] = ()
    recompute_ratios: Annotated[tuple[RecomputeRatio, ...], Field(max_length=MAX_ENCODE_CONTEXTS, strict=False)] = ()
    cut: Cut | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cut is not None and self.kind != "passage":
            raise ValueError("a cut is given for a passage span and for no other")
        if (self.kind == "passage") != bool(self.encode_contexts):
            raise ValueError("encode_contexts are given for a passage span and for no other")
        if self.recompute_ratios and len(self.recompute_ratios) != len(self.encode_contexts):
            raise ValueError(
                f"{len(self.recompute_ratios)} recompute_ratios for {len(self.encode_contexts)} encode_contexts"
            )
        return self


class ContextPlan(_Schema):
    """The spans of one prompt and how much of its reused passages to recompute.

    `salt`: of the encode contexts of all that it may use, as of the orders that made it.
    """

    spans: Annotated[tuple[Span, ...], Field(min_length=1, strict=False)]
    recompute_ratio: RecomputeRatio = 0.15
    selector: SelectorName = "probe"
    salt: TokenHash | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(span.kind == "exact" for span in self.spans[1:]):
            raise ValueError("only the first span can be exact")
        if not any(span.kind == "passage" for span in self.spans):
            raise ValueError("a plan holds at least one passage span")
        return self

    @property
    def num_tokens(self) -> int:
        """Number of context tokens: where the question begins."""
        return sum(span.num_tokens for span in self.spans)


class EncodeOrder(_Schema):
    """Keep the KV of spans of the prompt, each by itself: one pass over a document encodes all of its passages.

    `spans`: prompt tokens `[start, end)`, in order; all tokens in front of a span are its encode context.
    `owners`: whoever they are stored for, as quotas and deletions name them; the first one's quota pays for it.
    `salt`: in the hashes that name their encode contexts; only plans of the same salt find them.
    """

    spans: Annotated[tuple[TokenRange, ...], Field(min_length=1, max_length=MAX_ENCODE_SPANS, strict=False)]
    owners: Annotated[tuple[Owner, ...], Field(max_length=16, strict=False)] = ()
    salt: TokenHash | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        last = 0
        for start, end in self.spans:
            if end <= start:
                raise ValueError(f"span [{start}, {end}) is empty")
            if start < last:
                raise ValueError(f"span [{start}, {end}) begins before the one in front of it ends, at {last}")
            last = end
        return self

    @property
    def start(self) -> int:
        """Where the first span begins."""
        return self.spans[0][0]

    @property
    def end(self) -> int:
        """Where the last span ends."""
        return self.spans[-1][1]


class KVBlendParams(_Schema):
    """The value of `kv_transfer_params["kvblend"]`, or as JSON text that of `vllm_xargs["kvblend"]`: one of `blend` and
    `encode`.

    `report_id` is the caller's name for the request, under which the control channel gives its `BlendReport`; so does
    the HTTP response's `kv_transfer_params["kvblend_report"]`. `report_tokens`: with the fate of every token.
    """

    version: Literal[2] = SCHEMA_VERSION
    report_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    blend: ContextPlan | None = None
    encode: EncodeOrder | None = None
    report_tokens: Literal[True] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.blend is None) == (self.encode is None):
            raise ValueError("give one of blend and encode")
        return self
