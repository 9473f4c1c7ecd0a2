"""Find the text of ingested passages in a prompt's tokens, wherever it stands."""

from kvblend.retriever.matching.matcher import HeldPassage, PassageMatcher, TokenMatch
from kvblend.retriever.matching.runs import MIN_SHARE, MIN_TOKENS

__all__ = ["MIN_SHARE", "MIN_TOKENS", "HeldPassage", "PassageMatcher", "TokenMatch"]
