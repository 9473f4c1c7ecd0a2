"""The versioned orders that a vLLM request carries in `kv_transfer_params["kvblend"]`.

A prompt is laid out as

    [exact: preamble][passage]...[fresh]...[passage][question ...]
    '------------------ the plan's spans -----------'

and a plan lists the spans only by kind and length: the token ids are the prompt's own, so a plan can
never name KV of other tokens than those it stands for. What follows the last span is the question.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

__all__ = ["ContextPlan", "EncodeOrder", "KVBlendParams", "SelectorName", "Span"]

SCHEMA_VERSION: Literal[2] = 2
MAX_ENCODE_CONTEXTS = 8
SelectorName = Literal["probe", "none", "all"]
Owner = Annotated[str, StringConstraints(min_length=1, max_length=128)]
TokenHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Span(_Schema):
    """A run of context tokens.

    `exact`: the preamble, at the prompt's start, whose stored KV is right as it is.
    `passage`: KV stored behind the tokens that one of `encode_contexts` hashes (`core.identity.token_hash`), the best
    one first: the first that is stored is used.
    `fresh`: anything else; repaired in full.
    """

    kind: Literal["exact", "passage", "fresh"]
    num_tokens: Annotated[int, Field(ge=1)]
    encode_contexts: Annotated[tuple[TokenHash, ...], Field(max_length=MAX_ENCODE_CONTEXTS, strict=False)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "passage") != bool(self.encode_contexts):
            raise ValueError("encode_contexts are given for a passage span and for no other")
        return self


class ContextPlan(_Schema):
    """The spans of one prompt and how much of its reused passages to recompute."""

    spans: Annotated[tuple[Span, ...], Field(min_length=1, strict=False)]
    recompute_ratio: Annotated[float, Field(ge=0.0, le=1.0, strict=False)] = 0.15
    selector: SelectorName = "probe"

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
    """Keep the KV of prompt tokens `[start, end)`; the tokens before `start` are its encode context.

    `owners`: whoever it is stored for, as quotas and deletions name them; the first one's quota pays for it.
    """

    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=1)]
    owners: Annotated[tuple[Owner, ...], Field(max_length=16, strict=False)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"end {self.end} is not beyond start {self.start}")
        return self


class KVBlendParams(_Schema):
    """The value of `kv_transfer_params["kvblend"]`: one of `blend` and `encode`.

    `report_id` is the caller's name for the request, under which the control channel and
    the HTTP response's `kv_transfer_params` give its `BlendReport`.
    """

    version: Literal[2] = SCHEMA_VERSION
    report_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    blend: ContextPlan | None = None
    encode: EncodeOrder | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.blend is None) == (self.encode is None):
            raise ValueError("give one of blend and encode")
        return self
