"""Put as many tokens as possible directly behind what they fit: a path cover of the most weight.

A link `(before, passage)` puts a passage directly behind another. Links that can stand in one order form paths: nothing
stands behind two passages, nothing in front of two, and no path ends where it began.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

__all__ = ["Link", "best_links", "paths"]

Link = tuple[int, int]

MAX_STEPS = 1000
"""About a millisecond. Eight to twelve passages with the pairs that a store has of them take some tens."""


def best_links(
    num_tokens: Sequence[int],
    pairs: Iterable[Link],
    *,
    forced: Iterable[Link] = (),
    heads: Collection[int] = (),
    max_steps: int = MAX_STEPS,
) -> dict[int, int]:
    """From each passage that gets one to the passage in front of it; the passages behind one have the most tokens.

    `pairs`: the links to choose from. `forced`: links that are made in any case, and form a path. `heads`: passages
    that nothing may stand in front of. Of equal choices the one by the lowest numbers is taken. Exact within
    `max_steps` steps of the search; the best found until then beyond, which the greedy choice (the longest passage
    first) is the first of.
    """
    before = {passage: other for other, passage in forced}
    choices: dict[int, list[int]] = {}
    for other, passage in sorted(set(pairs)):
        if passage not in before and passage not in heads and other != passage:
            choices.setdefault(passage, []).append(other)
    search = _Search(num_tokens, choices, before, max_steps)
    search.run(0, 0)
    return search.best


def paths(num_passages: int, before: Mapping[int, int]) -> list[list[int]]:
    """The paths that links make of all passages, by the lowest number in each."""
    behind = {other: passage for passage, other in before.items()}
    found = []
    for first in range(num_passages):
        if first not in before:
            path = [first]
            while path[-1] in behind:
                path.append(behind[path[-1]])
            found.append(path)
    return sorted(found, key=min)


class _Search:
    """Branch and bound over the passages, the longest first: which one stands in front of each, or none."""

    def __init__(
        self, num_tokens: Sequence[int], choices: Mapping[int, Sequence[int]], forced: Mapping[int, int], max_steps: int
    ) -> None:
        self._num_tokens, self._choices = num_tokens, choices
        self._passages = sorted(choices, key=lambda passage: (-num_tokens[passage], passage))
        self._rest = [0]  # tokens of the passages from each one on
        for passage in reversed(self._passages):
            self._rest.insert(0, self._rest[0] + num_tokens[passage])
        self._before = dict(forced)
        self._taken = set(forced.values())
        self._steps_left = max_steps
        self._best_tokens = -1
        self.best: dict[int, int] = {}

    def run(self, index: int, tokens: int) -> None:
        """Try all that may stand in front of the passages from `index` on, where that can be better than the best."""
        if (self._best_tokens >= 0 and self._steps_left <= 0) or tokens + self._rest[index] <= self._best_tokens:
            return
        self._steps_left -= 1
        if index == len(self._passages):
            self.best, self._best_tokens = dict(self._before), tokens
            return
        passage = self._passages[index]
        for other in self._choices[passage]:
            if other in self._taken or self._is_behind(other, passage):
                continue
            self._before[passage] = other
            self._taken.add(other)
            self.run(index + 1, tokens + self._num_tokens[passage])
            del self._before[passage]
            self._taken.discard(other)
        self.run(index + 1, tokens)

    def _is_behind(self, passage: int, first: int) -> bool:
        """Whether `passage` stands somewhere behind `first` on its path."""
        while passage in self._before:
            passage = self._before[passage]
            if passage == first:
                return True
        return False
