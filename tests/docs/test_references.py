"""The pages of docs/ that are made of the code are what the code says."""

from types import ModuleType

import pytest

from tests.docs import (
    make_cli,
    make_compatibility,
    make_metrics,
    make_peer_benchmarks,
    make_plan,
    make_routes,
    make_settings,
)

MADE = {
    "cli": make_cli,
    "compatibility": make_compatibility,
    "metrics": make_metrics,
    "peer_benchmarks": make_peer_benchmarks,
    "plan": make_plan,
    "routes": make_routes,
    "settings": make_settings,
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_the_reference_is_current(made: ModuleType) -> None:
    assert made.PAGE.read_text() == made.reference(), "run `make reference`"
