"""A whole prompt with its passages, and the context plan that vLLM gets for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kvblend.api.kv.encode_context import EncodeContext
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.api.kv.passage_kv import KVName
from kvblend.api.prompt.builder import Frame
from kvblend.core.calibration import EncodeKind
from kvblend.core.errors import PromptTooLongError
from kvblend.core.identity import token_hash
from kvblend.core.plan import ContextPlan, Cut, KVBlendParams, SelectorName, Span

__all__ = ["BlendPrompt", "DocumentRef", "PromptPassage"]


@dataclass(frozen=True)
class DocumentRef:
    """An ingested document."""

    collection: str
    document_id: str


@dataclass(frozen=True)
class PromptPassage:
    """A passage in a prompt, the encode contexts of KV that would do for it, best first and each with its kind, and how
    to make some where none is stored: by a run, or with what precedes it in its document."""

    token_ids: tuple[int, ...]
    encode_contexts: tuple[str, ...]
    kinds: tuple[EncodeKind, ...]
    source: EncodeRun | DocumentRef
    owner: str | None = None
    position: int | None = None
    """In the document that `source` names."""
    num_cut: tuple[int, int] = (0, 0)
    """How many of its first tokens, and of its last, the prompt does not hold."""
    lead_ids: tuple[int, ...] = ()
    """What stands in front of it in the prompt and is of no passage."""

    @classmethod
    def behind(
        cls,
        context: EncodeContext,
        token_ids: tuple[int, ...],
        *,
        kind: EncodeKind = "neutral",
        owner: str | None = None,
    ) -> "PromptPassage":
        """A passage whose KV is that behind `context`."""
        return cls.of_run(EncodeRun.alone(context, token_ids), kind, owner=owner)

    @classmethod
    def of_run(cls, run: EncodeRun, kind: EncodeKind, *, owner: str | None = None) -> "PromptPassage":
        """The one passage that a run encodes, as it encodes it."""
        (part,) = run.parts
        return cls(tuple(run.prompt(part.end)[part.start :]), (part.name[0],), (kind,), run, owner)

    @cached_property
    def passage_id(self) -> str:
        return token_hash(self.token_ids)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Those of its tokens that the prompt holds."""
        before, after = self.num_cut
        return self.token_ids[before : len(self.token_ids) - after]

    @property
    def cut(self) -> Cut | None:
        """The tokens that it does not hold."""
        before, after = self.num_cut
        if not before and not after:
            return None
        return Cut(before=self.token_ids[:before], after=self.token_ids[len(self.token_ids) - after :])

    @property
    def names(self) -> list[KVName]:
        """Of the KV that would do, best first."""
        return [(context, self.passage_id) for context in self.encode_contexts]


@dataclass(frozen=True)
class BlendPrompt:
    """`[preamble][passage]...[passage][question]`, with text between passages where they have a lead."""

    frame: Frame
    passages: Sequence[PromptPassage]
    salt: str | None = None
    """Of its passages' encode contexts, and of what vLLM's prefix cache has of it."""
    owner: str | None = None
    """Of its preamble's KV."""

    @property
    def token_ids(self) -> list[int]:
        passages = (token_id for each in self.passages for token_id in (*each.lead_ids, *each.prompt_ids))
        return [*self.frame.preamble_ids, *passages, *self.frame.question_ids]

    @property
    def num_context_tokens(self) -> int:
        return len(self.frame.preamble_ids) + sum(
            len(passage.lead_ids) + len(passage.prompt_ids) for passage in self.passages
        )

    def spans(self, ratios: Mapping[EncodeKind, float]) -> tuple[Span, ...]:
        """The context plan's spans; `ratios` are those of kinds that do not have the plan's own."""
        spans = [Span(kind="exact", num_tokens=len(self.frame.preamble_ids))] if self.frame.preamble_ids else []
        for passage in self.passages:
            if passage.lead_ids:
                spans.append(Span(kind="fresh", num_tokens=len(passage.lead_ids)))
            spans.append(
                Span(
                    kind="passage",
                    num_tokens=len(passage.prompt_ids),
                    encode_contexts=passage.encode_contexts,
                    recompute_ratios=tuple(ratios[kind] for kind in passage.kinds) if ratios else (),
                    cut=passage.cut,
                )
            )
        return tuple(spans)

    def order(
        self,
        *,
        recompute_ratio: float,
        ratios: Mapping[EncodeKind, float] | None = None,
        selector: SelectorName = "probe",
        report_id: str,
        report_tokens: bool = False,
    ) -> KVBlendParams:
        """That the connector is to blend this prompt and report under `report_id`, where `report_tokens` says so of
        each token.

        `ratios`: of every kind of passage that is in it, in place of the one ratio.
        """
        plan = ContextPlan(
            spans=self.spans(ratios or {}), recompute_ratio=recompute_ratio, selector=selector, salt=self.salt
        )
        return KVBlendParams(report_id=report_id, blend=plan, report_tokens=True if report_tokens else None)

    def check_length(self, *, max_model_len: int, max_tokens: int) -> None:
        """Raise PromptTooLongError where prompt and answer do not fit: by how much, and how many passages would."""
        num_prompt = self.num_context_tokens + len(self.frame.question_ids)
        excess = num_prompt + max_tokens - max_model_len
        if excess <= 0:
            return
        message = (
            f"the prompt's {num_prompt} tokens and {max_tokens} to generate are {excess} more than the model's "
            f"{max_model_len}"
        )
        if self.passages:
            num_fitting, room = (
                0,
                max_model_len - max_tokens - len(self.frame.preamble_ids) - len(self.frame.question_ids),
            )
            for passage in self.passages:
                room -= len(passage.lead_ids) + len(passage.prompt_ids)
                if room < 0:
                    break
                num_fitting += 1
            message += f"; of its {len(self.passages)} passages the first {num_fitting} would fit"
        raise PromptTooLongError(message, param="prompt")
