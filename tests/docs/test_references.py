"""What of the pages is made of the code, of results and of a report is what these say."""

from types import ModuleType

import pytest

from tests.docs import (
    make_cli,
    make_compatibility,
    make_metrics,
    make_peer_benchmarks,
    make_plan,
    make_results_table,
    make_routes,
    make_settings,
    make_token_strip,
)

MADE = {
    "cli": make_cli,
    "compatibility": make_compatibility,
    "metrics": make_metrics,
    "peer_benchmarks": make_peer_benchmarks,
    "plan": make_plan,
    "results table": make_results_table,
    "routes": make_routes,
    "settings": make_settings,
    "token strip": make_token_strip,
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_the_reference_is_current(made: ModuleType) -> None:
    assert made.PAGE.read_text() == made.reference(), "run `make reference`"
