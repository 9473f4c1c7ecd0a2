"""Run methods over questions, resuming where an earlier run ended."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from kvblend.eval.quality.question_lab import Measurement, QuestionLab
from kvblend.eval.quality.state import MethodKey, QualityState

__all__ = ["FULL_PREFILL", "all_measured", "complete_questions", "measure_question", "method_keys"]

FULL_PREFILL = MethodKey("", "full_prefill", 1.0)


def method_keys(methods: Sequence[tuple[str, str]], ratios: Sequence[float]) -> list[MethodKey]:
    """Each (encode, selector) at every ratio; `none` and `all` have one each. Full prefill comes first."""
    keys = [FULL_PREFILL]
    for encode, selector in methods:
        if selector in ("none", "all"):
            keys.append(MethodKey(encode, selector, float(selector == "all")))
        else:
            keys += (MethodKey(encode, selector, ratio) for ratio in ratios)
    return keys


def measure_question(
    index: int, keys: Sequence[MethodKey], state: QualityState, make_lab: Callable[[], QuestionLab]
) -> Iterator[None]:
    """Measure what is not in `state` yet, one step a method; the lab is made where anything is missing."""
    missing = [key for key in keys if state.get(index, key) is None]
    yield from [None] * (len(keys) - len(missing))
    if not missing:
        return
    lab = make_lab()
    laid_out, encode = None, None
    for key in missing:
        if key == FULL_PREFILL:
            state.put(index, key, lab.full_prefill)
        else:
            if laid_out is None or key.encode != encode:
                laid_out, encode = lab.lay_out(key.encode), key.encode
            state.put(index, key, lab.measure(laid_out, key.selector, key.recompute_ratio))
        yield


def complete_questions(state: QualityState, keys: Sequence[MethodKey], questions: Iterable[int]) -> list[int]:
    """Those of `questions` that every method has been measured on, in their order."""
    return [index for index in questions if all(state.get(index, key) is not None for key in keys)]


def all_measured(
    state: QualityState, keys: Sequence[MethodKey], *, questions: Sequence[int]
) -> dict[MethodKey, list[Measurement]]:
    """Every method's measurements of `questions`, all of which are in `state`, in their order."""
    measured: dict[MethodKey, list[Measurement]] = {}
    for key in keys:
        found = [state.get(index, key) for index in questions]
        measured[key] = [one for one in found if one is not None]
        assert len(measured[key]) == len(questions)
    return measured
