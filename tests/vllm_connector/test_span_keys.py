"""What the service names passage KV by, the connector looks up by: with a tenant's salt, and without one."""

import pytest

from kvblend.api.kv.encode_context import EncodeContext
from kvblend.api.kv.encode_run import EncodeRun
from kvblend.core.plan import ContextPlan, Span
from kvblend.vllm_connector.span_keys import place_spans

PREAMBLE, PASSAGES = (1, 2, 3), ((4, 5), (6, 7, 8))


def names(salt: str | None, *, plan_salt: str | None) -> tuple[list[tuple[str, str]], list[tuple[str, str, bool]]]:
    """What a run makes behind its preamble, and what a plan over the same tokens finds."""
    context = EncodeContext(PREAMBLE, len(PREAMBLE), salt)
    run = EncodeRun(context, PASSAGES)
    made = [*EncodeRun.preamble(context).names, *run.names]
    spans = [Span(kind="exact", num_tokens=3)]
    spans += [
        Span(kind="passage", num_tokens=end - start, encode_contexts=(name[0],)) for name, start, end in run.parts
    ]
    placed = place_spans(ContextPlan(spans=tuple(spans), salt=plan_salt), [*PREAMBLE, *PASSAGES[0], *PASSAGES[1], 9])
    choices = [choice for span in placed for choice in span.choices]
    return made, [(choice.encode_context, choice.passage_id, choice.exact) for choice in choices]


@pytest.mark.parametrize("salt", [None, "ab" * 32])
def test_a_plan_finds_what_a_run_of_its_salt_made(salt: str | None) -> None:
    made, found = names(salt, plan_salt=salt)
    assert found == [(*name, True) for name in made]


def test_other_salts_have_nothing_in_common() -> None:
    plain, salted, other = (set(names(salt, plan_salt=salt)[0]) for salt in (None, "ab" * 32, "cd" * 32))
    assert plain.isdisjoint(salted | other) and salted.isdisjoint(other)
    made, found = names("ab" * 32, plan_salt=None)
    assert made[0] != found[0][:2] and not any(exact for _, _, exact in found[1:])
