"""Random prompts: retrieved passages, and what the KV of each fits."""

from hypothesis import strategies as st

from kvblend.api.prompt.neighbours import Neighbours, Ranked

__all__ = ["prompts"]


@st.composite
def prompts(draw: st.DrawFn, max_passages: int = 6) -> tuple[list[Ranked], Neighbours]:
    """Passages, some without KV, and neighbours with exact beginnings of one to three passages."""
    count = draw(st.integers(1, max_passages))
    numbers = st.integers(0, count - 1)
    documents = st.none() | st.tuples(st.sampled_from("ab"), st.integers(0, 9))
    passages = draw(
        st.lists(st.builds(Ranked, st.integers(1, 9), st.booleans(), documents), min_size=count, max_size=count)
    )
    pairs = draw(st.frozensets(st.tuples(numbers, numbers).filter(lambda pair: pair[0] != pair[1]), max_size=12))
    chains = st.lists(numbers, min_size=1, max_size=3, unique=True).map(tuple)
    return passages, Neighbours(pairs, draw(st.frozensets(chains, max_size=4)))
