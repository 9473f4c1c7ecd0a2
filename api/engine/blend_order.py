"""What is to be answered: a prompt with its passages, and how to make its context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kvblend.api.engine.answer_route import COMPLETIONS, AnswerRoute
from kvblend.api.engine.choice import Wanted
from kvblend.api.prompt.blend_prompt import BlendPrompt
from kvblend.core.order_fields import session_id
from kvblend.core.rest import BlendChoices, Source

__all__ = ["BlendOrder"]


@dataclass(frozen=True)
class BlendOrder:
    """A prompt, how to make its context, the route that answers it and vLLM's own fields (`sampling`, e.g. max_tokens,
    temperature, stop; of a chat its messages too).

    `prefilled`: why vLLM lays out and prefills the prompt itself, from fields that hold it, where it must.
    """

    prompt: BlendPrompt
    choices: BlendChoices = field(default_factory=BlendChoices)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    route: AnswerRoute = COMPLETIONS
    prefilled: str | None = None
    as_sent: bool = False
    """Whether the request goes to vLLM as its client sent it, `sampling` being all of its body, with a plan beside it;
    `prompt` is the tokens that vLLM makes of it then."""
    sources: Sequence[Source] = ()
    """Of passages that were found in such a prompt."""

    @cached_property
    def session(self) -> str:
        """The same for all prompts of this context."""
        return session_id(self.prompt.token_ids[: self.prompt.num_context_tokens])

    @property
    def wanted(self) -> Wanted | None:
        """What its server had better have near; None where that is no matter."""
        if self.choices.reuse != "blend" or self.prefilled is not None or not self.prompt.passages:
            return None
        return Wanted([(len(each.prompt_ids), each.names) for each in self.prompt.passages], self.session)
