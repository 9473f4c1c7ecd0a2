"""Windows: whole, bounded, made of the document's own text, and the same after an edit elsewhere."""

import random
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from kvblend.api.kv.document_windows import LEAD_TOKENS, WINDOW_TOKENS, document_windows
from kvblend.api.kv.encode_context import EncodeContext
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.core.identity import token_hash

CONTEXT = EncodeContext((*range(20), *range(1000, 1236)), 20)


def document(seed: int, count: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.randrange(50_000) for _ in range(draw.randrange(16, 300))) for _ in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.integers(), st.integers(1, 60), st.integers(64, 4000))
def test_they_hold_the_document_and_nothing_else(seed: int, count: int, window_tokens: int) -> None:
    passages = document(seed, count)
    runs = document_windows(CONTEXT, passages, window_tokens=window_tokens)
    assert list(chain.from_iterable(run.passages for run in runs)) == passages
    text: list[int] = []
    for run in runs:
        assert len(run.passages) == 1 or sum(map(len, run.passages)) <= window_tokens
        lead = list(run.context.token_ids[run.context.num_preamble :])
        assert run.context.preamble_ids == CONTEXT.preamble_ids
        assert lead == (text[-LEAD_TOKENS:] if text else list(range(1000, 1236)))
        text += chain.from_iterable(run.passages)


def test_an_edit_encodes_its_own_window_anew() -> None:
    """Of ten documents of 60 passages, one passage each replaced: on average a third of what one prefill would take."""
    changed = total = 0
    for seed in range(10):
        passages = document(seed, 60)
        edited = [*passages[:30], tuple(range(200)), *passages[31:]]
        before = {name for run in document_windows(CONTEXT, passages) for name in run.names}
        after = document_windows(CONTEXT, edited)
        new = {name for run in after for name in run.names} - before
        changed += len(new)
        total += len(edited)
        assert len(after) > 2
    mean_window = 10 * WINDOW_TOKENS / (10 * 60 * 158) * 60
    assert changed / 10 < 1.5 * mean_window and changed < total / 3


def test_names_are_those_of_the_tokens_in_front() -> None:
    run = EncodeRun(CONTEXT, ((1, 2), (3,), (4, 5, 6)))
    prompt = run.prompt(10_000)
    assert prompt == [*CONTEXT.token_ids, 1, 2, 3, 4, 5, 6]
    assert [part[1:] for part in run.parts] == [(256, 258), (258, 259), (259, 262)]
    assert run.names == [(token_hash(prompt[:start]), token_hash(prompt[start:end])) for _, start, end in run.parts]
    assert run.num_tokens({run.names[0], run.names[2]}) == 5


def test_a_repeated_passage_is_encoded_once() -> None:
    """As in a text that says the same for ever, whose places all look alike."""
    one, two, other = (1,) * 100, (2,) * 100, (3,) * 100
    runs = document_windows(CONTEXT, [one, two] * 2000 + [other], window_tokens=1000)
    assert sum(len(run.passages) for run in runs) == 4001
    assert max(len(run.passages) for run in runs) == 10
    assert [passage_id for run in runs for _, passage_id in run.names] == [
        token_hash(each) for each in (one, two, other)
    ]
