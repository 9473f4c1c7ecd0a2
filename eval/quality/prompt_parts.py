"""One question's prompt in tokens, and what else its passages may be encoded behind."""

from dataclasses import dataclass, field

__all__ = ["PromptParts", "TokenSurroundings"]

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class TokenSurroundings:
    """A passage's `Surroundings`, in tokens: passages as a prompt would have them, the title as a line."""

    title: Tokens = ()
    preceding: tuple[Tokens, ...] = ()
    similar: tuple[Tokens, ...] = ()
    former: tuple[Tokens, ...] = ()


@dataclass(frozen=True)
class PromptParts:
    """One question's prompt in tokens, and what else a passage may be encoded behind.

    `unrelated`: a passage of the set that is in no prompt; `related`: one retrieved for this question and not in its
    prompt, empty where there is none; `neutral`: the product's own warm context. `surroundings`: by passage.
    """

    preamble: Tokens
    passages: tuple[Tokens, ...]
    question: Tokens
    unrelated: Tokens
    related: Tokens
    neutral: Tokens
    surroundings: tuple[TokenSurroundings, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.surroundings:
            object.__setattr__(self, "surroundings", (TokenSurroundings(),) * len(self.passages))
        assert len(self.surroundings) == len(self.passages)

    @property
    def prompt(self) -> list[int]:
        return [*self.preamble, *(token for passage in self.passages for token in passage), *self.question]
